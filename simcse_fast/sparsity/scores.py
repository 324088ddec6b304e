"""What each unit contributes to alignment and uniformity, by gradients of its factor.

The losses are those of the whole calibration set. Everything is embedded once without graphs; the
losses' gradients of the embeddings are then taken back through the model a batch at a time, as in
gradient caching: two forward passes and two backward ones in all, whatever the size of the set.
Factors have a row for each sentence, so that one backward pass gives the sentences' own shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from simcse_fast.metrics import alignment, uniformity
from simcse_fast.progress import bar
from simcse_fast.sparsity.embedder import Embedder, batches
from simcse_fast.sparsity.factors import factors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from simcse_fast.sparsity.calibration import Calibration
    from simcse_fast.sparsity.layouts import Units

LOSSES = ("alignment", "uniformity")
TINY = 1e-7  # added to a layer's norm


@dataclass(frozen=True)
class Gradients:
    """dL / dxi of one kind of unit, for one loss over the whole set."""

    total: Tensor  # (layers, units) fp64: of the set
    absolute: Tensor  # (layers, units) fp64: the sentences' shares, each by its size


@dataclass(frozen=True)
class Scores:
    """Of heads and neurons, for both losses."""

    heads: dict[str, Gradients]
    neurons: dict[str, Gradients]
    losses: dict[str, float]  # of the calibration set

    def combined(self, kind: str, balance: float, aggregate: str) -> Tensor:
        """S = balance S_align + (1 - balance) S_uniform, each of unit length in every layer."""
        found = getattr(self, kind)
        by_loss = {name: getattr(found[name], aggregate).abs() for name in LOSSES}
        parts = {name: s / (s.norm(dim=1, keepdim=True) + TINY) for name, s in by_loss.items()}
        combined: Tensor = balance * parts["alignment"] + (1 - balance) * parts["uniformity"]
        return combined


def score(embedder: Embedder, units: Units, data: Calibration, *, progress: bool) -> Scores:
    """Scores of all units."""
    layers = len(units.layers)
    sizes = {"heads": units.heads, "neurons": units.neurons}
    sums = {
        (kind, loss, how): torch.zeros(layers, size, dtype=torch.float64)
        for kind, size in sizes.items()
        for loss in LOSSES
        for how in ("total", "absolute")
    }
    with embedder.frozen():
        losses, upstream = of_embeddings(embedder.all(data.texts), data)
        leaves = partial(factors, units)
        for loss, found in cached_gradients(embedder, data, upstream, leaves, progress=progress):
            for place, gradient in enumerate(found):
                kind, layer = list(sizes)[place // layers], place % layers
                wide = gradient.double()
                sums[kind, loss, "total"][layer] += wide.sum(0).cpu()
                sums[kind, loss, "absolute"][layer] += wide.abs().sum(0).cpu()
    gradients = {
        kind: {
            loss: Gradients(sums[kind, loss, "total"], sums[kind, loss, "absolute"])
            for loss in LOSSES
        }
        for kind in sizes
    }
    return Scores(gradients["heads"], gradients["neurons"], losses)


def cached_gradients(
    embedder: Embedder,
    data: Calibration,
    upstream: dict[str, Tensor],  # of each loss: (N, D)
    leaves: Callable[[int], AbstractContextManager[Sequence[Tensor]]],  # given a batch's rows
    *,
    progress: bool,
) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Each loss's gradients of the leaves, a batch of sentences at a time."""
    with bar(len(data.texts), " sentences", "scoring", show=progress) as shown:
        for rows in batches(data.texts):
            with leaves(len(rows)) as wanted:
                embeddings = embedder([data.texts[row] for row in rows])
            for loss in LOSSES:
                back = upstream[loss][rows].to(embeddings.device)
                last = loss == LOSSES[-1]
                yield loss, torch.autograd.grad(embeddings, wanted, back, retain_graph=not last)
            if shown is not None:
                shown.update(len(rows))


def of_embeddings(
    embeddings: Tensor,  # (N, D)
    data: Calibration,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Both losses of a calibration set, and their gradients (N, D)."""
    leaf = embeddings.detach().requires_grad_()
    values = losses_of(leaf, data)
    gradients = {name: torch.autograd.grad(value, leaf)[0] for name, value in values.items()}
    return {name: value.item() for name, value in values.items()}, gradients


def losses_of(embeddings: Tensor, data: Calibration) -> dict[str, Tensor]:
    """Both losses of a calibration set, from its embeddings (N, D)."""
    pairs = embeddings[data.first], embeddings[data.second]
    return {"alignment": alignment(*pairs), "uniformity": uniformity(embeddings)}
