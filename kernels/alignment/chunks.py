"""Alignment and its gradients, some rows at a time, so that nothing stays but the gradients."""

from typing import Protocol

import torch
from torch import Tensor

# Numbers of a matrix taken at a time: few enough for a CPU's caches, enough to fill a GPU.
CHUNK = {"cpu": 1 << 19, "cuda": 1 << 25}


class Part(Protocol):
    """Unit rows and the gradient through them; torch_ops and cpu of the loss are such parts."""

    def normalize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, D) -> unit rows and (rows,) inverse lengths."""

    def normalize_backward(
        self, x: Tensor, inverse: Tensor | None, gradient: Tensor, scale: Tensor | float
    ) -> Tensor | None:
        """Gradient of the unit rows -> scale * gradient of x, in place."""


def run(
    part: Part,
    pair: tuple[Tensor, Tensor],  # (N, D) each, contiguous, fp32 or fp64
    alpha: float,
    normalize: bool,
    needs: tuple[bool, bool],  # gradients wanted
) -> tuple[Tensor, list[Tensor | None]]:
    """The mean, 0-d fp64, and its gradients."""
    rows, width = pair[0].shape
    total = torch.zeros((), dtype=torch.float64, device=pair[0].device)
    gradients = [torch.empty_like(x) if need else None for x, need in zip(pair, needs, strict=True)]
    step = max(1, CHUNK.get(pair[0].device.type, CHUNK["cuda"]) // width)
    for begin in range(0, rows, step):
        mine = [x[begin : begin + step] for x in pair]
        units = [part.normalize(x) if normalize else (x, None) for x in mine]
        difference = units[0][0] - units[1][0]
        square = torch.linalg.vector_norm(difference, dim=-1, dtype=torch.float64).square_()
        total += square.pow(alpha / 2).sum()
        # d|d|^alpha = alpha |d|^(alpha - 2) d; rows that coincide pull nowhere.
        slope = square.pow(alpha / 2 - 1).masked_fill_(square == 0, 0).mul_(alpha / rows)
        for n, sign in enumerate((1, -1)):
            if (whole := gradients[n]) is not None:
                back = whole[begin : begin + step]
                torch.mul(difference, (sign * slope).to(difference.dtype)[:, None], out=back)
                part.normalize_backward(mine[n], units[n][1], back, 1.0)
    return total / rows, gradients
