"""The native part of the plan: one pass per tile in C++ (csrc/cpu), float32 on the CPU."""

import ctypes

import torch
from torch import Tensor

from simcse_fast.kernels import native
from simcse_fast.kernels.infonce.cpu import SMALL, multiply, normalize, normalize_backward
from simcse_fast.kernels.uniformity.tiles import Tile
from simcse_fast.kernels.uniformity.torch_ops import operand

__all__ = ["few", "multiply", "normalize", "normalize_backward", "operand", "potentials"]

FEW = 1024  # rows whose pairs fill a tile


def few(x: Tensor, slope: float, gradient: bool) -> tuple[Tensor, Tensor | None] | None:
    """Unit rows, whole in one native call; None where they are many."""
    library, (rows, width) = native.load(), x.shape
    quick = library.sf_outruns_blas() or rows * rows * width <= SMALL[False]
    if rows > FEW or not quick:
        return None
    total = x.new_empty((), dtype=torch.float64)
    back = torch.empty_like(x) if gradient else None
    batch = native.Few(  # by position, in the order of sf_few
        *(x.data_ptr(), rows, width, slope, None, total.data_ptr()),
        *(None if back is None else back.data_ptr(), torch.get_num_threads()),
    )
    at = ctypes.byref(batch)
    scratch = x.new_empty(library.sf_few_scratch(at))
    batch.scratch = scratch.data_ptr()
    library.sf_uniformity_few(at)
    return total, back


def potentials(tile: Tile, out: Tensor, kept: bool) -> None:
    """Take in a tile."""
    multiply(tile.left, tile.right.T, out, add=False)
    problem = native.Potentials(  # by position, in the order of sf_potentials
        *(out.data_ptr(), *out.shape, out.stride(0), tile.row, tile.column),
        *(tile.left_bias.data_ptr(), tile.right_bias.data_ptr(), tile.slope, tile.offset),
        tile.row_sum.data_ptr(),
        tile.column_sum.data_ptr() if kept else None,
        *(tile.largest.data_ptr(), kept, torch.get_num_threads()),
    )
    native.load().sf_uniformity_potentials(ctypes.byref(problem))
