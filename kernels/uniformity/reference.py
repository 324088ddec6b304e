"""Uniformity written out, as Wang and Isola do. The oracle of the tests; never optimised."""

import torch
from torch import Tensor
from torch.nn import functional as F


def uniformity(x: Tensor, t: float, normalize: bool) -> Tensor:
    """U = log mean_{i<j} exp(-t |x_i - x_j|^2); (N, D) -> 0-d, in the type of x."""
    rows = F.normalize(x, dim=-1) if normalize else x
    squares = torch.pdist(rows).square()  # (N (N - 1) / 2,)
    return torch.logsumexp(-t * squares, 0) - torch.tensor(float(len(squares))).to(x).log()
