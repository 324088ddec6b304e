"""Arithmetic that the Triton kernels of the loss share.

Logits are kept in units of log2, less an offset: t = s log2(e) <q, k> - offset, so that an
exponential is one instruction.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-1e38)  # stands for the largest of no logits: exp2(-inf - LOWEST) is 0
# Sums below are too small to be told from flushed ones: the offset lay too far above the row.
FAINT = tl.constexpr(2.0**-100)
SHORTEST = tl.constexpr(1e-12)  # rows below are divided by it instead of their length, as in torch
POSITIVE, KEPT, LEFT_OUT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # as terms.Own


@triton.jit
def slope_of(numbers, hardness):
    """What a similarity is multiplied by, in fp64: (s + hardness) log2(e)."""
    return (tl.load(numbers) + hardness) * LOG2E


@triton.jit
def scaled(
    similarity,  # [BM, BN] fp32
    slope,  # fp64
    offset,  # fp32 scalar
    WIDE: tl.constexpr,
):
    """similarity * slope - offset; WIDE in two floats, as a rounded slope is another temperature.

    The inner product cancels against the offset before it is rounded.
    """
    high = slope.to(tl.float32)
    t = tl.fma(similarity, high, -offset)
    if WIDE:
        low = (slope - high.to(tl.float64)).to(tl.float32)
        t = tl.fma(similarity, low, t)
    return t


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
    WIDE: tl.constexpr,
    BN: tl.constexpr,
    TURNED: tl.constexpr,
):
    """Logits above the offset in units of log2, -inf where both directions leave a column out."""
    ROW: tl.constexpr = 0 if TURNED else 1  # where a vector of rows gets its second dimension
    columns_of_tile = column + tl.arange(0, BN)
    j = tl.expand_dims(columns_of_tile, 1 - ROW)
    t = scaled(similarity, slope_of(numbers, hardness), offset, WIDE)
    if tl.max(((label >= column) & (label < column + BN)).to(tl.int32), 0) > 0:
        own = j == tl.expand_dims(label, ROW)
        if OWN == KEPT:
            t = tl.where(own, scaled(similarity, slope_of(numbers, own_hardness), offset, WIDE), t)
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
    WIDE: tl.constexpr,
):
    """t, with -inf where a similarity exceeds that of the row's (column's) positive by a margin.

    Logits are compared, which grow with the similarities: those need no registers any more.
    """
    i = first + tl.arange(0, SIZE)
    bound = tl.load(positive + i, mask=i < count, other=0.0) + margin
    bound = scaled(bound, slope_of(numbers, hardness), offset, WIDE)
    return tl.where(t > tl.expand_dims(bound, AXIS), float("-inf"), t)


@triton.jit
def log1p(x):
    """log(1 + x) in fp64 for x >= 0, with the digits of x that 1 + x drops."""
    above = 1 + x
    return tl.where(above == 1, x, tl.log(above) * (x / (above - 1)))


@triton.jit
def cross_entropy(
    negative,  # sum of the negatives' exponentials above the offset, fp64
    behind,  # the positive's logit less the offset, in log2, fp64
):
    """-log p(positive), 1 / Z and 1 - p(positive), without cancellation."""
    positive = tl.exp2(behind)
    total = positive + negative
    # Two forms: the first keeps the digits of a converged loss, the second cannot overflow.
    near = log1p(negative / positive)
    loss = tl.where(negative <= positive, near, tl.log(total) - LN2 * behind)
    return loss, 1 / total, negative / total
