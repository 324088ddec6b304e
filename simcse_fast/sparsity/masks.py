"""Factors on heads and neurons, put into a model by hooks and taken out again."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from simcse_fast.sparsity.layouts import Units


@contextmanager
def masked(
    units: Units,
    heads: Sequence[Tensor | None],  # of each layer: (H,) or none
    neurons: Sequence[Tensor | None],  # of each layer: (F,) or none
) -> Iterator[None]:
    """While it is entered, each head's context and each neuron is multiplied by its factor."""
    places = [
        *((layer.out, mask, units.depth) for layer, mask in zip(units.layers, heads, strict=True)),
        *((layer.down, mask, 1) for layer, mask in zip(units.layers, neurons, strict=True)),
    ]
    some = [(linear, mask, wide) for linear, mask, wide in places if mask is not None]

    def multiplied(x: Tensor, place: int) -> Tensor:
        _, mask, wide = some[place]
        return x * mask.repeat_interleave(wide).to(x.dtype)

    with changed_inputs([linear for linear, _, _ in some], multiplied):
        yield


@contextmanager
def changed_inputs(
    linears: Sequence[nn.Linear], change: Callable[[Tensor, int], Tensor]
) -> Iterator[None]:
    """While it is entered, each layer gets what `change` makes of its input and its place."""

    def hook(place: int) -> Any:
        return lambda _, given: (change(given[0], place), *given[1:])

    hooks = [linear.register_forward_pre_hook(hook(n)) for n, linear in enumerate(linears)]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
