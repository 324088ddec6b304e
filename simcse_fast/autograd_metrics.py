"""Alignment and uniformity in autograd: each a torch operator that leaves its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simcse_fast import backend as backends
from simcse_fast.autograd import differentiated_once


@torch.library.custom_op("simcse_fast::uniformity", mutates_args=())
def uniformity(
    x: Tensor,  # (N, D)
    t: float,
    normalize: bool,
    gradient: bool,  # whether it is wanted
    backend: str,  # torch, cpu or triton
) -> tuple[Tensor, Tensor]:
    """The value, 0-d, and its gradient, empty where it is not wanted."""
    value, back = backends.uniformity(backend, x, t, normalize, gradient)
    value = value.to(_wide(x))
    return value, value.new_empty(0) if back is None else back


@uniformity.register_fake
def _uniformity_fake(
    x: Tensor,
    t: float,  # noqa: ARG001 - the schema's
    normalize: bool,  # noqa: ARG001
    gradient: bool,
    backend: str,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    wide = _wide(x)
    return x.new_empty((), dtype=wide), x.new_empty(x.shape if gradient else (0,), dtype=wide)


@torch.library.custom_op("simcse_fast::alignment", mutates_args=())
def alignment(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    alpha: float,
    normalize: bool,
    gradients: list[bool],  # which are wanted
    backend: str,  # torch, cpu or triton
) -> tuple[Tensor, Tensor, Tensor]:
    """The value, 0-d, and its gradients, empty where they are not wanted."""
    needs = gradients[0], gradients[1]
    value, backs = backends.alignment(backend, (x, y), alpha, normalize, needs)
    value = value.to(_wide(x))
    of_x, of_y = (value.new_empty(0) if back is None else back for back in backs)
    return value, of_x, of_y


@alignment.register_fake
def _alignment_fake(
    x: Tensor,
    y: Tensor,
    alpha: float,  # noqa: ARG001 - the schema's
    normalize: bool,  # noqa: ARG001
    gradients: list[bool],
    backend: str,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    wide = _wide(x)
    of_x, of_y = (
        z.new_empty(z.shape if need else (0,), dtype=wide)
        for z, need in zip((x, y), gradients, strict=True)
    )
    return x.new_empty((), dtype=wide), of_x, of_y


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    ctx.others = len(inputs) - len(tensors)
    ctx.set_materialize_grads(False)  # zeros for what is not differentiable would be as large as x
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[1:])


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Any, ...]:
    half = len(ctx.saved_tensors) // 2
    tensors, kept = ctx.saved_tensors[:half], ctx.saved_tensors[half:]
    if upstream is None:
        return tuple([None] * (half + ctx.others))
    with torch.no_grad():
        gradients = [
            (g * upstream).to(x.dtype) if g.shape == x.shape else None
            for x, g in zip(tensors, kept, strict=True)
        ]
    return *differentiated_once(gradients, [upstream, *tensors]), *[None] * ctx.others


uniformity.register_autograd(_backward, setup_context=_save)
alignment.register_autograd(_backward, setup_context=_save)
