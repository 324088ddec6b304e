"""The loss without panels: two kernels shaped like attention, whose gradients stay in registers.

One walks over the keys and leaves losses and the queries' gradient; the other walks over the
queries, whose softmaxes are known by then, and leaves the keys' gradient. Each forms the
similarities for itself, four products instead of three, but nothing of size M x N is written: for
narrow rows, where a panel's traffic costs more than its products, and for small batches, where
launches do. triton_narrow.py launches them.
"""

import triton
import triton.language as tl

from simcse_fast.kernels.infonce.triton_epilogue import holds, margin_bound, negatives
from simcse_fast.kernels.infonce.triton_math import (
    LOG2E,
    LOWEST,
    POSITIVE,
    SHORTEST,
    cross_entropy,
    scaled,
    slope_of,
)

SIZES = ("rows", "columns")


@triton.jit
def rows_at(x, i, depth, BD: tl.constexpr):
    """Rows i of (., depth) as [B, BD], zeros beyond the depth."""
    d = tl.arange(0, BD)
    return tl.load(x + i.to(tl.int64)[:, None] * depth + d[None, :], mask=d < depth, other=0.0)


@triton.jit
def similarities(
    left,  # (., depth) unit rows
    i,  # [A] rows of them
    right,  # (., depth) unit rows
    j,  # [B]
    kept_left,  # [A, BD] rows i, and
    kept_right,  # [B, BD] rows j, where BK is BD
    depth,
    BK: tl.constexpr,
    BD: tl.constexpr,
):
    """<left_i, right_j>, [A, B] fp32; wide rows in steps of BK, as registers cannot hold them."""
    if BK == BD:
        return tl.dot(kept_left, kept_right.T)
    k = tl.arange(0, BK)
    a_at = left + i.to(tl.int64)[:, None] * depth + k[None, :]
    b_at = right + j.to(tl.int64)[:, None] * depth + k[None, :]
    total = tl.zeros([i.shape[0], j.shape[0]], dtype=tl.float32)
    for step in range(0, depth, BK):
        inside = (step + k < depth)[None, :]
        a = tl.load(a_at + step, mask=inside, other=0.0)
        b = tl.load(b_at + step, mask=inside, other=0.0)
        total = tl.dot(a, b.T, total)
    return total


@triton.jit
def back(
    g,  # [B, BD] fp32: gradient of unit rows
    x,  # (rows, width)
    row_stride,
    column_stride,
    inverse,  # (rows,)
    numbers,
    more,  # (rows, width) fp32, added where MORE
    out,  # (rows, width) out
    along,  # (rows,) fp64 out, where SCALE
    i,  # [B]
    rows,
    width,
    NORMALIZE: tl.constexpr,
    MORE: tl.constexpr,
    SCALE: tl.constexpr,
    BD: tl.constexpr,
):
    """Back through the normalisation: s (g - u <u, g>) / |x|; as in infonce_finish_kernel."""
    here = i < rows
    i = i.to(tl.int64)
    d = tl.arange(0, BD)
    inside = here[:, None] & (d[None, :] < width)
    at = x + i[:, None] * row_stride + d[None, :].to(tl.int64) * column_stride
    one = tl.full(i.shape, 1.0, dtype=tl.float32)
    if NORMALIZE:
        one = tl.load(inverse + i, mask=here, other=0.0)
    if NORMALIZE or SCALE:
        u = tl.load(at, mask=inside, other=0.0).to(tl.float32) * one[:, None]
        projection = tl.sum(u * g, 1)
        if SCALE:
            tl.store(along + i, projection.to(tl.float64), mask=here)
        if NORMALIZE:
            g -= u * tl.where(one < 1 / SHORTEST, projection, 0.0)[:, None]
    g *= (tl.load(numbers).to(tl.float32) * one)[:, None]
    if MORE:
        g += tl.load(more + i[:, None] * width + d[None, :], mask=inside, other=0.0)
    tl.store(out + i[:, None] * width + d[None, :], g.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def infonce_queries_kernel(
    query,  # (., depth) unit rows
    key,  # (., depth) unit rows
    x,  # (rows, width) the queries as they came
    row_stride,
    column_stride,
    inverse,  # (rows,) where NORMALIZE
    numbers,  # (2,) fp64: scale, offset
    labels,  # (rows,)
    query_ids,  # (rows,) where IDS
    key_ids,  # (columns,)
    weight,  # (rows,) where WEIGHTED
    losses,  # (rows,) out
    state,  # (4, rows) out: offset, weight / sum, positive's similarity, gradient at the positive
    more,  # (rows, width) fp32 where MORE: what else flows back to the queries
    out,  # (rows, width) out where GRADIENT
    along,  # (rows,) fp64 out where SCALE
    rows,
    columns,
    width,
    depth,
    hardness,
    margin,
    uniform,
    IDS: tl.constexpr,
    MARGIN: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ONLINE: tl.constexpr,
    GRADIENT: tl.constexpr,
    NORMALIZE: tl.constexpr,
    MORE: tl.constexpr,
    SCALE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
):
    """Losses, softmaxes and gradient of BM queries."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    here = i < rows
    mine = tl.minimum(i, rows - 1)
    q = rows_at(query, mine, depth, BD)
    label = tl.load(labels + i, mask=here, other=0).to(tl.int32)
    positive = rows_at(key, label, depth, BD)
    own = similarities(query, mine, key, label, q, positive, depth, BK, BD)  # [BM, BM]
    diagonal = tl.arange(0, BM)[:, None] == tl.arange(0, BM)[None, :]
    x_own = tl.sum(tl.where(diagonal, own, 0.0), 1)
    query_id = label
    if IDS:
        query_id = tl.load(query_ids + i, mask=here, other=0)
    offset = tl.load(numbers + 1).to(tl.float32)
    if ONLINE:
        offset = 0.0
    bound = scaled(margin_bound(x_own, margin), slope_of(numbers, hardness), offset)
    largest = tl.full([BM], LOWEST, dtype=tl.float32)
    total = tl.zeros([BM], dtype=tl.float32)
    g = tl.zeros([BM, BD], dtype=tl.float32)
    for column in range(0, columns, BN):
        j = tl.minimum(column + tl.arange(0, BN), columns - 1)
        k = rows_at(key, j, depth, BD)
        s = similarities(query, mine, key, j, q, k, depth, BK, BD)  # [BM, BN]
        t = negatives(
            s, numbers, hardness, 0.0, offset, column, columns, label, query_id, key_ids,
            POSITIVE, IDS, BN, False,
        )  # fmt: skip
        if MARGIN:
            t = tl.where(t > bound[:, None], float("-inf"), t)
        if ONLINE:
            higher = tl.maximum(largest, tl.max(t, 1))
            shrink = tl.exp2(largest - higher)
            largest = higher
            total *= shrink
            g *= shrink[:, None]
            t -= largest[:, None]
        e = tl.exp2(t)
        total += tl.sum(e, 1)
        if GRADIENT:
            g = tl.dot(e.to(k.dtype), k, g)
    x_log = x_own.to(tl.float64) * (tl.load(numbers) * LOG2E)
    shift = offset + tl.zeros([BM], dtype=tl.float64)
    negative = total.to(tl.float64)
    rest = tl.full([BM], 1.0, dtype=tl.float64)
    if ONLINE:
        # As negatives are formed, and as the offset is kept: an equal key has an equal logit.
        x_log = scaled(x_own, slope_of(numbers, 0.0), 0.0).to(tl.float64)
        shift = tl.maximum(largest, x_log).to(tl.float32).to(tl.float64)
        rest = tl.exp2(largest - shift)
        negative *= rest
    loss, inverse_sum, miss = cross_entropy(negative, x_log - shift)
    w = tl.full([BM], 1.0, dtype=tl.float64)
    if WEIGHTED:
        w = tl.load(weight + i, mask=here, other=0.0).to(tl.float64)
    tl.store(losses + i, loss.to(tl.float32), mask=here)
    if GRADIENT:
        tl.store(state + i, shift.to(tl.float32), mask=here)
        tl.store(state + rows + i, (w * inverse_sum).to(tl.float32), mask=here)
        tl.store(state + 2 * rows + i, x_own, mask=here)
        tl.store(state + 3 * rows + i, (-w * miss).to(tl.float32), mask=here)
        # (1 - p) (sum_j E_j k_j / sum_j E_j - k_positive). The positive as a product, whose
        # operands need fewer registers than rows gathered by label; -1 is exact in every type.
        g *= tl.where(negative > 0, rest / negative, 0.0).to(tl.float32)[:, None]
        minus = tl.where(diagonal, -1.0, 0.0).to(q.dtype)
        g = tl.dot(minus, rows_at(key, label, depth, BD), g)
        g *= (w * miss * uniform).to(tl.float32)[:, None]
        back(
            g, x, row_stride, column_stride, inverse, numbers, more, out, along, i, rows, width,
            NORMALIZE, MORE, SCALE, BD,
        )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def infonce_keys_kernel(
    query,  # (., depth) unit rows
    key,  # (., depth) unit rows
    x,  # (columns, width) the keys as they came
    row_stride,
    column_stride,
    inverse,  # (columns,) where NORMALIZE
    numbers,  # (2,) fp64: scale, offset
    labels,  # (rows,)
    query_ids,  # (rows,) where IDS
    key_ids,  # (columns,)
    state,  # (4, rows) of the queries' kernel
    gain,  # () where GAIN: multiplies gradients of logits
    more,  # (columns, width) fp32 where MORE: what else flows back to the keys
    out,  # (columns, width) out
    rows,
    columns,
    width,
    depth,
    hardness,
    margin,
    uniform,
    IDS: tl.constexpr,
    MARGIN: tl.constexpr,
    GAIN: tl.constexpr,
    ONLINE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    MORE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
):
    """Gradient of BN keys."""
    column = tl.program_id(0) * BN
    j = column + tl.arange(0, BN)
    mine = tl.minimum(j, columns - 1)
    k = rows_at(key, mine, depth, BD)
    offset = tl.load(numbers + 1).to(tl.float32)
    if ONLINE:
        offset = 0.0
    g = tl.zeros([BN, BD], dtype=tl.float32)
    for row in range(0, rows, BM):
        i = row + tl.arange(0, BM)
        here = i < rows
        theirs = tl.minimum(i, rows - 1)
        q = rows_at(query, theirs, depth, BD)
        label = tl.load(labels + i, mask=here, other=-1).to(tl.int32)
        query_id = label
        if IDS:
            query_id = tl.load(query_ids + i, mask=here, other=0)
        s = similarities(key, mine, query, theirs, k, q, depth, BK, BD)  # [BN, BM]
        t = negatives(
            s, numbers, hardness, 0.0, offset, column, columns, label, query_id, key_ids,
            POSITIVE, IDS, BN, True,
        )  # fmt: skip
        if MARGIN:
            bound = margin_bound(tl.load(state + 2 * rows + i, mask=here, other=0.0), margin)
            bound = scaled(bound, slope_of(numbers, hardness), offset)
            t = tl.where(t > bound[None, :], float("-inf"), t)
        if ONLINE:
            t -= tl.load(state + i, mask=here, other=float("inf"))[None, :]
        p = tl.exp2(t) * tl.load(state + rows + i, mask=here, other=0.0)[None, :]
        if holds(label, column, BN):
            own = tl.load(state + 3 * rows + i, mask=here, other=0.0)
            p = tl.where(j[:, None] == label[None, :], own[None, :], p)
        if GAIN:
            p *= tl.load(gain)
        g = tl.dot(p.to(q.dtype), q, g)
    factor = tl.full((), uniform, tl.float32)
    if GAIN:
        factor /= tl.load(gain)
    g *= factor
    back(
        g, x, row_stride, column_stride, inverse, numbers, more, out, numbers, j, columns, width,
        NORMALIZE, MORE, False, BD,
    )  # fmt: skip
