"""The loss in autograd: one Function for eager mode, the same as torch operators for compilers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence  # noqa: TC003  # the operators' schemas are read from it
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from simcse_fast.backend import part_of, workspace_limit
from simcse_fast.kernels.infonce import panels
from simcse_fast.kernels.infonce.terms import Block, Job, Own, Terms, segments_of


@dataclass(frozen=True)
class Call:
    """One evaluation of the loss: everything but what autograd differentiates."""

    labels: Tensor  # (M,) int64
    terms: Terms
    backend: str  # torch or cpu
    needs: tuple[bool, ...]  # gradients wanted, of tensors + [hard]
    rowwise: bool = False  # weighted losses of the rows instead of their sum
    scale_value: float = 1.0  # 1 / temperature where it is no tensor
    query_ids: Tensor | None = None  # (M,) int64
    key_ids: Tensor | None = None  # (N,) int64
    weight: Tensor | None = None  # (M,) of each row in the sum
    uniform_weight: float = 1.0  # the same where weight is None


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


def _forward(
    tensors: Sequence[Tensor], hard: Tensor | None, scale: Tensor | None, call: Call
) -> tuple[Tensor, panels.Result]:
    wide = _wide(tensors[0].dtype)
    inputs = [x.to(wide).contiguous() for x in tensors]
    each = 0.5 if call.terms.symmetric else 1.0  # of the two directions
    weight = None if call.weight is None else call.weight.to(wide)
    job = Job(
        terms=call.terms,
        segments=segments_of(call.terms, inputs),
        scale=call.scale_value if scale is None else scale,
        labels=call.labels,
        query_ids=call.query_ids,
        key_ids=call.key_ids,
        weight=None if weight is None else weight * each,
        uniform_weight=call.uniform_weight * each,
    )
    with _no_autocast(inputs[0].device.type):
        result = panels.run(
            part_of(call.backend, wide),
            inputs,
            None if hard is None else hard.to(wide).contiguous(),
            job,
            call.needs,
            workspace_limit(inputs[0].device),
        )
    if call.rowwise:
        return result.losses * (call.uniform_weight if weight is None else weight), result
    # In double: the sum of many fp32 losses would otherwise be the largest error of the result.
    if weight is None and call.uniform_weight == 1 / len(result.losses):
        total = result.losses.mean(dtype=torch.float64)
    elif weight is None:
        total = result.losses.sum(dtype=torch.float64) * call.uniform_weight
    else:
        total = (result.losses * weight).sum(dtype=torch.float64)
    return total.to(wide), result


def _no_autocast(device: str) -> contextlib.AbstractContextManager[object]:
    """Autocast would round the products behind the plan's back."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def _finish(
    tensors: Sequence[Tensor],  # (rows, D) each; hard negatives as (M K, D)
    gradients: Sequence[Tensor | None],  # of the unit rows
    inverses: Sequence[Tensor | None],
    upstream: Tensor,  # 0-d
    scale: Tensor | None,
    call: Call,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of the scale and of the tensors."""
    wide = _wide(tensors[0].dtype)
    part = part_of(call.backend, wide)
    upstream = upstream.to(wide)
    factor: Tensor | float = float(upstream) if upstream.device.type == "cpu" else upstream
    factor = factor * (call.scale_value if scale is None else scale.to(wide))
    of_scale = None
    out: list[Tensor | None] = []
    for number, (x, gradient, inverse) in enumerate(zip(tensors, gradients, inverses, strict=True)):
        if gradient is None:
            out.append(None)
            continue
        of_x, along = part.normalize_backward(x.to(wide).contiguous(), inverse, gradient, factor)
        out.append(of_x.to(x.dtype))
        if number == 0 and scale is not None:
            of_scale = (along.sum(dtype=torch.float64) * upstream).to(scale.dtype)
    return of_scale, out


def _backward(
    tensors: Sequence[Tensor],
    hard: Tensor | None,
    scale: Tensor | None,
    call: Call,
    kept: panels.Result | None,
    upstream: Tensor,
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """Gradients of the scale, the hard negatives and the tensors."""
    if call.rowwise:  # the rows' upstream gradients are weights of a sum, known only now
        weight = upstream * (call.uniform_weight if call.weight is None else call.weight)
        _, kept = _forward(tensors, hard, scale, replace(call, weight=weight, rowwise=False))
        upstream = upstream.new_ones(())
    flat = [*tensors, *([] if hard is None else [hard.flatten(0, 1)])]
    of_scale, out = _finish(flat, kept.gradients, kept.inverses, upstream, scale, call)  # type: ignore[union-attr]
    of_hard = None if hard is None else out.pop()
    return of_scale, of_hard if hard is None or of_hard is None else of_hard.view(hard.shape), out


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Call, scale: Tensor | None, hard: Tensor | None, *tensors: Tensor
    ) -> Tensor:
        # Row-wise gradients need the upstream gradient, so they are formed in the backward.
        now = replace(call, needs=(False,) * len(call.needs)) if call.rowwise else call
        loss, ctx.kept = _forward(tensors, hard, scale, now)
        ctx.call = call
        ctx.save_for_backward(scale, hard, *tensors)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        scale, hard, *tensors = ctx.saved_tensors
        with torch.no_grad():
            of_scale, of_hard, out = _backward(tensors, hard, scale, ctx.call, ctx.kept, upstream)
        gradients = [of_scale if ctx.needs_input_grad[1] else None, of_hard, *out]
        if torch.is_grad_enabled():
            gradients = [
                None if g is None else _apply(_Once, g, upstream, *tensors) for g in gradients
            ]
        return None, *gradients


class _Once(torch.autograd.Function):
    """A gradient that raises when it is differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *depends_on: Tensor) -> Tensor:  # noqa: ARG004
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:  # noqa: ARG004
        _refuse()


def _refuse(*_anything: Any) -> None:
    raise RuntimeError(
        "info_nce: second derivatives are not implemented; for a gradient penalty write the loss "
        "in plain torch (simcse_fast/kernels/infonce/reference.py is that)."
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


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type that the products and the loss are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# What follows says the same to compilers, whose operators take tensors, numbers and flat lists.


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


def _some(tensors: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """An empty tensor for None."""
    return [like.new_empty(0) if x is None else x for x in tensors]


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
    """[loss, gradients of the unit rows ..., inverse lengths ...], empty where there is none."""
    call = _call(labels, query_ids, key_ids, weight, integers, values, needs, backend)
    loss, result = _forward(tensors, hard, scale, call)
    return [loss, *_some(result.gradients, loss), *_some(result.inverses, loss)]


@info_nce.register_fake
def _info_nce_fake(
    tensors: Sequence[Tensor], hard: Tensor | None, _scale: Any, labels: Tensor, *flat: Any
) -> list[Tensor]:
    integers, _, needs, _ = flat[-4:]
    everything = [*tensors, *([] if hard is None else [hard.flatten(0, 1)])]
    like = tensors[0].new_empty(0, dtype=_wide(tensors[0].dtype))
    return [
        like.new_empty(labels.shape if integers[2] else ()),
        *(like.new_empty(x.shape if n else 0) for x, n in zip(everything, needs, strict=True)),
        *(like.new_empty(x.shape[0] if integers[1] else 0) for x in everything),
    ]


@torch.library.custom_op("simcse_fast::info_nce_backward", mutates_args=())
def info_nce_backward(
    tensors: Sequence[Tensor],
    hard: Tensor | None,
    scale: Tensor | None,
    kept: Sequence[Tensor],  # gradients of the unit rows, inverse lengths; [] if row-wise
    upstream: Tensor,
    labels: Tensor,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    weight: Tensor | None,
    integers: Sequence[int],
    values: Sequence[float],
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    """[gradient of the scale, of the hard negatives, of the tensors ...]; empty where none."""
    call = _call(labels, query_ids, key_ids, weight, integers, values, needs, backend)
    half = len(kept) // 2
    some = [x if x.numel() else None for x in kept]
    result = panels.Result(upstream, some[:half], some[half:]) if half else None
    of_scale, of_hard, out = _backward(tensors, hard, scale, call, result, upstream)
    return _some([of_scale, of_hard, *out], upstream)


@info_nce_backward.register_fake
def _info_nce_backward_fake(
    tensors: Sequence[Tensor],
    hard: Tensor | None,
    scale: Tensor | None,
    _kept: Any,
    upstream: Tensor,
    *flat: Any,
) -> list[Tensor]:
    needs = flat[-2]
    wanted = [hard if needs[-1] else None, *tensors]  # without hard negatives: the last tensor
    order = [hard is not None, *needs[: len(tensors)]]
    return _some(
        [
            None if scale is None else torch.empty_like(scale),
            *(
                x.new_empty(x.shape) if x is not None and n else None
                for x, n in zip(wanted, order, strict=True)
            ),
        ],
        upstream,
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, hard, scale, *constant = inputs[:7]
    ctx.flat, ctx.count = inputs[7:], len(tensors)
    ctx.mark_non_differentiable(*output[1:])
    rowwise = bool(ctx.flat[0][2])
    ctx.save_for_backward(hard, scale, *constant, *tensors, *([] if rowwise else output[1:]))


def _operator_backward(ctx: Any, upstream: list[Tensor]) -> tuple[Any, ...]:
    hard, scale, *constant = ctx.saved_tensors[:6]
    tensors = list(ctx.saved_tensors[6 : 6 + ctx.count])
    kept = list(ctx.saved_tensors[6 + ctx.count :])
    of_scale, of_hard, *out = info_nce_backward(
        tensors, hard, scale, kept, upstream[0], *constant, *ctx.flat
    )
    needs = ctx.flat[2]
    wanted = [g if n else None for g, n in zip(out, needs[: ctx.count], strict=True)]
    return (
        wanted,
        of_hard if hard is not None and needs[-1] else None,
        None if scale is None else of_scale,
        *[None] * 8,
    )


info_nce.register_autograd(_operator_backward, setup_context=_save)
info_nce_backward.register_autograd(_refuse)
