"""The loss without panels: two kernels shaped like attention, whose gradients stay in registers.

One walks over the keys and leaves losses and the queries' gradient; the other walks over the
queries, whose softmaxes are known by then, and leaves the keys' gradient. Each forms the
similarities for itself, four products instead of three, but nothing of size M x N is written: for
narrow rows, where a panel's traffic costs more than its products, and for small batches, where
launches do. A symmetric loss is both kernels twice, with the sides exchanged.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from simcse_fast.kernels.infonce import tiles as table
from simcse_fast.kernels.infonce.panels import Result
from simcse_fast.kernels.infonce.similarities import Problem, margin_of
from simcse_fast.kernels.infonce.terms import Own
from simcse_fast.kernels.infonce.tiles import Tile
from simcse_fast.kernels.infonce.triton_epilogue import holds, margin_bound, negatives
from simcse_fast.kernels.infonce.triton_math import (
    FUSED,
    LOG2E,
    LOWEST,
    POSITIVE,
    SHORTEST,
    cross_entropy,
    scaled,
    slope_of,
)
from simcse_fast.kernels.infonce.triton_rows import Rows, kept, precision
from simcse_fast.kernels.infonce.triton_softmax import gain_of

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
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
):
    """<left_i, right_j>, [A, B] fp32; wide rows in steps of BK, as registers cannot hold them."""
    if BK == BD:
        return tl.dot(kept_left, kept_right.T, input_precision=PRECISION)
    k = tl.arange(0, BK)
    a_at = left + i.to(tl.int64)[:, None] * depth + k[None, :]
    b_at = right + j.to(tl.int64)[:, None] * depth + k[None, :]
    total = tl.zeros([i.shape[0], j.shape[0]], dtype=tl.float32)
    for step in range(0, depth, BK):
        inside = (step + k < depth)[None, :]
        a = tl.load(a_at + step, mask=inside, other=0.0)
        b = tl.load(b_at + step, mask=inside, other=0.0)
        total = tl.dot(a, b.T, total, input_precision=PRECISION)
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
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
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
    own = similarities(query, mine, key, label, q, positive, depth, PRECISION, BK, BD)  # [BM, BM]
    diagonal = tl.arange(0, BM)[:, None] == tl.arange(0, BM)[None, :]
    x_own = tl.sum(tl.where(diagonal, own, 0.0), 1)
    query_id = label
    if IDS:
        query_id = tl.load(query_ids + i, mask=here, other=0)
    offset = tl.load(numbers + 1).to(tl.float32)
    if ONLINE:
        offset = 0.0
    bound = scaled(margin_bound(x_own, margin), slope_of(numbers, hardness), offset, WIDE)
    largest = tl.full([BM], LOWEST, dtype=tl.float32)
    total = tl.zeros([BM], dtype=tl.float32)
    g = tl.zeros([BM, BD], dtype=tl.float32)
    for column in range(0, columns, BN):
        j = tl.minimum(column + tl.arange(0, BN), columns - 1)
        k = rows_at(key, j, depth, BD)
        s = similarities(query, mine, key, j, q, k, depth, PRECISION, BK, BD)  # [BM, BN]
        t = negatives(
            s, numbers, hardness, 0.0, offset, column, columns, label, query_id, key_ids,
            POSITIVE, IDS, WIDE, BN, False,
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
            g = tl.dot(e.to(k.dtype), k, g, input_precision=PRECISION)
    x_log = x_own.to(tl.float64) * (tl.load(numbers) * LOG2E)
    shift = offset + tl.zeros([BM], dtype=tl.float64)
    negative = total.to(tl.float64)
    rest = tl.full([BM], 1.0, dtype=tl.float64)
    if ONLINE:
        # As negatives are formed, and as the offset is kept: an equal key has an equal logit.
        x_log = scaled(x_own, slope_of(numbers, 0.0), 0.0, WIDE).to(tl.float64)
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
        g = tl.dot(minus, rows_at(key, label, depth, BD), g, input_precision=PRECISION)
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
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
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
        s = similarities(key, mine, query, theirs, k, q, depth, PRECISION, BK, BD)  # [BN, BM]
        t = negatives(
            s, numbers, hardness, 0.0, offset, column, columns, label, query_id, key_ids,
            POSITIVE, IDS, WIDE, BN, True,
        )  # fmt: skip
        if MARGIN:
            bound = margin_bound(tl.load(state + 2 * rows + i, mask=here, other=0.0), margin)
            bound = scaled(bound, slope_of(numbers, hardness), offset, WIDE)
            t = tl.where(t > bound[None, :], float("-inf"), t)
        if ONLINE:
            t -= tl.load(state + i, mask=here, other=float("inf"))[None, :]
        p = tl.exp2(t) * tl.load(state + rows + i, mask=here, other=0.0)[None, :]
        if holds(label, column, BN):
            own = tl.load(state + 3 * rows + i, mask=here, other=0.0)
            p = tl.where(j[:, None] == label[None, :], own[None, :], p)
        if GAIN:
            p *= tl.load(gain)
        g = tl.dot(p.to(q.dtype), q, g, input_precision=PRECISION)
    factor = tl.full((), uniform, tl.float32)
    if GAIN:
        factor /= tl.load(gain)
    g *= factor
    back(
        g, x, row_stride, column_stride, inverse, numbers, more, out, numbers, j, columns, width,
        NORMALIZE, MORE, False, BD,
    )  # fmt: skip


def narrow(problem: Problem, needs: Sequence[bool]) -> Result | None:
    """Losses and gradients without panels, where rows are narrow or the batch is small."""
    tiles = _tiles(problem)
    if tiles is None:
        return None
    job = problem.job
    anchor, key = job.terms.blocks[0].anchor, job.terms.blocks[0].key
    learned = isinstance(job.scale, Tensor) and needs[0]
    losses = problem.numbers.new_empty(
        1 + job.terms.symmetric, len(job.labels), dtype=torch.float32
    )
    if not job.terms.symmetric:
        one = _direction(problem, tiles, losses[0], needs[anchor], needs[key], learned)
        return Result(losses[0], list(one[:2]), one[2])
    wanted = any(needs)
    one = _direction(problem, tiles, losses[0], wanted, wanted, learned, torch.float32)
    turned = replace(
        problem,
        job=replace(job, query_ids=job.key_ids, key_ids=job.query_ids),
        rows=[problem.rows[key], problem.rows[anchor]],
    )
    other = _direction(turned, tiles, losses[1], wanted, wanted, learned, None, one[1::-1])
    of_query, of_key = (g if n else None for g, n in zip(other[1::-1], needs, strict=True))
    of_scale = None if one[2] is None or other[2] is None else one[2] + other[2]
    return Result(losses.mean(0), [of_query, of_key], of_scale)


def _direction(
    problem: Problem,
    tiles: tuple[Tile, Tile],
    losses: Tensor,  # (M,) out
    of_query: bool,
    of_key: bool,
    learned: bool,
    dtype: torch.dtype | None = None,  # of the gradients, where not that in which they are kept
    more: Sequence[Tensor | None] = (None, None),  # fp32: added to the queries' and to the keys'
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of queries, keys and scale; the keys' kernel needs the other's softmaxes."""
    job = problem.job
    query, key = (problem.rows[i] for i in (job.terms.blocks[0].anchor, job.terms.blocks[0].key))
    rows, columns = len(query.raw), len(key.raw)
    state = losses.new_empty(4, rows)
    along = state.new_empty(rows, dtype=torch.float64) if learned else None
    wanted = of_query or of_key
    gradients = [kept(x, dtype) if n else None for x, n in ((query, wanted), (key, of_key))]
    tensors, numbers, switches = _common(problem)

    def given(x: Tensor | None) -> Tensor:
        return losses if x is None else x  # any tensor stands for one that is not read

    infonce_queries_kernel[(triton.cdiv(rows, tiles[0].rows),)](
        *(query.unit, key.unit, *_raw(query), *tensors, given(job.weight), losses, state),
        *(given(more[0]), given(gradients[0]), given(along), *numbers),
        **{"WEIGHTED": job.weight is not None, "GRADIENT": wanted, "SCALE": learned, **switches},
        **{"MORE": more[0] is not None, **_shape(tiles[0], query)},
    )
    if of_key:
        gain = gain_of(state[3].abs()) if query.unit.dtype == torch.float16 else None
        infonce_keys_kernel[(triton.cdiv(columns, tiles[1].columns),)](
            *(query.unit, key.unit, *_raw(key), *tensors, state, given(gain)),
            *(given(more[1]), gradients[1], *numbers),
            **{"GAIN": gain is not None, **switches},
            **{"MORE": more[1] is not None, **_shape(tiles[1], query)},
        )
    return (
        gradients[0] if of_query else None,
        gradients[1],
        None if along is None else along.sum(),
    )


def _tiles(problem: Problem) -> tuple[Tile, Tile] | None:
    """For both kernels; None for a loss that they do not compute, or not as quickly as panels."""
    job, terms = problem.job, problem.job.terms
    one = len(job.segments) == 1 and job.segments[0].own == Own.POSITIVE
    if not one or terms.label_smoothing or problem.hard is not None:
        return None
    query, key = (problem.rows[i] for i in (terms.blocks[0].anchor, terms.blocks[0].key))
    return table.attention_tiles(query.unit, len(query.raw), len(key.raw), terms.symmetric)


def _common(problem: Problem) -> tuple[tuple[Tensor, ...], tuple[float, ...], dict[str, Any]]:
    """What both kernels take: tensors, numbers, and switches at compile time."""
    job, block = problem.job, problem.job.terms.blocks[0]
    query, key = problem.rows[block.anchor], problem.rows[block.key]
    ids = (job.labels if x is None else x for x in (job.query_ids, job.key_ids))
    margin = margin_of(job.terms)
    numbers = (
        *(len(query.raw), len(key.raw), query.raw.shape[1], query.unit.shape[1]),
        *(job.segments[0].hardness, 0.0 if margin is None else margin),
        job.uniform_weight if job.weight is None else 1.0,
    )
    switches = {
        "IDS": job.query_ids is not None,
        "MARGIN": margin is not None,
        # An offset known beforehand suffices, or each row's largest logit so far is the offset;
        # relative to that, exponentials fit fp16 as well.
        "ONLINE": problem.flag is not None or query.unit.dtype == torch.float16,
        "NORMALIZE": query.inverse is not None,
        "PRECISION": precision(query.unit),
        "WIDE": query.unit.dtype == torch.float32,
    }
    return (problem.numbers, job.labels, *ids), numbers, switches


def _raw(rows: Rows) -> tuple[Any, ...]:
    """The rows as they came, with their strides and inverse lengths."""
    return rows.raw, *rows.raw.stride(), rows.raw if rows.inverse is None else rows.inverse


def _shape(tile: Tile, rows: Rows) -> dict[str, int]:
    width = triton.next_power_of_2(rows.unit.shape[1])
    return {
        "BM": tile.rows, "BN": tile.columns, "BK": min(tile.depth, width), "BD": width,
        "num_warps": tile.warps, "num_stages": tile.stages, **FUSED,
    }  # fmt: skip
