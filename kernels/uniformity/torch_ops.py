"""The plain part of the plan: torch operations, for every device and floating-point type."""

import math

import torch
from torch import Tensor

from simcse_fast.kernels.infonce.torch_ops import multiply, normalize, normalize_backward
from simcse_fast.kernels.uniformity.tiles import Tile

__all__ = ["few", "multiply", "normalize", "normalize_backward", "operand", "potentials"]


def operand(x: Tensor, dtype: torch.dtype, lowest: float) -> Tensor:  # noqa: ARG001
    """Rows are multiplied as they are."""
    return x


def few(_x: Tensor, _slope: float, _gradient: bool) -> None:
    """No quicker way for a few rows."""


def potentials(tile: Tile, out: Tensor, kept: bool) -> None:  # noqa: ARG001 - out is scratch too
    """Take in a tile."""
    torch.mm(tile.left, tile.right.T, out=out)
    out.mul_(tile.slope).sub_(tile.left_bias[:, None]).sub_(tile.right_bias)
    if tile.row + len(tile.left) > tile.column:
        column = torch.arange(tile.column, tile.column + out.shape[1], device=out.device)
        row = torch.arange(tile.row, tile.row + len(out), device=out.device)
        out.masked_fill_(column <= row[:, None], -math.inf)
    torch.maximum(tile.largest, out.amax(), out=tile.largest)
    out.sub_(tile.offset).exp2_()
    tile.row_sum += out.sum(1, dtype=torch.float64)
    tile.column_sum += out.sum(0, dtype=torch.float64)
