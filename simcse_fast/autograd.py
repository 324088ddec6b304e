"""The loss in autograd: one Function for eager mode, the same as a torch operator for compilers."""

from __future__ import annotations

import os
from collections.abc import Sequence  # noqa: TC003  # the operator's schema is read from it
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from simcse_fast.backend import evaluate, kept_type, workspace_limit
from simcse_fast.kernels.infonce import graphs
from simcse_fast.kernels.infonce.panels import Result  # noqa: TC001
from simcse_fast.kernels.infonce.terms import Block, Job, Own, Terms, segments_of


@dataclass(frozen=True)
class Call:
    """One evaluation of the loss: everything but what autograd differentiates."""

    labels: Tensor  # (M,) int64
    terms: Terms
    backend: str  # torch, cpu or triton
    needs: tuple[bool, ...]  # gradients wanted, of tensors + [hard]
    rowwise: bool = False  # weighted losses of the rows instead of their sum
    scale_value: float = 1.0  # 1 / temperature where it is no tensor
    query_ids: Tensor | None = None  # (M,) int64
    key_ids: Tensor | None = None  # (N,) int64
    weight: Tensor | None = None  # (M,) of each row in the sum
    uniform_weight: float = 1.0  # the same where weight is None
    counted: bool = False  # the labels are 0 ... M - 1, and known to be


def contrast(
    tensors: Sequence[Tensor],  # (rows, D) each, one type and device
    hard: Tensor | None,  # (M, K, D)
    scale: Tensor | None,  # 0-d, or None: call.scale_value
    call: Call,
) -> Tensor:
    """The loss, 0-d or (M,), differentiable once."""
    if torch.compiler.is_compiling() or type(tensors[0]) not in (Tensor, torch.nn.Parameter):
        loss: Tensor = info_nce(tensors, hard, scale, *_flat(call))[0]
    else:
        loss = _apply(_Loss, call, scale, hard, *tensors)
    return loss


def _quickest(
    tensors: Sequence[Tensor], hard: Tensor | None, scale: Tensor | None, call: Call
) -> tuple[Tensor, list[Tensor | None]]:
    """As `_forward`, replayed from a graph where launches would take most of the time."""
    on = os.environ.get("SIMCSE_FAST_CUDA_GRAPHS") == "1"  # not yet seen on a GPU
    if not on or call.backend != "triton" or tensors[0].dtype == torch.float64:
        return _forward(tensors, hard, scale, call)
    inputs = [call.labels, call.query_ids, call.key_ids, call.weight, scale, hard, *tensors]
    columns = sum(len(tensors[block.key]) for block in call.terms.blocks)
    if not graphs.serve(inputs, len(call.labels) * columns):
        return _forward(tensors, hard, scale, call)

    def compute(inputs: graphs.Maybe) -> graphs.Maybe:
        labels, query_ids, key_ids, weight, scale, hard, *tensors = inputs
        given = replace(
            call,
            labels=cast("Tensor", labels),
            query_ids=query_ids,
            key_ids=key_ids,
            weight=weight,
        )
        loss, kept = _forward(cast("list[Tensor]", tensors), hard, scale, given)
        return [loss, *kept]

    device = tensors[0].device
    numbers = call.scale_value, call.uniform_weight, call.counted, workspace_limit(device)
    key = graphs.key_of(inputs, call.terms, call.needs, call.rowwise, *numbers)
    loss, *kept = graphs.of(device).run(key, inputs, compute, [0] if call.counted else [])
    return cast("Tensor", loss), kept


def _forward(
    tensors: Sequence[Tensor], hard: Tensor | None, scale: Tensor | None, call: Call
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss, and the gradients of its sum: of the scale, the hard negatives, the tensors."""
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    each = 0.5 if call.terms.symmetric else 1.0  # of the two directions
    weight = None if call.weight is None else call.weight.to(wide)
    job = Job(
        terms=call.terms,
        segments=segments_of(call.terms, tensors),
        scale=call.scale_value if scale is None else scale,
        labels=call.labels,
        query_ids=call.query_ids,
        key_ids=call.key_ids,
        weight=None if weight is None else weight * each,
        uniform_weight=call.uniform_weight * each,
    )
    # Row-wise, the upstream gradient weighs the rows, so gradients wait for the backward.
    needs = [False] * len(call.needs) if call.rowwise else call.needs
    result = evaluate(call.backend, tensors, hard, job, needs)
    of_tensors = result.gradients
    of_hard = None if hard is None else of_tensors.pop()
    if of_hard is not None and hard is not None:
        of_hard = of_hard.view(hard.shape)
    return _reduced(result, weight, call).to(wide), [result.of_scale, of_hard, *of_tensors]


def _reduced(result: Result, weight: Tensor | None, call: Call) -> Tensor:
    losses = result.losses
    if call.rowwise:
        return losses * (call.uniform_weight if weight is None else weight)
    if result.total is not None:
        return result.total
    # In double: the sum of many fp32 losses would otherwise be the largest error of the result.
    if weight is None and call.uniform_weight == 1 / len(losses):
        return losses.mean(dtype=torch.float64)
    if weight is None:
        return losses.sum(dtype=torch.float64) * call.uniform_weight
    return (losses * weight).sum(dtype=torch.float64)


def _weighed(
    kept: Sequence[Tensor | None], upstream: Tensor, inputs: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The kept gradients times the upstream one, in the inputs' types; never in place."""
    return [
        None if g is None or x is None else (g * upstream).to(x.dtype)
        for g, x in zip(kept, inputs, strict=True)
    ]


def _rows_weighed(upstream: Tensor, call: Call) -> Call:
    """Row-wise: the sum that the upstream gradient makes of the rows' losses."""
    weight = upstream * (call.uniform_weight if call.weight is None else call.weight)
    return replace(call, weight=weight, rowwise=False)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Call, scale: Tensor | None, hard: Tensor | None, *tensors: Tensor
    ) -> Tensor:
        loss, ctx.kept = _quickest(tensors, hard, scale, call)
        ctx.call = call
        ctx.save_for_backward(scale, hard, *tensors)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        inputs = scale, hard, *tensors = ctx.saved_tensors
        kept = ctx.kept
        with torch.no_grad():
            if ctx.call.rowwise:
                _, kept = _quickest(tensors, hard, scale, _rows_weighed(upstream, ctx.call))
                upstream = upstream.new_ones(())
            gradients = _weighed(kept, upstream, inputs)
        return None, *differentiated_once(gradients, [upstream, *inputs])


def differentiated_once(
    gradients: list[Tensor | None], depends_on: list[Tensor | None]
) -> list[Tensor | None]:
    """The same gradients, which raise where someone differentiates them."""
    if not torch.is_grad_enabled():
        return gradients
    return [None if g is None else _apply(_Once, g, *depends_on) for g in gradients]


class _Once(torch.autograd.Function):
    """A gradient that raises when it is differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *depends_on: Tensor | None) -> Tensor:  # noqa: ARG004
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:  # noqa: ARG004
        _refuse()


def _refuse(*_anything: Any) -> None:
    raise RuntimeError(
        "second derivatives are not implemented; for a gradient penalty write the loss in plain "
        "torch (the files reference.py in simcse_fast/kernels are that)."
    )


class _DifferentiableOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # noqa: ARG004
        return _apply(_Once, upstream)


def differentiable_once(x: Tensor) -> Tensor:
    """The same tensor; differentiating its gradient raises, as with every back-end."""
    once: Tensor = _apply(_DifferentiableOnce, x)
    return once


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


# What follows says the same to compilers: an operator takes tensors, numbers and flat lists.


def _flat(call: Call) -> tuple[Any, ...]:
    terms = call.terms
    integers = [int(terms.symmetric), int(terms.normalize), int(call.rowwise)]
    values = [call.scale_value, call.uniform_weight, terms.margin, terms.label_smoothing]
    values.append(terms.hard_negative_weight)
    for block in terms.blocks:
        integers += [block.anchor, block.key, block.period, int(block.own)]
        values += [block.hardness, block.own_hardness]
    tensors = (call.labels, call.query_ids, call.key_ids, call.weight)
    return *tensors, integers, values, list(call.needs), call.backend


def _call(
    labels: Tensor,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    weight: Tensor | None,
    integers: Sequence[int],
    values: Sequence[float],
    needs: Sequence[bool],
    backend: str,
) -> Call:
    blocks = tuple(
        Block(
            *(integers[i], integers[i + 1], integers[i + 2], Own(integers[i + 3])),
            *(values[j], values[j + 1]),
        )
        for i, j in zip(range(3, len(integers), 4), range(5, len(values), 2), strict=True)
    )
    terms = Terms(blocks, bool(integers[0]), bool(integers[1]), *values[2:5])
    return Call(
        *(labels, terms, backend, tuple(needs), bool(integers[2]), values[0]),
        *(query_ids, key_ids, weight, values[1]),
    )


@torch.library.custom_op("simcse_fast::info_nce", mutates_args=())
def info_nce(
    tensors: Sequence[Tensor],
    hard: Tensor | None,
    scale: Tensor | None,
    labels: Tensor,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    weight: Tensor | None,
    integers: Sequence[int],
    values: Sequence[float],
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    """[loss, gradients of scale, hard negatives, tensors ...], empty where there is none."""
    call = _call(labels, query_ids, key_ids, weight, integers, values, needs, backend)
    loss, gradients = _forward(tensors, hard, scale, call)
    return [loss, *(loss.new_empty(0) if g is None else g for g in gradients)]


@info_nce.register_fake
def _info_nce_fake(
    tensors: Sequence[Tensor],
    hard: Tensor | None,
    scale: Tensor | None,
    labels: Tensor,
    *flat: Any,
) -> list[Tensor]:
    integers, _, needs, backend = flat[-4:]
    rowwise = bool(integers[2])
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    loss = tensors[0].new_empty(labels.shape if rowwise else (), dtype=wide)
    gradients = []
    for x, n in zip([scale, hard, *tensors], _wanted(scale, hard, needs), strict=True):
        shape = (0,) if x is None or not n or rowwise else x.shape
        dtype = kept_type(backend, tensors[0].dtype) if shape != (0,) else wide
        dtype = torch.float64 if x is scale and shape == () else dtype
        gradients.append(loss.new_empty(shape, dtype=dtype))
    return [loss, *gradients]


def _wanted(scale: Tensor | None, hard: Tensor | None, needs: Sequence[bool]) -> list[bool]:
    """Which gradients the operator returns: of the scale, the hard negatives, the tensors."""
    if hard is None:
        return [scale is not None and needs[0], False, *needs]
    return [scale is not None and needs[0], needs[-1], *needs[:-1]]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, hard, scale, *constant = inputs[:7]
    ctx.flat, ctx.count = inputs[7:], len(tensors)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(hard, scale, *constant, *tensors, *output[1:])


def _operator_backward(ctx: Any, upstream: list[Tensor]) -> tuple[Any, ...]:
    hard, scale, *constant = ctx.saved_tensors[:6]
    tensors = list(ctx.saved_tensors[6 : 6 + ctx.count])
    kept, factor = ctx.saved_tensors[6 + ctx.count :], upstream[0]
    with torch.no_grad():
        call = _call(*constant, *ctx.flat)
        if call.rowwise:
            flat = _flat(_rows_weighed(factor, call))
            kept, factor = info_nce(tensors, hard, scale, *flat)[1:], factor.new_ones(())
        wanted = _wanted(scale, hard, call.needs)
        some = [g if n else None for g, n in zip(kept, wanted, strict=True)]
        gradients = _weighed(some, factor, [scale, hard, *tensors])
    of_scale, of_hard, *of_tensors = differentiated_once(gradients, [factor, scale, hard, *tensors])
    return of_tensors, of_hard, of_scale, *[None] * 8


info_nce.register_autograd(_operator_backward, setup_context=_save)
