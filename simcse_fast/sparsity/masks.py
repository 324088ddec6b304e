"""Factors xi on heads and neurons, put into a model by hooks and taken out again."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from simcse_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from simcse_fast.sparsity.layouts import Units

SEQUENCES = 3  # dimensions of (sentences, tokens, width)


@contextmanager
def masked(
    units: Units,
    heads: Sequence[Tensor | None],  # of each layer: (H,), (B, H) or none
    neurons: Sequence[Tensor | None],  # of each layer: (F,), (B, F) or none
) -> Iterator[None]:
    """While it is entered, each head's context and each neuron is multiplied by its factor."""
    with ExitStack() as stack:
        for layer, of_heads, of_neurons in zip(units.layers, heads, neurons, strict=True):
            if of_heads is not None:
                stack.enter_context(_factor(layer.out, of_heads, units.depth))
            if of_neurons is not None:
                stack.enter_context(_factor(layer.down, of_neurons, 1))
        yield


@contextmanager
def _factor(linear: nn.Linear, mask: Tensor, repeats: int) -> Iterator[None]:
    """Multiply the input of a layer."""

    def multiply(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        x = given[0]
        wide = mask if repeats == 1 else mask.repeat_interleave(repeats, dim=-1)
        if wide.ndim > 1:
            if x.ndim != SEQUENCES:
                raise InputError(
                    f"model: expected states of shape (sentences, tokens, width), got "
                    f"{tuple(x.shape)}; load it without unpad_inputs"
                )
            wide = wide[:, None]
        return x * wide.to(x.dtype), *given[1:]

    hook = linear.register_forward_pre_hook(multiply)
    try:
        yield
    finally:
        hook.remove()
