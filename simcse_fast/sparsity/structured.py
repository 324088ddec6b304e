"""Heads and neurons: scored, compared, and taken out."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from simcse_fast.sparsity.layouts import check_same_shape, units_of
from simcse_fast.sparsity.masks import masked
from simcse_fast.sparsity.removal import remove
from simcse_fast.sparsity.scores import score
from simcse_fast.sparsity.selection import magnitude_scores, random_scores, select

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from simcse_fast.sparsity.calibration import Calibration
    from simcse_fast.sparsity.embedder import Embedder
    from simcse_fast.sparsity.layouts import Layout
    from simcse_fast.sparsity.selection import Selection


class Structured:
    """Units of a model: what `sweep` asks of a way to remove parameters.

    Args:
        embedder: the model.
        layout: of its family, where that is not known.
        kinds: heads, neurons or both.
        allocation: "global" or "layer".
        aggregate: "absolute" (sentences) or "total" (set), see `Gradients`.
    """

    def __init__(
        self,
        embedder: Embedder,
        layout: Layout | None,
        kinds: Sequence[str],
        allocation: str,
        aggregate: str,
    ) -> None:
        self.embedder, self.layout, self.kinds = embedder, layout, tuple(kinds)
        self.allocation, self.aggregate = allocation, aggregate
        self.units = units_of(embedder.transformer, layout)

    def scores(self, data: Calibration, balance: float, *, progress: bool) -> dict[str, Tensor]:
        """Of each kind, (layers, units)."""
        self.gradients = score(self.embedder, self.units, data, progress=progress)
        self.data = data
        return {kind: self.gradients.combined(kind, balance, self.aggregate) for kind in self.kinds}

    def magnitudes(self) -> dict[str, Tensor]:
        """Scores by the size of weights."""
        return magnitude_scores(self.units)

    def random(self, seed: int) -> dict[str, Tensor]:
        """Scores by chance."""
        return random_scores(self.units, seed)

    def select(self, scores: dict[str, Tensor], sparsity: float) -> Selection:
        """What stays."""
        some = {kind: scores[kind] for kind in self.kinds}
        return select(some, sparsity, self.units, self.allocation)

    def removed(self, selection: Selection) -> dict[str, float]:
        """Share of each kind that goes."""
        return {kind: share for kind, share in selection.removed.items() if kind in self.kinds}

    @contextmanager
    def without(self, selection: Selection) -> Iterator[None]:
        """The model without what the selection drops."""
        device = next(self.embedder.transformer.parameters()).device
        heads, neurons = (
            [None if bool(kept.all()) else kept.float().to(device) for kept in kind]
            for kind in (selection.heads, selection.neurons)
        )
        with self.embedder.frozen(), masked(self.units, heads, neurons):
            yield

    def apply(self, transformer: Any, selection: Selection) -> None:
        """Take it out of a model of the same shape."""
        check_same_shape(transformer, self.units, self.layout, "model")
        remove(transformer, selection, self.layout)
