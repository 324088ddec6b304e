"""The native part of the plan: one pass per tile in C++ (csrc/cpu), float32 on the CPU."""

import ctypes

import torch
from torch import Tensor

from simcse_fast.kernels import native
from simcse_fast.kernels.infonce.cpu import multiply, normalize, normalize_backward
from simcse_fast.kernels.uniformity.tiles import Tile
from simcse_fast.kernels.uniformity.torch_ops import operand

__all__ = ["multiply", "normalize", "normalize_backward", "operand", "potentials"]


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
