"""The loss as torch custom operators: schema, fake, backward. One call per loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from simcse_fast.backend import part_of, workspace_limit
from simcse_fast.kernels.infonce import panels
from simcse_fast.kernels.infonce.terms import Block, Job, Own, Terms, segments_of


def pack(terms: Terms) -> tuple[list[int], list[float]]:
    """Terms as the numbers that an operator's schema can carry."""
    integers = [int(terms.symmetric), int(terms.normalize)]
    values = [terms.margin, terms.label_smoothing, terms.hard_negative_weight]
    for block in terms.blocks:
        integers += [block.anchor, block.key, block.period, int(block.own)]
        values += [block.hardness, block.own_hardness]
    return integers, values


def unpack(integers: Sequence[int], values: Sequence[float]) -> Terms:
    """The inverse of `pack`."""
    blocks = tuple(
        Block(*integers[i : i + 3], Own(integers[i + 3]), *values[j : j + 2])
        for i, j in zip(
            range(2, len(integers), 4), range(3, len(values), 2), strict=True
        )
    )
    return Terms(blocks, bool(integers[0]), bool(integers[1]), *values[:3])


@torch.library.custom_op("simcse_fast::info_nce", mutates_args=())
def info_nce(
    tensors: Sequence[Tensor],  # (rows, D) each, one type and device
    hard: Tensor | None,  # (M, K, D)
    scale: Tensor | None,  # 0-d, or None: scale_value
    scale_value: float,
    labels: Tensor,  # (M,) int64
    query_ids: Tensor | None,  # (M,) int64
    key_ids: Tensor | None,  # (N,) int64
    weight: Tensor | None,  # (M,) of each row in the sum, or None: uniform_weight
    uniform_weight: float,
    integers: Sequence[int],  # pack(terms)
    values: Sequence[float],
    needs: Sequence[bool],  # gradients wanted, of tensors + [hard]
    rowwise: bool,  # return weighted losses of the rows instead of their sum
    backend: str,
) -> list[Tensor]:
    """[loss, gradients of the unit rows ..., inverse lengths ...]; empty where not asked for."""
    terms = unpack(integers, values)
    wide = _wide(tensors[0].dtype)
    inputs = [x.to(wide).contiguous() for x in tensors]
    hard_input = None if hard is None else hard.to(wide).contiguous()
    job = Job(
        terms=terms,
        segments=segments_of(terms, inputs),
        scale=scale_value if scale is None else scale.to(wide),
        labels=labels,
        query_ids=query_ids,
        key_ids=key_ids,
        weight=None if weight is None else weight.to(wide) * (0.5 if terms.symmetric else 1.0),
        uniform_weight=uniform_weight * (0.5 if terms.symmetric else 1.0),
    )
    part = part_of(backend, wide)
    limit = workspace_limit(inputs[0].device)
    result = panels.run(part, inputs, hard_input, job, list(needs), limit)
    weights = uniform_weight if weight is None else weight.to(wide)
    losses = result.losses * weights
    loss = losses if rowwise else losses.sum(dtype=torch.float64).to(wide)
    empty = loss.new_empty(0)
    return [
        loss,
        *(empty.clone() if g is None else g for g in result.gradients),
        *(empty.clone() if i is None else i for i in result.inverses),
    ]


@info_nce.register_fake
def _(tensors, hard, scale, scale_value, labels, query_ids, key_ids, weight, uniform_weight,  # type: ignore[no-untyped-def]  # noqa: E501, PLR0917
      integers, values, needs, rowwise, backend):
    del scale, scale_value, query_ids, key_ids, weight, uniform_weight, values, backend
    everything = [*tensors, *([] if hard is None else [hard.flatten(0, 1)])]
    like = tensors[0].new_empty(0, dtype=_wide(tensors[0].dtype))
    normalize = bool(integers[1])
    return [
        like.new_empty(labels.shape if rowwise else ()),
        *(like.new_empty(x.shape if need else (0,)) for x, need in zip(everything, needs)),
        *(like.new_empty(x.shape[:1] if normalize else (0,)) for x in everything),
    ]


@torch.library.custom_op("simcse_fast::info_nce_backward", mutates_args=())
def info_nce_backward(
    tensors: Sequence[Tensor],  # (rows, D) each
    gradients: Sequence[Tensor],  # of the unit rows; empty where not wanted
    inverses: Sequence[Tensor],  # inverse lengths; empty where rows were not normalized
    upstream: Tensor,  # 0-d
    scale: Tensor | None,
    scale_value: float,
    backend: str,
) -> list[Tensor]:
    """[gradient of the scale (0-d), gradients of the tensors ...]."""
    wide = _wide(tensors[0].dtype)
    part = part_of(backend, wide)
    factor = upstream.to(wide) * (scale_value if scale is None else scale.to(wide))
    of_scale, out = upstream.new_zeros((), dtype=wide), []
    for number, (x, gradient, inverse) in enumerate(zip(tensors, gradients, inverses, strict=True)):
        if not gradient.numel():
            out.append(x.new_empty(gradient.shape))
            continue
        of_x, along = part.normalize_backward(
            x.to(wide).contiguous(), inverse if inverse.numel() else None, gradient, factor
        )
        out.append(of_x.to(x.dtype))
        if number == 0 and scale is not None:
            of_scale = along.sum(dtype=torch.float64).to(wide) * upstream.to(wide)
    return [of_scale, *out]


@info_nce_backward.register_fake
def _(tensors, gradients, inverses, upstream, scale, scale_value, backend):  # type: ignore[no-untyped-def]  # noqa: E501
    del inverses, scale, scale_value, backend
    return [
        upstream.new_empty((), dtype=_wide(tensors[0].dtype)),
        *(x.new_empty(g.shape) for x, g in zip(tensors, gradients, strict=True)),
    ]


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type that the CPU's products and every loss are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    (tensors, hard, scale, ctx.scale_value, labels, query_ids, key_ids, weight) = inputs[:8]
    ctx.options = inputs[8:]
    ctx.count = len(tensors)
    ctx.mark_non_differentiable(*output[1:])
    grouped = output[1:] if not ctx.options[4] else []  # rowwise gradients are made in backward
    ctx.save_for_backward(
        *(scale, hard, labels, query_ids, key_ids, weight), *tensors, *grouped
    )


def _backward(ctx: Any, upstreams: list[Tensor]) -> tuple[Any, ...]:
    scale, hard, labels, query_ids, key_ids, weight = ctx.saved_tensors[:6]
    tensors = list(ctx.saved_tensors[6 : 6 + ctx.count])
    kept = list(ctx.saved_tensors[6 + ctx.count :])
    uniform_weight, integers, values, needs, rowwise, backend = ctx.options
    upstream = upstreams[0]
    if rowwise:  # the rows' upstream gradients are weights of a sum, known only now
        weights = upstream * (uniform_weight if weight is None else weight)
        _, *kept = info_nce(
            *([x.detach() for x in tensors], hard if hard is None else hard.detach()),
            *(scale if scale is None else scale.detach(), ctx.scale_value),
            *(labels, query_ids, key_ids, weights.detach(), 1.0, integers, values, needs),
            *(False, backend),
        )
        upstream = upstream.new_ones(())
    flat = [*tensors, *([] if hard is None else [hard.flatten(0, 1)])]
    of_scale, *out = info_nce_backward(
        flat, kept[: len(flat)], kept[len(flat) :], upstream, scale, ctx.scale_value, backend
    )
    wanted = [g if need else None for g, need in zip(out, needs, strict=True)]
    of_hard = wanted.pop().view(hard.shape) if hard is not None and needs[-1] else None
    if scale is not None:
        of_scale = of_scale.to(scale.dtype)
    return wanted[: ctx.count], of_hard, None if scale is None else of_scale, *[None] * 11


def _twice(_ctx: Any, *_upstreams: Any) -> None:
    raise RuntimeError(
        "info_nce: second derivatives are not implemented; for a gradient penalty write the loss "
        "in plain torch (simcse_fast/kernels/infonce/reference.py is that)."
    )


info_nce.register_autograd(_backward, setup_context=_save)
info_nce_backward.register_autograd(_twice)


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # noqa: ARG004
        return _Twice.apply(upstream)


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.view_as(x)

    backward = staticmethod(_twice)


def first_order(loss: Tensor) -> Tensor:
    """The same tensor; differentiating its gradient raises, as with every back-end."""
    return _FirstOrder.apply(loss)  # type: ignore[no-any-return]
