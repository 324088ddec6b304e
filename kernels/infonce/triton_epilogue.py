"""What becomes of a tile of similarities while it is in registers: logits, sums, gradients."""

import triton
import triton.language as tl

from simcse_fast.kernels.infonce.triton_math import KEPT, LOWEST, ROUNDING, scaled, slope_of


@triton.jit
def holds(label, column, BN: tl.constexpr):
    """Whether one of the labels is among the BN columns of a tile."""
    return tl.max(((label >= column) & (label < column + BN)).to(tl.int32), 0) > 0


@triton.jit
def negatives(
    similarity,  # [BM, BN] fp32; [BN, BM] where TURNED
    numbers,  # scale and offset, fp64
    hardness,  # of negatives, and of own columns that are kept
    own_hardness,
    offset,  # fp32 scalar
    column,  # first column of the tile
    columns,  # of the segment
    label,  # [BM] each row's own column, -1 for none
    query_id,  # [BM], where IDS
    key_ids,  # (N,) where IDS
    OWN: tl.constexpr,
    IDS: tl.constexpr,
    BN: tl.constexpr,
    TURNED: tl.constexpr,
):
    """Logits above the offset in units of log2, -inf where both directions leave a column out."""
    ROW: tl.constexpr = 0 if TURNED else 1  # where a vector of rows gets its second dimension
    columns_of_tile = column + tl.arange(0, BN)
    j = tl.expand_dims(columns_of_tile, 1 - ROW)
    t = scaled(similarity, slope_of(numbers, hardness), offset)
    if holds(label, column, BN):
        own = j == tl.expand_dims(label, ROW)
        if OWN == KEPT:
            t = tl.where(own, scaled(similarity, slope_of(numbers, own_hardness), offset), t)
        else:
            t = tl.where(own, float("-inf"), t)
    if column + BN > columns:
        t = tl.where(j < columns, t, float("-inf"))
    if IDS:
        key_id = tl.load(key_ids + columns_of_tile, mask=columns_of_tile < columns, other=0)
        same = tl.expand_dims(query_id, ROW) == tl.expand_dims(key_id, 1 - ROW)
        t = tl.where(same, float("-inf"), t)
    return t


@triton.jit
def margin_bound(positive, margin):
    """Similarity above which a column is left out; margin_of forgives roundings of unit rows."""
    return positive + margin + tl.abs(positive) * ROUNDING


@triton.jit
def within_margin(
    t,  # a tile of logits
    positive,  # (count,) pointer: similarities of rows (or columns) with their positives
    margin,
    numbers,
    hardness,
    offset,
    first,
    count,
    AXIS: tl.constexpr,  # the second dimension of a vector of them in the tile
    SIZE: tl.constexpr,
):
    """t, with -inf where a similarity exceeds that of the row's (column's) positive by a margin.

    Logits are compared, which grow with the similarities: those need no registers any more.
    """
    i = first + tl.arange(0, SIZE)
    bound = margin_bound(tl.load(positive + i, mask=i < count, other=0.0), margin)
    bound = scaled(bound, slope_of(numbers, hardness), offset)
    return tl.where(t > tl.expand_dims(bound, AXIS), float("-inf"), t)


@triton.jit
def sums_of(
    t,  # [BM, BN] logits, -inf where left out
    out,  # (planes, tiles, count) pointer: sum, then where wanted largest, sum of logits, number
    tile,
    tiles,
    first,
    count,
    AXIS: tl.constexpr,
    SIZE: tl.constexpr,
    ONLINE: tl.constexpr,
    SMOOTHING: tl.constexpr,
):
    """Store what a tile adds to its rows' softmaxes (AXIS 1), or its columns' (AXIS 0)."""
    i = first + tl.arange(0, SIZE)
    plane = tiles.to(tl.int64) * count
    at = out + tile.to(tl.int64) * count + i
    if ONLINE:
        largest = tl.maximum(tl.max(t, AXIS), LOWEST)
        tl.store(at + plane, largest, mask=i < count)
        e = tl.exp2(t - tl.expand_dims(largest, AXIS))
    else:
        e = tl.exp2(t)
    tl.store(at, tl.sum(e, AXIS), mask=i < count)
    if SMOOTHING:
        remains = t > float("-inf")
        tl.store(at + 2 * plane, tl.sum(tl.where(remains, t, 0.0), AXIS), mask=i < count)
        tl.store(at + 3 * plane, tl.sum(remains.to(tl.float32), AXIS), mask=i < count)
    return e


@triton.jit
def gradient_of(
    t,  # [BM, BN]
    state,  # (4, plane) pointer: offset, factor, smoothing, gradient at the positive
    plane,
    first,
    count,
    AXIS: tl.constexpr,
    SIZE: tl.constexpr,
    ONLINE: tl.constexpr,
    SMOOTHING: tl.constexpr,
):
    """Gradient of one direction's logits: factor * exp2(t - offset), less the smoothing."""
    i = first + tl.arange(0, SIZE)
    here = i < count
    if ONLINE:
        t -= tl.expand_dims(tl.load(state + i, mask=here, other=0.0), AXIS)
    factor = tl.load(state + plane + i, mask=here, other=0.0)
    g = tl.exp2(t) * tl.expand_dims(factor, AXIS)
    if SMOOTHING:
        smoothing = tl.load(state + 2 * plane + i, mask=here, other=0.0)
        g -= tl.where(t > float("-inf"), tl.expand_dims(smoothing, AXIS), 0.0)
    return g
