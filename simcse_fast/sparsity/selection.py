"""Which units go: the lowest scores first, over all layers or in each alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from simcse_fast.sparsity.layouts import Units

MULTIPLE = 8  # of which the width of matrices is one
KINDS = ("heads", "neurons")


@dataclass(frozen=True)
class Selection:
    """What stays: True."""

    heads: Tensor  # (layers, heads of a layer) bool
    neurons: Tensor  # (layers, neurons of a layer) bool

    @property
    def widths(self) -> list[int]:
        """Neurons that stay in each layer."""
        return [int(n) for n in self.neurons.sum(1)]

    @property
    def head_counts(self) -> list[int]:
        """Heads that stay in each layer."""
        return [int(n) for n in self.heads.sum(1)]

    @property
    def removed(self) -> dict[str, float]:
        """Share of each kind that goes."""
        return {kind: 1 - getattr(self, kind).double().mean().item() for kind in KINDS}


def select(
    scores: dict[str, Tensor],  # of the kinds that may go: (layers, units)
    sparsity: float,
    units: Units,
    allocation: str = "global",
) -> Selection:
    """Drop the lowest share of each kind: of all layers together, or ("layer") of each layer.

    Heads and neurons are ordered apart, as one head weighs as much as many neurons. Where layers
    are treated alike, so that their matrices shrink, a multiple of 8 neurons stays in each.
    """
    layers = len(units.layers)
    keep = {
        "heads": torch.ones(layers, units.heads, dtype=torch.bool),
        "neurons": torch.ones(layers, units.neurons, dtype=torch.bool),
    }
    for kind, score in scores.items():
        counts = _kept(score, sparsity, allocation)
        if kind == "neurons" and allocation == "layer":
            counts = [_rounded(count, units.neurons) for count in counts]
        for layer, count in enumerate(counts):
            lowest = score[layer].argsort(stable=True)[: score.shape[1] - count]
            keep[kind][layer, lowest] = False
    return Selection(keep["heads"], keep["neurons"])


def _kept(score: Tensor, sparsity: float, allocation: str) -> list[int]:
    layers, each = score.shape
    if allocation == "layer":
        return [each - round(sparsity * each)] * layers
    lowest = score.flatten().argsort(stable=True)[: round(sparsity * score.numel())]
    gone = torch.bincount(lowest // each, minlength=layers)
    return [each - int(n) for n in gone]


def _rounded(count: int, most: int) -> int:
    """To the nearest multiple that is not none."""
    return min(most, max(MULTIPLE, MULTIPLE * math.floor(count / MULTIPLE + 0.5)))


def random_scores(units: Units, seed: int) -> dict[str, Tensor]:
    """Units in random order."""
    g = torch.Generator().manual_seed(seed)
    layers = len(units.layers)
    return {
        "heads": torch.rand(layers, units.heads, generator=g),
        "neurons": torch.rand(layers, units.neurons, generator=g),
    }


def magnitude_scores(units: Units) -> dict[str, Tensor]:
    """Length of a unit's weights, of what makes it and what reads it, over its layer's norm."""
    heads, neurons = [], []
    for layer in units.layers:
        made = layer.value.weight.detach().double().view(units.heads, -1).square().sum(1)
        read = layer.out.weight.detach().double().square().sum(0).view(units.heads, -1).sum(1)
        heads.append((made + read).sqrt())
        ups = sum(up.weight.detach().double().square().sum(1) for up in layer.up)
        neurons.append((ups + layer.down.weight.detach().double().square().sum(0)).sqrt())
    found = {"heads": torch.stack(heads).cpu(), "neurons": torch.stack(neurons).cpu()}
    return {kind: s / s.norm(dim=1, keepdim=True) for kind, s in found.items()}
