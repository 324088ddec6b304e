"""From sums of exponentials to losses: what the gradients of a row's logits need, and no more."""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from simcse_fast.kernels.infonce.similarities import Problem
from simcse_fast.kernels.infonce.triton_math import (
    FAINT,
    FUSED,
    LN2,
    LOG2E,
    cross_entropy,
    slope_of,
)

PATCH, RESTORE = tl.constexpr(1), tl.constexpr(2)  # what the softmax kernel does to a panel
LARGEST = 2.0**13  # that a gradient of logits in fp16 is scaled to; sums of two stay finite
SMALLEST = 2.0**-100  # gradient of logits that is brought up to that


@dataclass(frozen=True)
class Softmaxes:
    """The softmax of each of M rows (or columns), and what its gradient needs."""

    losses: Tensor  # (M,)
    state: Tensor  # (4, M): offset, weight / sum, smoothing, gradient at the positive
    after: Tensor  # (M,) what the product of a panel with the keys still lacks


@triton.jit(do_not_specialize=["rows", "begin", "negatives"])
def infonce_softmax_kernel(
    folded,  # (planes, rows) fp64: sum of exponentials, largest logit, sum of logits, number
    positive,  # (total,) similarity with the positive
    hard,  # (total, negatives) similarities with own hard negatives, where HARD
    of_hard,  # (total, negatives) out: gradients of their logits
    weight,  # (total,) where WEIGHTED
    numbers,  # (2,) fp64: scale, offset
    losses,  # (total,) out
    state,  # (4, total) out
    after,  # (total,) out where MODE
    panel,  # (rows, .) where MODE
    stride,
    labels,  # (total,) where MODE
    query,  # (total, depth) unit rows where MODE
    weighed,  # (rows, depth) out where MODE
    flag,  # () set where FLAG, if a sum is too faint; asked where GUARD
    begin,  # first row
    rows,
    total,
    negatives,
    depth,
    hardness,
    log_weight,  # log2 of the own hard negatives' weight
    label_smoothing,
    ONLINE: tl.constexpr,
    SMOOTHING: tl.constexpr,
    HARD: tl.constexpr,
    WEIGHTED: tl.constexpr,
    MODE: tl.constexpr,
    FLAG: tl.constexpr,
    GUARD: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """Sums of rows -> losses, and all that the gradients of their logits need.

    PATCH completes a panel of exponentials: at the positive stands minus the sum of the others, so
    that a row times `after` is its gradient; `weighed` holds the queries times that. RESTORE is for
    a panel that holds gradients already.
    """
    i = tl.program_id(0) * BR + tl.arange(0, BR)
    here = i < rows
    if GUARD:
        here = i < rows * tl.load(flag)
    row = (begin + i).to(tl.int64)
    slope = tl.load(numbers) * LOG2E
    x = tl.load(positive + row, mask=here, other=0.0).to(tl.float64) * slope
    negative = tl.load(folded + i, mask=here, other=0.0)
    shift = tl.load(numbers + 1) + tl.zeros([BR], dtype=tl.float64)  # of the logits in `folded`
    offset = shift
    if ONLINE:
        largest = tl.load(folded + rows + i, mask=here, other=0.0)
        offset = tl.maximum(largest, x)
        shift = tl.zeros([BR], dtype=tl.float64)
    own_slope = slope_of(numbers, hardness)
    if HARD:
        if ONLINE:
            for k in range(negatives):
                c = tl.load(hard + row * negatives + k, mask=here, other=0.0).to(tl.float64)
                offset = tl.maximum(offset, c * own_slope + log_weight)
    offset = offset.to(tl.float32).to(tl.float64)  # as it is kept, so that gradients add up to 0
    if ONLINE:
        negative *= tl.exp2(largest - offset)
    logit_sum = tl.zeros([BR], dtype=tl.float64)
    if HARD:
        for k in range(negatives):
            c = tl.load(hard + row * negatives + k, mask=here, other=0.0).to(tl.float64)
            negative += tl.exp2(c * own_slope + log_weight - offset)
            logit_sum += c * own_slope + log_weight
    loss, inverse, miss = cross_entropy(negative, x - offset)
    smoothing = tl.zeros([BR], dtype=tl.float64)
    if SMOOTHING:
        count = tl.load(folded + 3 * rows + i, mask=here, other=0.0)
        logit_sum += tl.load(folded + 2 * rows + i, mask=here, other=0.0) + shift * count + x
        if HARD:
            count += negatives
        smoothing = label_smoothing / (count + 1)
        loss += LN2 * (label_smoothing * x - smoothing * logit_sum)
    w = tl.full([BR], 1.0, dtype=tl.float64)
    if WEIGHTED:
        w = tl.load(weight + row, mask=here, other=0.0).to(tl.float64)
    factor = (w * inverse).to(tl.float32)
    tl.store(losses + row, loss.to(tl.float32), mask=here)
    tl.store(state + row, offset.to(tl.float32), mask=here)
    tl.store(state + total + row, factor, mask=here)
    tl.store(state + 2 * total + row, (w * smoothing).to(tl.float32), mask=here)
    own = w * (label_smoothing - smoothing - miss)
    tl.store(state + 3 * total + row, own.to(tl.float32), mask=here)
    if FLAG:
        faint = here & (1 / inverse < FAINT)
        if tl.max(faint.to(tl.int32), 0) > 0:
            tl.store(flag, 1)
    if HARD:
        for k in range(negatives):
            at = row * negatives + k
            c = tl.load(hard + at, mask=here, other=0.0).to(tl.float64)
            g = w * (tl.exp2(c * own_slope + log_weight - offset) * inverse - smoothing)
            tl.store(of_hard + at, g.to(tl.float32), mask=here)
    if MODE > 0:
        if MODE == PATCH:
            label = tl.load(labels + row, mask=here, other=0)
            rest = (-negative).to(tl.float32).to(panel.dtype.element_ty)
            tl.store(panel + i.to(tl.int64) * stride + label, rest, mask=here)
        if MODE == RESTORE:
            factor = tl.full([BR], 1.0, dtype=tl.float32)
        tl.store(after + row, factor, mask=here)
        for d in range(0, depth, BD):
            j = d + tl.arange(0, BD)
            inside = here[:, None] & (j[None, :] < depth)
            q = tl.load(query + row[:, None] * depth + j[None, :], mask=inside, other=0.0)
            q = (q.to(tl.float32) * factor[:, None]).to(weighed.dtype.element_ty)
            tl.store(weighed + i.to(tl.int64)[:, None] * depth + j[None, :], q, mask=inside)


def new_softmaxes(like: Tensor, count: int) -> Softmaxes:
    """Room for what the softmax kernel writes."""
    memory = like.new_empty(6, count, dtype=torch.float32)
    return Softmaxes(memory[4], memory[:4], memory[5])


def softmax(
    problem: Problem,
    positive: Tensor,  # (M,) similarities
    folded: Tensor,  # (planes, C) fp64
    out: Softmaxes,
    begin: int,
    hard: Tensor | None,  # (M K,) similarities
    of_hard: Tensor | None,  # (M K,) out
    *,
    online: bool,
    panel: tuple[Tensor, Tensor] | None = None,  # exponentials (C, N), and out: weighed queries
) -> None:
    """Losses and state of rows begin ... begin + C - 1; see the kernel."""
    job, (total,), rows = problem.job, out.losses.shape, folded.shape[1]
    query = problem.rows[job.terms.blocks[0].anchor].unit
    negatives = 0 if hard is None else len(hard) // total
    target, weighed = (query, query) if panel is None else panel
    mode = 0 if panel is None else RESTORE.value if online else PATCH.value
    flag = problem.flag
    block = {"BR": 16, "BD": 128}
    infonce_softmax_kernel[(triton.cdiv(rows, block["BR"]),)](
        *(folded, positive, folded if hard is None else hard),
        *(folded if of_hard is None else of_hard, folded if job.weight is None else job.weight),
        *(problem.numbers, out.losses, out.state, out.after, target, target.stride(0), job.labels),
        *(query, weighed, folded if flag is None else flag, begin, rows, total, negatives),
        *(query.shape[1], job.segments[0].hardness, math.log2(job.terms.hard_negative_weight)),
        job.terms.label_smoothing,
        ONLINE=online,
        SMOOTHING=bool(job.terms.label_smoothing),
        HARD=hard is not None,
        WEIGHTED=job.weight is not None,
        MODE=mode,
        **{
            "FLAG": flag is not None and not online,
            "GUARD": flag is not None and online,
            **block,
            **FUSED,
        },
    )


@triton.jit(do_not_specialize=["negatives"])
def infonce_hard_kernel(
    gradient,  # (rows, negatives) of the logits
    query,  # (rows, depth) unit rows
    hard,  # (rows negatives, depth) unit rows
    after,  # (rows,) what of_query still lacks, where AFTER
    gain,  # () where GAIN: multiplies everything
    of_query,  # (rows, depth) fp32 in and out, where QUERY
    of_hard,  # (rows negatives, depth) fp32 out, where HARD
    negatives,
    depth,
    AFTER: tl.constexpr,
    GAIN: tl.constexpr,
    QUERY: tl.constexpr,
    HARD: tl.constexpr,
    BD: tl.constexpr,
):
    """Take the gradients of a row's logits with its own hard negatives back to the unit rows."""
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = j < depth
    q = tl.load(query + row * depth + j, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([BD], dtype=tl.float32)
    for k in range(negatives):
        g = tl.load(gradient + row * negatives + k)
        if GAIN:
            g *= tl.load(gain)
        at = (row * negatives + k) * depth + j
        total += g * tl.load(hard + at, mask=inside, other=0.0).to(tl.float32)
        if HARD:
            tl.store(of_hard + at, g * q, mask=inside)
    if QUERY:
        at = of_query + row * depth + j
        old = tl.load(at, mask=inside, other=0.0)
        if AFTER:
            old *= tl.load(after + row)
        tl.store(at, old + total, mask=inside)


def hard_backward(
    gradient: Tensor,  # (M, K) of the logits
    query: Tensor,  # (., depth) unit rows
    hard: Tensor,  # (., depth) unit rows
    of_query: Tensor | None,  # (., depth) fp32, in and out
    of_hard: Tensor | None,  # (., depth) fp32 out
    after: Tensor | None,  # (M,) what of_query still lacks
    gain: Tensor | None,
) -> None:
    """Gradients of the logits with own hard negatives -> of both sides' unit rows."""
    rows, negatives = gradient.shape
    block = min(1024, triton.next_power_of_2(query.shape[1]))
    infonce_hard_kernel[(rows, triton.cdiv(query.shape[1], block))](
        *(gradient, query, hard, gradient if after is None else after),
        *(gradient if gain is None else gain, gradient if of_query is None else of_query),
        *(gradient if of_hard is None else of_hard, negatives, query.shape[1]),
        AFTER=after is not None,
        GAIN=gain is not None,
        QUERY=of_query is not None,
        HARD=of_hard is not None,
        BD=block,
        **FUSED,
    )


def gain_of(sizes: Tensor) -> Tensor:
    """What brings gradients of logits into fp16's range, from each row's bound on them: 0-d."""
    return LARGEST / sizes.amax().clamp_min(SMALLEST)
