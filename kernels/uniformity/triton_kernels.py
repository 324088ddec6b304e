"""The GPU's part of the plan: a product of rows whose epilogue is their potentials."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from simcse_fast.kernels.infonce import tiles as table
from simcse_fast.kernels.infonce.fused import multiply
from simcse_fast.kernels.infonce.torch_ops import normalize, normalize_backward
from simcse_fast.kernels.infonce.triton_kernels import product, put, tile_of
from simcse_fast.kernels.infonce.triton_math import FUSED
from simcse_fast.kernels.infonce.triton_rows import padded, precision
from simcse_fast.kernels.uniformity.tiles import Tile
from simcse_fast.kernels.uniformity.torch_ops import few

__all__ = ["few", "multiply", "normalize", "normalize_backward", "operand", "potentials"]

SIZES = ("rows", "columns", "first_row", "first_column")
# The smallest normal number of fp16 in log2; potentials below it would lose their digits there.
SMALLEST_HALF = -14


def operand(x: Tensor, dtype: torch.dtype, lowest: float) -> Tensor:
    """Rows in the type they came in, with zeros up to a width and a number that tiles divide."""
    if dtype == torch.float16 and lowest < SMALLEST_HALF:
        dtype = torch.float32
    rows, width = x.shape
    whole = x.new_zeros(padded(rows), padded(width), dtype=dtype)
    whole[:rows, :width] = x
    return whole[:rows]


@triton.jit(do_not_specialize=SIZES)
def uniformity_potentials_kernel(
    left,  # (rows, depth) centred rows, pointer or descriptor
    right,  # (columns, depth)
    out,  # (rows, columns) out where STORE: potentials, 0 on and left of the diagonal
    stride,
    left_bias,  # (rows,)
    right_bias,  # (columns,)
    row_sums,  # (tiles of columns, rows) out
    column_sums,  # (tiles of rows, columns) out where STORE
    largest,  # (tiles of rows, tiles of columns) out
    slope,
    slope_rest,  # what is lost of the slope in fp32
    offset,
    first_row,
    first_column,
    rows,
    columns,
    depth,
    STORE: tl.constexpr,
    PRECISION: tl.constexpr,
    TMA: tl.constexpr,
    HALVES: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One tile of pairs: its potentials, and their sums over rows and columns."""
    tiles_m, tiles_n = tl.cdiv(rows, BM), tl.cdiv(columns, BN)
    i_m, i_n = tile_of(tl.program_id(0), tiles_m, tiles_n, GROUP)
    row, column = i_m * BM, i_n * BN
    i, j = row + tl.arange(0, BM), column + tl.arange(0, BN)
    e = tl.zeros([BM, BN], dtype=tl.float32)
    top = tl.full((), float("-inf"), dtype=tl.float32)
    if first_column + column + BN - 1 > first_row + row:  # a pair may lie right of the diagonal
        s = product(
            left, right, row, column, rows, columns, depth, BM, BN, BK, TMA, PRECISION
        )  # [BM, BN]
        mine = tl.load(left_bias + i, mask=i < rows, other=0.0)
        theirs = tl.load(right_bias + j, mask=j < columns, other=0.0)
        t = tl.fma(s, slope, -(mine[:, None] + theirs[None, :]))
        t = tl.fma(s, slope_rest, t)
        pair = (first_row + i)[:, None] < (first_column + j)[None, :]
        pair = pair & (i < rows)[:, None] & (j < columns)[None, :]
        t = tl.where(pair, t, float("-inf"))
        top = tl.max(t)
        e = tl.exp2(t - offset)
    tl.store(row_sums + i_n.to(tl.int64) * rows + i, tl.sum(e, 1), mask=i < rows)
    tl.store(largest + i_m * tiles_n + i_n, top)
    if STORE:
        tl.store(column_sums + i_m.to(tl.int64) * columns + j, tl.sum(e, 0), mask=j < columns)
        put(out, stride, row, column, rows, columns, e, BM, BN, TMA, HALVES)


def potentials(tile: Tile, out: Tensor, kept: bool) -> None:
    """Take in a tile."""
    (rows, depth), columns = tile.left.shape, len(tile.right)
    shape = table.product_tile(tile.left, "columns", rows, columns)
    tiles = triton.cdiv(rows, shape.rows), triton.cdiv(columns, shape.columns)
    by_row = tile.left_bias.new_empty(tiles[1], rows)
    by_column = tile.left_bias.new_empty(tiles[0], columns) if kept else by_row
    largest = tile.left_bias.new_empty(tiles)
    aligned = (out.data_ptr() | out.stride(0) * out.element_size()) % 16 == 0
    descriptors = shape.descriptors and (aligned or not kept)
    left, right, into = tile.left, tile.right, out
    if descriptors:
        left = TensorDescriptor.from_tensor(left, [shape.rows, shape.depth])
        right = TensorDescriptor.from_tensor(right, [shape.columns, shape.depth])
        stored = shape.columns // 2 if shape.halves else shape.columns
        into = TensorDescriptor.from_tensor(out, [shape.rows, stored]) if kept else left
    high = torch.tensor(tile.slope, dtype=torch.float32).item()
    uniformity_potentials_kernel[(tiles[0] * tiles[1],)](
        *(left, right, into, out.stride(0), tile.left_bias, tile.right_bias),
        *(by_row, by_column, largest, high, tile.slope - high, tile.offset),
        *(tile.row, tile.column, rows, columns, depth),
        STORE=kept, PRECISION=precision(tile.left), TMA=descriptors, HALVES=shape.halves,
        BM=shape.rows, BN=shape.columns, BK=shape.depth, GROUP=table.GROUP,
        num_warps=shape.warps, num_stages=shape.stages, **FUSED,
    )  # fmt: skip
    tile.row_sum += by_row.sum(0, dtype=torch.float64)
    if kept:
        tile.column_sum += by_column.sum(0, dtype=torch.float64)
    torch.maximum(tile.largest, largest.amax(), out=tile.largest)
