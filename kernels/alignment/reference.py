"""Alignment written out, as Wang and Isola do. The oracle of the tests; never optimised."""

from torch import Tensor
from torch.nn import functional as F


def alignment(x: Tensor, y: Tensor, alpha: float, normalize: bool) -> Tensor:
    """mean_i |x_i - y_i|^alpha; (N, D), (N, D) -> 0-d, in the type of x."""
    if normalize:
        x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    distance: Tensor = (x - y).norm(dim=-1)
    return distance.pow(alpha).mean()
