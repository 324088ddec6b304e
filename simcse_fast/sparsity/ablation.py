"""What happens to the losses when one unit is removed: the truth that scores are to predict."""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from simcse_fast.progress import bar
from simcse_fast.sparsity.embedder import batches
from simcse_fast.sparsity.masks import masked
from simcse_fast.sparsity.scores import LOSSES, losses_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from simcse_fast.sparsity.calibration import Calibration
    from simcse_fast.sparsity.embedder import Embedder
    from simcse_fast.sparsity.layouts import Units
    from simcse_fast.sparsity.structured import Structured

TOGETHER = 32  # units whose embeddings are in memory at once


@dataclass(frozen=True)
class Unit:
    """One head or neuron."""

    kind: str  # heads or neurons
    layer: int
    index: int


def ablate(
    embedder: Embedder,
    units: Units,
    data: Calibration,
    chosen: Sequence[Unit],
    *,
    progress: bool = False,
) -> list[dict[str, float]]:
    """L(xi = 0) - L(xi = 1) of both losses, for each unit by itself, in the order given.

    The layers before a unit's are not run again.
    """
    order = sorted(range(len(chosen)), key=lambda place: chosen[place].layer)
    changes: list[dict[str, float]] = [{} for _ in chosen]
    with embedder.frozen(), torch.no_grad():
        whole = losses_of(embedder.all(data.texts), data)
        with bar(len(chosen), " units", "removing", show=progress) as shown:
            for begin in range(0, len(order), TOGETHER):
                places = order[begin : begin + TOGETHER]
                found = _without(embedder, units, data.texts, [chosen[n] for n in places])
                for place, embeddings in zip(places, found, strict=True):
                    losses = losses_of(embeddings, data)
                    changes[place] = {name: (losses[name] - whole[name]).item() for name in whole}
                if shown is not None:
                    shown.update(len(places))
    return changes


def check_predictions(
    method: Structured, count: int, seed: int, *, progress: bool
) -> dict[str, Any]:
    """Whether scores predict what removing does; see `Sparsified.check`."""
    from scipy.stats import spearmanr  # noqa: PLC0415 - slow, and optional

    chosen = draw(method, count, seed)
    changes = ablate(method.embedder, method.units, method.data, chosen, progress=progress)
    found: dict[str, Any] = {
        "units": {kind: sum(unit.kind == kind for unit in chosen) for kind in method.kinds}
    }
    for loss in LOSSES:
        predicted = [
            -float(getattr(method.gradients, unit.kind)[loss].total[unit.layer, unit.index])
            for unit in chosen
        ]
        found[loss] = float(spearmanr(predicted, [change[loss] for change in changes])[0])
    return found


def draw(method: Structured, count: int, seed: int) -> list[Unit]:
    """Units at random, half of them heads as far as there are."""
    layers = range(len(method.units.layers))
    sizes = {"heads": method.units.heads, "neurons": method.units.neurons}
    every = {
        kind: [Unit(kind, layer, n) for layer in layers for n in range(sizes[kind])]
        for kind in method.kinds
    }
    drawn = random.Random(seed)  # noqa: S311 - not for secrets
    chosen: list[Unit] = []
    for place, units in enumerate(every.values()):
        share = count - len(chosen) if place == len(every) - 1 else count // 2
        chosen += drawn.sample(units, min(share, len(units)))
    return chosen


def _without(
    embedder: Embedder, units: Units, texts: Sequence[str], removed: Sequence[Unit]
) -> Tensor:
    """Embeddings (units, N, D) of a model that lacks one unit each time."""
    rows_of: list[int] = []
    parts = []
    for rows in batches(texts):
        some = [texts[row] for row in rows]
        with _outputs(units) as outputs:
            embedder(some)
        found = []
        for unit in removed:
            with _resumed(units, outputs, unit.layer), _one(embedder, units, unit):
                found.append(embedder(some).cpu())
        parts.append(torch.stack(found))
        rows_of += rows
    return torch.cat(parts, 1)[:, torch.tensor(rows_of).argsort()]


@contextmanager
def _outputs(units: Units) -> Iterator[list[Any]]:
    """What each layer gives, filled by a run."""
    found: list[Any] = []
    hooks = [
        layer.module.register_forward_hook(lambda _m, _i, output: found.append(output))
        for layer in units.layers
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _resumed(units: Units, outputs: list[Any], first: int) -> Iterator[None]:
    """The layers before the first give what they gave."""
    skipped = [layer.module for layer in units.layers[:first]]
    try:
        for module in skipped:
            module.forward = lambda *_, **__: outputs[first - 1]
        yield
    finally:
        for module in skipped:
            del module.forward  # the class's own is back


@contextmanager
def _one(embedder: Embedder, units: Units, unit: Unit) -> Iterator[None]:
    """Without one unit."""
    size = units.heads if unit.kind == "heads" else units.neurons
    mask = torch.ones(size, device=next(embedder.transformer.parameters()).device)
    mask[unit.index] = 0
    masks: dict[str, list[Tensor | None]] = {
        kind: [None] * len(units.layers) for kind in ("heads", "neurons")
    }
    masks[unit.kind][unit.layer] = mask
    with masked(units, masks["heads"], masks["neurons"]):
        yield
