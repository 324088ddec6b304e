"""Triton kernels over rows: the loss's O(N D) work before the products, between them and after."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from simcse_fast.kernels.infonce.terms import kept_type
from simcse_fast.kernels.infonce.triton_math import (
    FUSED,
    LOG2E,
    SHORTEST,
    scale_arguments,
    scale_of,
)

PAD = 64  # rows and width of unit rows are multiples of it, so that no product has a ragged depth
# Logits may lie so many binades above the offset: their sums stay below 2^127, and what divides by
# sums does not vanish beside small weights.
HEADROOM = 64


def padded(count: int) -> int:
    """The next multiple of PAD."""
    return -(-count // PAD) * PAD


@dataclass(frozen=True)
class Rows:
    """A tensor's rows, and their unit rows in the type of the products."""

    raw: Tensor  # (rows, D), any strides
    unit: Tensor  # (padded rows, padded D), zeros beyond
    inverse: Tensor | None  # (rows,) inverse lengths; None where rows are used as they are


@dataclass(frozen=True)
class Numbers:
    """From what the scale and the offset of the exponentials are made, on the device."""

    values: Tensor  # (2,) fp64 out
    scale: Tensor | float
    hardest: float  # the largest hardness
    above: float  # binades by which own hard negatives may exceed all others


def _block(width: int) -> dict[str, int]:
    columns = min(1024, triton.next_power_of_2(width))
    return {"BR": min(PAD, max(1, 2048 // columns)), "BD": columns}


@triton.jit(do_not_specialize=["rows", "height"])
def infonce_unit_kernel(
    x,  # (rows, width)
    row_stride,
    column_stride,
    unit,  # (height, depth) out, zeros beyond the rows and their width
    inverse,  # (rows,) out
    numbers,  # (2,) fp64 out where FIRST: scale, offset
    scale,  # () where LEARNED
    scale_high,  # elsewhere the scale, as the sum of two floats
    scale_low,
    hardest,
    above,
    rows,
    height,
    width,
    depth,
    FIRST: tl.constexpr,
    LEARNED: tl.constexpr,
    HEADROOM: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """Unit rows and inverse lengths; the first tensor's kernel also writes scale and offset."""
    if FIRST:
        s = scale_of(scale, scale_high, scale_low, LEARNED)
        highest = ((s + hardest) * LOG2E + above).to(tl.float32)
        if tl.program_id(0) == 0:
            tl.store(numbers, s)
            tl.store(numbers + 1, tl.maximum(tl.ceil(highest - HEADROOM), 0.0).to(tl.float64))
    i = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    there = i < rows
    squares = tl.zeros([BR], dtype=tl.float64)
    for d in range(0, width, BD):
        j = d + tl.arange(0, BD)
        at = x + i[:, None] * row_stride + j[None, :].to(tl.int64) * column_stride
        row = tl.load(at, mask=there[:, None] & (j[None, :] < width), other=0.0).to(tl.float64)
        squares += tl.sum(row * row, 1)
    length = tl.sqrt(squares)
    one = tl.where(length == 0, 0.0, 1 / tl.maximum(length, SHORTEST))
    tl.store(inverse + i, one.to(tl.float32), mask=there)
    for d in range(0, depth, BD):
        j = d + tl.arange(0, BD)
        at = x + i[:, None] * row_stride + j[None, :].to(tl.int64) * column_stride
        row = tl.load(at, mask=there[:, None] & (j[None, :] < width), other=0.0).to(tl.float64)
        out = unit + i[:, None] * depth + j[None, :]
        u = (row * one[:, None]).to(tl.float32)
        tl.store(
            out, u.to(unit.dtype.element_ty), mask=(i[:, None] < height) & (j[None, :] < depth)
        )


def unit_rows(x: Tensor, numbers: Numbers | None, *, padding: bool = True) -> Rows:
    """Normalize (rows, D); where `numbers` are given, write those too."""
    rows, width = x.shape
    unit = x.new_empty(padded(rows), padded(width)) if padding else x.new_empty(x.shape)
    inverse = x.new_empty(rows, dtype=torch.float32)
    made = Numbers(inverse, 0.0, 0.0, 0.0) if numbers is None else numbers
    block = _block(width)
    infonce_unit_kernel[(triton.cdiv(unit.shape[0], block["BR"]),)](
        *(x, *x.stride(), unit, inverse, made.values, *scale_arguments(made.scale, inverse)),
        *(made.hardest, made.above, rows, unit.shape[0], width, unit.shape[1]),
        **{
            "FIRST": numbers is not None,
            "LEARNED": isinstance(made.scale, Tensor),
            "HEADROOM": HEADROOM,
            **block,
            **FUSED,
        },
    )
    return Rows(x, unit, inverse)


def rows_as_they_are(x: Tensor) -> Rows:
    """Without normalisation; copied where the products need padding."""
    rows, width = x.shape
    more = padded(rows) - rows, padded(width) - width
    if any(more) or not x.is_contiguous() or x.data_ptr() % 16:
        return Rows(x, torch.nn.functional.pad(x, (0, more[1], 0, more[0])).contiguous(), None)
    return Rows(x, x, None)


@triton.jit(do_not_specialize=["rows"])
def infonce_pairs_kernel(
    left,  # (., depth) unit rows
    right,  # (., depth) unit rows
    labels,  # (rows,) row of `right`, where LABELS; its own number elsewhere
    out,  # (rows,) fp32
    rows,
    depth,
    GROUP: tl.constexpr,  # rows i ... i + GROUP - 1 share a row of `left`
    LABELS: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """<left[i // GROUP], right[labels[i]]>, as the diagonal of a product like the panels'.

    Its steps are those of the panel, so that a key equal to the positive is as similar but for the
    last bits, which a margin forgives.
    """
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    here = tl.minimum(i, rows - 1)
    there = tl.load(labels + here) if LABELS else here
    k = tl.arange(0, BK)
    a_at = left + (here // GROUP).to(tl.int64)[:, None] * depth + k[None, :]
    b_at = right + there.to(tl.int64)[:, None] * depth + k[None, :]
    total = tl.zeros([BM, BM], dtype=tl.float32)
    for _ in range(0, depth, BK):
        total = tl.dot(tl.load(a_at), tl.load(b_at).T, total)
        a_at += BK
        b_at += BK
    own = tl.arange(0, BM)[:, None] == tl.arange(0, BM)[None, :]
    tl.store(out + i, tl.sum(tl.where(own, total, 0.0), 1), mask=i < rows)


def pairs(left: Tensor, right: Tensor, rows: int, labels: Tensor | None, group: int = 1) -> Tensor:
    """Similarities (rows,) of row i // group of `left` with row labels[i] (or i) of `right`."""
    out = left.new_empty(rows, dtype=torch.float32)
    infonce_pairs_kernel[(triton.cdiv(rows, 32),)](
        *(left, right, out if labels is None else labels, out, rows, left.shape[1]),
        GROUP=group,
        LABELS=labels is not None,
        BM=32,
        BK=64,
        num_warps=4,
        **FUSED,
    )
    return out


def precision(x: Tensor) -> str:
    """How fp32 is multiplied: as torch's switch says."""
    if x.dtype != torch.float32:
        return "ieee"
    try:
        switch = torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer switch of CUDA's products was used
        switch = "medium" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "highest"
    return {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}[switch]


@triton.jit(do_not_specialize=["rows"])
def infonce_finish_kernel(
    x,  # (rows, width)
    row_stride,
    column_stride,
    inverse,  # (rows,) inverse lengths, where NORMALIZE
    sums,  # (., depth) fp32: gradient of the unit rows, less the factors below
    after,  # (rows,) a factor, where AFTER
    gain,  # () a divisor, where GAIN
    scale,  # () where LEARNED
    scale_high,  # elsewhere the scale, as the sum of two floats
    scale_low,
    out,  # (rows, width) out: gradient of x; may be the sums
    along,  # (rows,) fp64 out where SCALE: <unit, gradient> without the scale
    rows,
    width,
    depth,
    uniform,  # a factor
    LEARNED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    AFTER: tl.constexpr,
    GAIN: tl.constexpr,
    SCALE: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """Back through the normalisation: s (g - u <u, g>) / |x|."""
    i = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    here = i < rows
    factor = tl.full([BR], uniform, dtype=tl.float32)
    if GAIN:
        factor /= tl.load(gain)
    if AFTER:
        factor *= tl.load(after + i, mask=here, other=0.0)
    one = tl.full([BR], 1.0, dtype=tl.float32)
    if NORMALIZE:
        one = tl.load(inverse + i, mask=here, other=0.0)
    projection = tl.zeros([BR], dtype=tl.float64)
    if NORMALIZE or SCALE:
        # What is left after the projection may be small, so it is summed in double.
        for d in range(0, width, BD):
            j = d + tl.arange(0, BD)
            inside = here[:, None] & (j[None, :] < width)
            at = x + i[:, None] * row_stride + j[None, :].to(tl.int64) * column_stride
            u = tl.load(at, mask=inside, other=0.0).to(tl.float32) * one[:, None]
            g = tl.load(sums + i[:, None] * depth + j[None, :], mask=inside, other=0.0)
            g *= factor[:, None]
            projection += tl.sum(u.to(tl.float64) * g.to(tl.float64), 1)
    if SCALE:
        tl.store(along + i, projection, mask=here)
    # The shortest rows were multiplied by a constant, so nothing is projected out.
    back = tl.where(one < 1 / SHORTEST, projection, 0.0).to(tl.float32)
    last = scale_of(scale, scale_high, scale_low, LEARNED).to(tl.float32) * one
    for d in range(0, width, BD):
        j = d + tl.arange(0, BD)
        inside = here[:, None] & (j[None, :] < width)
        at = x + i[:, None] * row_stride + j[None, :].to(tl.int64) * column_stride
        g = tl.load(sums + i[:, None] * depth + j[None, :], mask=inside, other=0.0)
        g *= factor[:, None]
        if NORMALIZE:
            u = tl.load(at, mask=inside, other=0.0).to(tl.float32) * one[:, None]
            g -= u * back[:, None]
        g *= last[:, None]
        tl.store(out + i[:, None] * width + j[None, :], g.to(out.dtype.element_ty), mask=inside)


def kept(rows: Rows, dtype: torch.dtype | None = None) -> Tensor:
    """Room for the gradient of a tensor's rows, if in no other type in the one it is kept in."""
    return rows.unit.new_empty(rows.raw.shape, dtype=dtype or kept_type(rows.raw.dtype))


def finish(
    rows: Rows,
    sums: Tensor,
    scale: Tensor | float,  # the tensor's first number
    *,
    uniform: float = 1.0,
    after: Tensor | None = None,
    gain: Tensor | None = None,
    of_scale: bool,
    in_place: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Gradient (rows, D) of a tensor's rows, ready but for the upstream one; the scale's, fp64."""
    (count, width), depth = rows.raw.shape, sums.shape[1]
    out = sums if in_place else kept(rows)
    along = sums.new_empty(count if of_scale else 1, dtype=torch.float64)
    block = _block(width)
    infonce_finish_kernel[(triton.cdiv(count, block["BR"]),)](
        *(rows.raw, *rows.raw.stride(), sums if rows.inverse is None else rows.inverse, sums),
        *(sums if after is None else after, sums if gain is None else gain),
        *(*scale_arguments(scale, sums), out, along, count, width, depth, uniform),
        LEARNED=isinstance(scale, Tensor),
        NORMALIZE=rows.inverse is not None,
        AFTER=after is not None,
        **{"GAIN": gain is not None, "SCALE": of_scale, **block, **FUSED},
    )
    return out, along.sum() if of_scale else None
