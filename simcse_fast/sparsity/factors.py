"""Each sentence's own factor on each unit, of which only the gradient is worked out.

The factors are 1, so nothing is multiplied; and with z a unit's output in a sentence, the gradient
of its factor is sum <z, dL/dz> over the sentence's tokens, one pass over both.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from simcse_fast.errors import InputError
from simcse_fast.sparsity.masks import changed_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from simcse_fast.sparsity.layouts import Units

SEQUENCES = 3  # dimensions of (sentences, tokens, width)
NUMBERS = 1 << 19  # that are multiplied at a time: 2 MiB, which stay in a CPU's caches


class _Factor(torch.autograd.Function):
    """Output of the units of a layer, times 1."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (B, L, units * numbers of a unit)
        factor: Tensor,  # (B, units)
    ) -> Tensor:
        """As it came."""
        ctx.save_for_backward(x)
        ctx.units = factor.shape[1]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and what each unit has in common with its gradient."""
        (x,) = ctx.saved_tensors
        few = max(1, NUMBERS // max(1, x[0].numel()))
        shares = [
            (x[begin : begin + few].float() * gradient[begin : begin + few]).sum(1)
            for begin in range(0, len(x), few)
        ]
        return gradient, torch.cat(shares).view(len(x), ctx.units, -1).sum(2)


@contextmanager
def factors(units: Units, rows: int) -> Iterator[list[Tensor]]:
    """While it is entered, factors (rows, heads) of each layer, then (rows, neurons) of each.

    Raises:
        InputError: the model takes all sentences as one sequence.
    """
    layers = units.layers
    device = layers[0].out.weight.device
    leaves = [
        torch.ones(rows, size, device=device, requires_grad=True)
        for size in (units.heads, units.neurons)
        for _ in layers
    ]

    def marked(x: Tensor, place: int) -> Tensor:
        if x.ndim != SEQUENCES:
            raise InputError(
                f"model: expected states of shape (sentences, tokens, width), got "
                f"{tuple(x.shape)}; load it without unpad_inputs"
            )
        found: Tensor = _Factor.apply(x, leaves[place])  # type: ignore[no-untyped-call]
        return found

    linears = [*(layer.out for layer in layers), *(layer.down for layer in layers)]
    with changed_inputs(linears, marked):
        yield leaves
