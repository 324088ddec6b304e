"""Take units out of a model, which stays a normal model of transformers.

Its configurations have one number of neurons for all layers, and one number of heads that the width
is divided by. So layers get as many neurons as the widest needs, the others' rest being zero, and
heads are zeroed where they are. Both sides of a zeroed unit are zero: no gradient brings it back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from simcse_fast.sparsity.layouts import units_of
from simcse_fast.sparsity.selection import MULTIPLE

if TYPE_CHECKING:
    from simcse_fast.sparsity.layouts import Layout, Units
    from simcse_fast.sparsity.selection import Selection


@torch.no_grad()
def remove(transformer: Any, selection: Selection, layout: Layout | None = None) -> None:
    """Take them out of the model itself."""
    units = units_of(transformer, layout)
    _zero_heads(units, selection)
    width = width_of(selection)
    for place, layer in enumerate(units.layers):
        kept = selection.neurons[place].nonzero()[:, 0].to(layer.down.weight.device)
        *ups, down = layer.homes
        for home, up in zip(ups, layer.up, strict=True):
            setattr(*home, _rows(up, kept, width))
        setattr(*down, _columns(layer.down, kept, width))
    setattr(transformer.config, units.width, width)


def width_of(selection: Selection) -> int:
    """Of the matrices: the widest layer's, to a multiple of 8, but not more than there was."""
    widest = max(MULTIPLE, *selection.widths)
    return min(-(-widest // MULTIPLE) * MULTIPLE, selection.neurons.shape[1])


def _zero_heads(units: Units, selection: Selection) -> None:
    for layer, kept in zip(units.layers, selection.heads, strict=True):
        gone = (~kept).repeat_interleave(units.depth).to(layer.out.weight.device)
        layer.out.weight[:, gone] = 0
        layer.value.weight[gone] = 0
        if layer.value.bias is not None:
            layer.value.bias[gone] = 0


def _rows(linear: nn.Linear, kept: Tensor, width: int) -> nn.Linear:
    """With the rows that are kept, and zeros below."""
    new = _like(linear, linear.in_features, width)
    new.weight[: len(kept)] = linear.weight[kept]
    if linear.bias is not None:
        new.bias[: len(kept)] = linear.bias[kept]
    return new


def _columns(linear: nn.Linear, kept: Tensor, width: int) -> nn.Linear:
    """With the columns that are kept, and zeros behind."""
    new = _like(linear, width, linear.out_features)
    new.weight[:, : len(kept)] = linear.weight[:, kept]
    if linear.bias is not None:
        new.bias.copy_(linear.bias)
    return new


def _like(linear: nn.Linear, inputs: int, outputs: int) -> nn.Linear:
    weight = linear.weight
    new = nn.Linear(
        inputs, outputs, linear.bias is not None, device=weight.device, dtype=weight.dtype
    )
    for mine, theirs in zip(new.parameters(), linear.parameters(), strict=True):
        mine.zero_()
        mine.requires_grad_(theirs.requires_grad)
    return new.train(linear.training)
