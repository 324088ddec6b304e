"""The plan: tiles of the upper triangle of all pairs, each pair once, in one small workspace.

Rows are centred first. Distances do not notice, and what the products of rows have in common, in
which the digits of close rows would drown, is gone: with c the centred rows,

    -t |x_i - x_j|^2 = 2 t <c_i, c_j> - t |c_i|^2 - t |c_j|^2 <= 0

so that exponentials need no offset, unless all rows lie far apart. A tile of them serves both of
its sides: with e_ij the exponentials, Z their sum over pairs and r_i their sum over a row,

    d log(Z) / d x_i = (2 t / Z) (sum_j e_ij c_j - r_i c_i)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from simcse_fast.kernels.infonce import workspace

LOG2E = math.log2(math.e)
FAINT = -32.0  # logits in log2: where the largest lies below, exponentials may have been lost
WITHIN = 4.0  # squares of the lengths of unit rows less their mean
# What the roundings of a logit's terms may amount to. Terms of long rows, or under a large t, are
# larger than the logits of close ones: then rows are multiplied in a wider type.
ROUNDING = {torch.float64: math.inf, torch.float32: 3e-6, torch.bfloat16: 0.1, torch.float16: 0.1}
FEW = 1024  # rows that are widened at a time
ALIGNED = 64  # of which a tile's columns are a multiple
# Rows and columns of a tile: large enough for products, small enough for a CPU's caches.
SHAPES = {"cpu": (512, 2048), "cuda": (8192, 16384)}


@dataclass
class Tile:
    """Pairs of rows [row, row + M) with rows [column, column + N), row <= column."""

    row: int
    column: int
    left: Tensor  # (M, D) centred rows
    right: Tensor  # (N, D)
    left_bias: Tensor  # (M,) t log2(e) |c|^2
    right_bias: Tensor  # (N,)
    slope: float  # 2 t log2(e)
    offset: float
    row_sum: Tensor  # (M,) fp64, added to
    column_sum: Tensor  # (N,) fp64, added to
    largest: Tensor  # 0-d fp32: the largest logit so far, in log2, the offset not taken off


class Part(Protocol):
    """What the plan asks of a back-end."""

    def normalize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, D) -> unit rows and (rows,) inverse lengths."""

    def normalize_backward(
        self, x: Tensor, inverse: Tensor | None, gradient: Tensor, scale: Tensor | float
    ) -> Tensor | None:
        """Gradient of the unit rows -> scale * gradient of x, in place."""

    def few(self, x: Tensor, slope: float, gradient: bool) -> tuple[Tensor, Tensor | None] | None:
        """Sum of a few unit rows' potentials and the gradient of its log in one go, or None."""

    def potentials(self, tile: Tile, out: Tensor, kept: bool) -> None:
        """Take in a tile: its sums, and if `kept` its potentials exp2(logit - offset) in out.

        Where the column does not lie right of the row, out (M, N) gets 0. Without `kept` it is
        scratch, and the sums of columns may be left out.
        """

    def multiply(self, left: Tensor, right: Tensor, out: Tensor, add: bool) -> None:
        """Write or add the product of left and right into out."""

    def operand(self, x: Tensor, dtype: torch.dtype, lowest: float) -> Tensor:
        """Centred rows as they are multiplied, given their type and the lowest logit in log2."""


def run(
    part: Part,
    x: Tensor,  # (N, D) contiguous, fp32 or fp64
    dtype: torch.dtype,  # in which the rows came
    t: float,
    normalize: bool,
    gradient: bool,  # whether it is wanted
    limit: int,  # bytes of the workspace
) -> tuple[Tensor, Tensor | None] | None:
    """The uniformity, 0-d fp64, and its gradient; None where it takes wider numbers."""
    fits = x.element_size() * len(x) ** 2 <= limit
    if normalize and fits and (found := _few(part, x, t, gradient)):
        return found
    centred, inverse = part.normalize(x) if normalize else (x.clone(), None)
    centred -= centred.mean(0)
    lowest = -4 * t * LOG2E if normalize else -math.inf  # unit rows lie at most 2 apart
    pairs = _Pairs(part, part.operand(centred, dtype, lowest), t, limit)
    if not pairs.exact(WITHIN if normalize else math.inf):
        return None
    back = torch.zeros_like(pairs.rows, dtype=x.dtype) if gradient else None
    pairs.pass_over(0.0, back)
    if lowest < FAINT and -math.inf < (largest := float(pairs.largest)) < FAINT:
        if back is not None:
            back.zero_()
        pairs.pass_over(largest, back)
    total = pairs.row_sum.sum()
    value = _log_mean(total, len(x), pairs.offset)
    if back is not None:
        back = back[:, : x.shape[1]].contiguous()
        both = (pairs.row_sum + pairs.column_sum).to(x.dtype)
        back.addcmul_(centred, both[:, None], value=-1).mul_((2 * t / total).to(x.dtype))
        part.normalize_backward(x, inverse, back, 1.0)
    return value, back


def _few(part: Part, x: Tensor, t: float, gradient: bool) -> tuple[Tensor, Tensor | None] | None:
    """The same for a few unit rows, whose logits keep their digits whatever they are."""
    slope = 2 * t * LOG2E
    if slope * WITHIN > _most(x.dtype) or (found := part.few(x, slope, gradient)) is None:
        return None
    return _log_mean(found[0], len(x), 0.0), found[1]


def _log_mean(total: Tensor, rows: int, offset: float) -> Tensor:
    """Of potentials, from their sum over pairs above an offset."""
    value = total.log() + offset / LOG2E - math.log(rows * (rows - 1) / 2)
    return value.clamp_max(0.0)  # of rows that coincide, but for rounding


def _most(dtype: torch.dtype) -> float:
    """Bound on the terms of logits that keep their digits."""
    return ROUNDING[dtype] / torch.finfo(dtype).eps


class _Pairs:
    """All pairs of centred rows, tile by tile."""

    def __init__(self, part: Part, rows: Tensor, t: float, limit: int) -> None:
        self.part, self.rows, self.slope, self.limit = part, rows, 2 * t * LOG2E, limit
        squares = rows.new_empty(len(rows), dtype=torch.float64)
        # Some rows at a time: all of them in double would be the largest thing in memory.
        for begin in range(0, len(rows), FEW):
            some, out = rows[begin : begin + FEW], squares[begin : begin + FEW]
            torch.linalg.vector_norm(some, dim=-1, dtype=torch.float64, out=out).square_()
        self.bias = squares.mul_(t * LOG2E).to(torch.promote_types(rows.dtype, torch.float32))
        self.row_sum, self.column_sum = squares.new_zeros(2, len(rows))
        self.largest = self.bias.new_full((), -math.inf)
        self.offset = 0.0

    def exact(self, most: float) -> bool:
        """Whether logits keep their digits, given a bound on the rows' lengths, squared."""
        bound = _most(self.rows.dtype)
        if self.slope * most <= bound:
            return True  # without a look at the rows
        return not 2 * float(self.bias.max()) > bound  # NaN is for the result to show

    def pass_over(self, offset: float, back: Tensor | None) -> None:
        """Sums of the exponentials above an offset, and what they pull each row to."""
        self.offset = offset
        self.row_sum.zero_()
        self.column_sum.zero_()
        high, wide = self._shape()
        with workspace.borrowed("tile", self.rows, high * wide) as memory:
            for row, column in _upper(len(self.rows), high, wide):
                tile = self._tile(slice(row, row + high), slice(column, column + wide))
                out = memory.as_strided((len(tile.left), len(tile.right)), (wide, 1))
                self.part.potentials(tile, out, back is not None)
                if back is not None:
                    mine, theirs = back[row : row + high], back[column : column + wide]
                    self.part.multiply(out, tile.right, mine, add=True)
                    self.part.multiply(out.T, tile.left, theirs, add=True)

    def _shape(self) -> tuple[int, int]:
        """Rows and columns of a tile, within the limit."""
        high, wide = SHAPES.get(self.rows.device.type, SHAPES["cuda"])
        fill = -(-len(self.rows) // ALIGNED) * ALIGNED
        high, wide = min(high, len(self.rows)), min(wide, fill)
        numbers = max(1, self.limit // self.rows.element_size())
        wide = min(wide, numbers)
        return max(1, min(high, numbers // wide)), wide

    def _tile(self, mine: slice, theirs: slice) -> Tile:
        return Tile(
            *(mine.start, theirs.start, self.rows[mine], self.rows[theirs]),
            *(self.bias[mine], self.bias[theirs], self.slope, self.offset),
            *(self.row_sum[mine], self.column_sum[theirs], self.largest),
        )


def _upper(rows: int, high: int, wide: int) -> Iterator[tuple[int, int]]:
    """Corners of the tiles that hold the pairs i < j."""
    for row in range(0, rows, high):
        for column in range(row, rows, wide):
            yield row, column
