"""Triton kernels over a stored panel of fp32 similarities: softmaxes, and gradients in its place.

One direction takes one kernel. Both take three: what each tile adds to its rows' and its columns'
softmaxes, those added up in order, and the gradients.
"""

import triton
import triton.language as tl

from simcse_fast.kernels.infonce.triton_epilogue import margin_bound
from simcse_fast.kernels.infonce.triton_math import (
    LN2,
    LOG2E,
    LOWEST,
    cross_entropy,
    scale_of,
    scaled,
)

CHUNK = tl.constexpr(16)  # tiles whose sums are loaded together


@triton.jit
def exponentials(c, slope, offset):
    """exp2 of the logits above an offset; 0 where a column is left out, for which LOWEST stands.

    The slope is taken as two floats: rounded to one it would be another temperature.
    """
    rest = (slope - slope.to(tl.float32).to(tl.float64)).to(tl.float32)
    t = tl.fma(c, rest, scaled(c, slope, offset))
    return tl.where(c == LOWEST, 0.0, tl.exp2(t))


@triton.jit
def reach_of(c, slope, AXIS: tl.constexpr):
    """The largest logit, as it is kept, so that gradients add up to 0."""
    largest = tl.max(c, AXIS).to(tl.float64) * slope
    return tl.maximum(largest, LOWEST).to(tl.float32)  # of no logits


@triton.jit
def with_hard(offset, hard, at, here, negatives, slope, log_weight):
    """The larger of an offset and the logits with own hard negatives."""
    for k in range(negatives):
        c = tl.load(hard + at + k, mask=here, other=0.0).to(tl.float64)
        offset = tl.maximum(offset, (c * slope + log_weight).to(tl.float32))
    return offset


@triton.jit
def closed(
    negative,  # [BR] fp64: sum of exponentials above `offset`, hard negatives aside
    offset,  # [BR] fp32
    x,  # [BR] fp64: the positive's logit
    logit_sum,  # [BR] fp64: of the negatives, where SMOOTHING
    count,  # [BR] fp64: their number, where SMOOTHING
    w,  # [BR] fp32: weights of the rows' losses
    hard,  # pointer, in: similarities, out where GRADIENT: gradients of the logits; where HARD
    at,  # [BR] of the first
    here,
    negatives,
    slope,
    log_weight,
    label_smoothing,
    HARD: tl.constexpr,
    SMOOTHING: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """Losses; the gradients' factor, what smoothing takes, and the positive's own, in fp32."""
    offset = offset.to(tl.float64)
    if HARD:
        for k in range(negatives):
            t = tl.load(hard + at + k, mask=here, other=0.0).to(tl.float64) * slope + log_weight
            negative += tl.exp2(t - offset)
            logit_sum += t
            count += 1
    loss, inverse, miss = cross_entropy(negative, x - offset)
    smoothing = tl.zeros_like(loss)
    if SMOOTHING:
        smoothing = label_smoothing / (count + 1)
        loss += LN2 * (label_smoothing * x - smoothing * (logit_sum + x))
    if HARD and GRADIENT:
        for k in range(negatives):
            t = tl.load(hard + at + k, mask=here, other=0.0).to(tl.float64) * slope + log_weight
            g = w * (tl.exp2(t - offset) * inverse - smoothing)
            tl.store(hard + at + k, g.to(tl.float32), mask=here)
    factor, taken = (w * inverse).to(tl.float32), (w * smoothing).to(tl.float32)
    own = (w * (label_smoothing - smoothing - miss)).to(tl.float32)
    return loss.to(tl.float32), factor, taken, own


@triton.jit
def block_of(
    panel,  # [BR, BN] pointers
    up,  # [BR] rows that there are
    across,  # [BN] columns that there are
    own,  # [BR, BN]: the rows' positives
    query_ids,  # [BR] pointers, where IDS
    key_ids,  # [BN] pointers, where IDS
    IDS: tl.constexpr,
):
    """Similarities, LOWEST at the positive, where ids are equal, and beyond the panel."""
    c = tl.load(panel, mask=up[:, None] & across[None, :], other=LOWEST)
    c = tl.where(own, LOWEST, c)
    if IDS:
        ones = tl.load(query_ids, mask=up, other=0)
        others = tl.load(key_ids, mask=across, other=0)
        c = tl.where(ones[:, None] == others[None, :], LOWEST, c)
    return c


@triton.jit(do_not_specialize=["begin", "rows", "negatives"])
def infonce_rows_kernel(
    panel,  # (rows, columns) in: similarities, out where GRADIENT: gradients of the logits
    labels,  # (total,)
    hard,  # (rows, negatives) the same with own hard negatives, where HARD
    weight,  # (total,) where WEIGHTED
    query_ids,  # (total,) where IDS
    key_ids,  # (columns,) where IDS
    scale,  # () where LEARNED
    scale_high,  # elsewhere the scale, as the sum of two floats
    scale_low,
    losses,  # (rows,) out
    begin,  # first row
    rows,
    columns,
    negatives,
    hardness,
    log_weight,  # log2 of the own hard negatives' weight
    margin,
    label_smoothing,
    uniform,  # the weight, where it is one
    LEARNED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    HARD: tl.constexpr,
    IDS: tl.constexpr,
    MARGIN: tl.constexpr,
    SMOOTHING: tl.constexpr,
    GRADIENT: tl.constexpr,
    BR: tl.constexpr,
    BN: tl.constexpr,
):
    """One direction. A row is read twice, the second time mostly from a cache."""
    i = tl.program_id(0) * BR + tl.arange(0, BR)
    here = i < rows
    label = tl.load(labels + begin + i, mask=here, other=-1)
    first = i.to(tl.int64) * columns
    mine = tl.load(panel + first + label, mask=here, other=0.0)
    s = scale_of(scale, scale_high, scale_low, LEARNED)
    slope = (s + hardness) * LOG2E
    x = mine.to(tl.float64) * (s * LOG2E)
    offset = x.to(tl.float32)
    at = i.to(tl.int64) * negatives
    if HARD:
        offset = with_hard(offset, hard, at, here, negatives, slope, log_weight)
    total = tl.zeros([BR], dtype=tl.float64)
    logit_sum = tl.zeros([BR], dtype=tl.float64)
    count = tl.zeros([BR], dtype=tl.float64)
    for column in range(0, columns, BN):
        j = column + tl.arange(0, BN)
        own = label[:, None] == j[None, :]
        c = block_of(
            *(panel + first[:, None] + j[None, :], here, j < columns, own),
            *(query_ids + begin + i, key_ids + j, IDS),
        )
        if MARGIN:
            c = tl.where(c > margin_bound(mine, margin)[:, None], LOWEST, c)
        higher = tl.maximum(offset, reach_of(c, slope, 1))
        total *= tl.exp2(offset - higher).to(tl.float64)
        total += tl.sum(exponentials(c, slope, higher[:, None]), 1).to(tl.float64)
        offset = higher
        if SMOOTHING:
            remains = c != LOWEST
            logit_sum += tl.sum(tl.where(remains, c, 0.0), 1).to(tl.float64) * slope
            count += tl.sum(remains.to(tl.float32), 1).to(tl.float64)
    w = tl.full([BR], uniform, dtype=tl.float32)
    if WEIGHTED:
        w = tl.load(weight + begin + i, mask=here, other=0.0)
    loss, factor, taken, of_own = closed(
        *(total, offset, x, logit_sum, count, w, hard, at, here, negatives, slope, log_weight),
        *(label_smoothing, HARD, SMOOTHING, GRADIENT),
    )
    tl.store(losses + i, loss, mask=here)
    if GRADIENT:
        for column in range(0, columns, BN):
            j = column + tl.arange(0, BN)
            inside = here[:, None] & (j[None, :] < columns)
            own = label[:, None] == j[None, :]
            c = block_of(
                *(panel + first[:, None] + j[None, :], here, j < columns, own),
                *(query_ids + begin + i, key_ids + j, IDS),
            )
            if MARGIN:
                c = tl.where(c > margin_bound(mine, margin)[:, None], LOWEST, c)
            g = exponentials(c, slope, offset[:, None]) * factor[:, None]
            if SMOOTHING:
                g -= tl.where(c == LOWEST, 0.0, taken[:, None])
            g = tl.where(own, of_own[:, None], g)
            tl.store(panel + first[:, None] + j[None, :], g, mask=inside)


@triton.jit
def add_up(
    c,  # [BM, BN] similarities, LOWEST where left out
    slope,
    out,  # [BM] or [BN] pointers: largest logit, sum above it, where SMOOTHING sum and number
    plane,
    here,
    AXIS: tl.constexpr,
    SMOOTHING: tl.constexpr,
):
    """Store what a tile adds to the softmaxes of its rows (AXIS 1) or columns (AXIS 0)."""
    largest = reach_of(c, slope, AXIS)
    e = exponentials(c, slope, tl.expand_dims(largest, AXIS))
    tl.store(out, largest, mask=here)
    tl.store(out + plane, tl.sum(e, AXIS), mask=here)
    if SMOOTHING:
        remains = c != LOWEST
        logits = tl.sum(tl.where(remains, c, 0.0), AXIS) * slope
        tl.store(out + 2 * plane, logits.to(tl.float32), mask=here)
        tl.store(out + 3 * plane, tl.sum(remains.to(tl.float32), AXIS), mask=here)


@triton.jit(do_not_specialize=["begin", "rows"])
def infonce_both_kernel(
    panel,  # (rows, total) similarities; out where GRADIENT: gradients of the logits
    positive,  # (total,) where MARGIN
    query_ids,  # (total,) where IDS
    key_ids,  # (total,) where IDS
    scale,
    scale_high,
    scale_low,
    by_row,  # (planes, tiles of columns, rows) out; where GRADIENT state (4, total), in
    by_column,  # (planes, tiles of rows, total) out; where GRADIENT state (4, total), in
    begin,
    rows,
    total,
    hardness,
    margin,
    LEARNED: tl.constexpr,
    IDS: tl.constexpr,
    MARGIN: tl.constexpr,
    SMOOTHING: tl.constexpr,
    GRADIENT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """A tile of both directions: what it adds to their softmaxes, or the gradients in its place."""
    i = tl.program_id(1) * BM + tl.arange(0, BM)
    j = tl.program_id(0) * BN + tl.arange(0, BN)
    up, across = i < rows, j < total
    own = (begin + i)[:, None] == j[None, :]
    at = panel + i.to(tl.int64)[:, None] * total + j[None, :]
    slope = (scale_of(scale, scale_high, scale_low, LEARNED) + hardness) * LOG2E
    c = block_of(at, up, across, own, query_ids + begin + i, key_ids + j, IDS)
    of_row, of_column = c, c
    if MARGIN:
        bound = margin_bound(tl.load(positive + begin + i, mask=up, other=0.0), margin)
        of_row = tl.where(c > bound[:, None], LOWEST, c)
        bound = margin_bound(tl.load(positive + j, mask=across, other=0.0), margin)
        of_column = tl.where(c > bound[None, :], LOWEST, c)
    if GRADIENT:
        mine, theirs = by_row + begin + i, by_column + j
        a = tl.load(mine, mask=up, other=0.0)[:, None]
        b = tl.load(theirs, mask=across, other=0.0)[None, :]
        g = exponentials(of_row, slope, a) * tl.load(mine + total, mask=up, other=0.0)[:, None]
        more = exponentials(of_column, slope, b)
        g += more * tl.load(theirs + total, mask=across, other=0.0)[None, :]
        if SMOOTHING:
            a = tl.load(mine + 2 * total, mask=up, other=0.0)[:, None]
            b = tl.load(theirs + 2 * total, mask=across, other=0.0)[None, :]
            g -= tl.where(of_row == LOWEST, 0.0, a) + tl.where(of_column == LOWEST, 0.0, b)
        a = tl.load(mine + 3 * total, mask=up, other=0.0)[:, None]
        b = tl.load(theirs + 3 * total, mask=across, other=0.0)[None, :]
        tl.store(at, tl.where(own, a + b, g), mask=up[:, None] & across[None, :])
    else:
        plane = tl.num_programs(0).to(tl.int64) * rows
        add_up(
            *(of_row, slope, by_row + tl.program_id(0).to(tl.int64) * rows + i, plane, up),
            *(1, SMOOTHING),
        )
        plane = tl.num_programs(1).to(tl.int64) * total
        add_up(
            *(of_column, slope, by_column + tl.program_id(1).to(tl.int64) * total + j, plane),
            *(across, 0, SMOOTHING),
        )


@triton.jit(do_not_specialize=["begin", "rows", "tiles", "negatives"])
def infonce_fold_kernel(
    parts,  # (planes, tiles, rows) fp32, as `add_up` stores them
    running,  # (4, total) fp64 in unless FIRST, out unless LAST: the same of panels so far
    positive,  # (total,) similarities
    hard,  # (rows, negatives) as in the kernel of rows
    weight,  # (total,) where WEIGHTED
    scale,
    scale_high,
    scale_low,
    losses,  # (total,) out where LAST
    state,  # (4, total) out where LAST: offset, factor, what smoothing takes, the positive's own
    begin,
    rows,
    total,
    tiles,
    negatives,
    hardness,
    log_weight,
    label_smoothing,
    uniform,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    LEARNED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    HARD: tl.constexpr,
    SMOOTHING: tl.constexpr,
    GRADIENT: tl.constexpr,
    BR: tl.constexpr,
):
    """Add up what tiles add to rows (or columns), in order and in fp64; then their softmaxes."""
    i = tl.program_id(0) * BR + tl.arange(0, BR)
    here = i < rows
    row = begin + i
    s = scale_of(scale, scale_high, scale_low, LEARNED)
    slope = (s + hardness) * LOG2E
    x = tl.load(positive + row, mask=here, other=0.0).to(tl.float64) * (s * LOG2E)
    at = i.to(tl.int64) * negatives
    offset = x.to(tl.float32)
    total_sum = tl.zeros([BR], dtype=tl.float64)
    logit_sum = tl.zeros([BR], dtype=tl.float64)
    count = tl.zeros([BR], dtype=tl.float64)
    if HARD:
        offset = with_hard(offset, hard, at, here, negatives, slope, log_weight)
    if not FIRST:
        offset = tl.load(running + row, mask=here, other=0.0).to(tl.float32)
        total_sum = tl.load(running + total + row, mask=here, other=0.0)
        if SMOOTHING:
            logit_sum = tl.load(running + 2 * total + row, mask=here, other=0.0)
            count = tl.load(running + 3 * total + row, mask=here, other=0.0)
    plane = tiles.to(tl.int64) * rows
    for tile in range(0, tiles, CHUNK):
        k = tile + tl.arange(0, CHUNK)
        there = (k[:, None] < tiles) & here[None, :]
        of_tile = parts + k.to(tl.int64)[:, None] * rows + i[None, :]
        largest = tl.load(of_tile, mask=there, other=LOWEST)
        sums = tl.load(of_tile + plane, mask=there, other=0.0).to(tl.float64)
        higher = tl.maximum(offset, tl.max(largest, 0))
        total_sum *= tl.exp2(offset.to(tl.float64) - higher)
        total_sum += tl.sum(sums * tl.exp2(largest.to(tl.float64) - higher[None, :]), 0)
        offset = higher
        if SMOOTHING:
            more = tl.load(of_tile + 2 * plane, mask=there, other=0.0)
            logit_sum += tl.sum(more.to(tl.float64), 0)
            more = tl.load(of_tile + 3 * plane, mask=there, other=0.0)
            count += tl.sum(more.to(tl.float64), 0)
    if LAST:
        w = tl.full([BR], uniform, dtype=tl.float32)
        if WEIGHTED:
            w = tl.load(weight + row, mask=here, other=0.0)
        loss, factor, taken, of_own = closed(
            *(total_sum, offset, x, logit_sum, count, w, hard, at, here, negatives, slope),
            *(log_weight, label_smoothing, HARD, SMOOTHING, GRADIENT),
        )
        tl.store(losses + row, loss, mask=here)
        tl.store(state + row, offset, mask=here)
        tl.store(state + total + row, factor, mask=here)
        tl.store(state + 2 * total + row, taken, mask=here)
        tl.store(state + 3 * total + row, of_own, mask=here)
    else:
        tl.store(running + row, offset.to(tl.float64), mask=here)
        tl.store(running + total + row, total_sum, mask=here)
        if SMOOTHING:
            tl.store(running + 2 * total + row, logit_sum, mask=here)
            tl.store(running + 3 * total + row, count, mask=here)
