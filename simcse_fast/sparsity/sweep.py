"""The same model at several sparsities, by our scores, by magnitude and at random."""

from __future__ import annotations

from functools import partial
from math import isnan
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional as F

from simcse_fast.errors import InputError
from simcse_fast.progress import bar
from simcse_fast.sparsity.scores import losses_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from simcse_fast.sparsity.calibration import Calibration, Scored
    from simcse_fast.sparsity.embedder import Embedder

OURS, MAGNITUDE, RANDOM = "SparseCSE", "magnitude", "random"


class Method(Protocol):
    """A way to remove parameters: `Structured` or `Unstructured`, each with its own scores."""

    embedder: Embedder

    def scores(self, data: Calibration, balance: float, *, progress: bool) -> Any:
        """What each parameter contributes."""

    def magnitudes(self) -> Any:
        """Scores by the size of weights."""

    def random(self, seed: int) -> Any:
        """Scores by chance."""

    def select(self, scores: Any, sparsity: float) -> Any:
        """What stays."""

    def removed(self, selection: Any) -> dict[str, float]:
        """Share of each kind of unit, or of the weights, that is gone."""

    def without(self, selection: Any) -> AbstractContextManager[None]:
        """The model without what the selection drops."""

    def apply(self, transformer: Any, selection: Any) -> None:
        """Take it out of a model of the same shape."""


class Measure:
    """What a model is judged by: pairs with scores, and the losses over their sentences.

    Args:
        scored: the pairs.
        data: their sentences and positives; None: only the correlation is wanted.
    """

    def __init__(self, scored: Scored, data: Calibration | None) -> None:
        self.scored, self.data = scored, data
        self.texts = list(dict.fromkeys([*scored.first, *scored.second]))
        place = {text: row for row, text in enumerate(self.texts)}
        self.first = torch.tensor([place[text] for text in scored.first])
        self.second = torch.tensor([place[text] for text in scored.second])

    def __call__(self, embedder: Embedder) -> dict[str, float]:
        """Spearman's correlation x 100 of cosines with scores, alignment and uniformity."""
        from scipy.stats import spearmanr  # noqa: PLC0415 - slow, and optional

        embeddings = embedder.all(self.texts)
        cosines = F.cosine_similarity(embeddings[self.first], embeddings[self.second])
        found = {"spearman": 100 * float(spearmanr(cosines.numpy(), self.scored.scores)[0])}
        if self.data is None:
            return found
        losses = losses_of(embeddings, self.data)
        return found | {name: value.item() for name, value in losses.items()}


def sweep(
    method: Method,
    scores: Any,
    sparsities: Sequence[float],
    measures: dict[str, Measure],  # development, and test if there is one
    *,
    compare: Sequence[str],
    seeds: int,
    progress: bool,
) -> list[dict[str, Any]]:
    """A row for each sparsity and criterion; random has one for each seed. Test: ours alone."""
    criteria: list[tuple[str, int | None, Callable[[], Any]]] = [(OURS, None, lambda: scores)]
    if MAGNITUDE in compare:
        criteria.append((MAGNITUDE, None, method.magnitudes))
    if RANDOM in compare:
        criteria += [(RANDOM, seed, partial(method.random, seed)) for seed in range(seeds)]
    removing = [sparsity for sparsity in sparsities if sparsity]
    models = len(sparsities) + len(removing) * (len(criteria) - 1)
    rows = []
    with bar(models, " models", "comparing", show=progress) as shown:
        for name, seed, scored in criteria:
            given = scored()
            # Where nothing is removed, all are the same.
            for sparsity in sparsities if name == OURS else removing:
                selection = method.select(given, sparsity)
                row: dict[str, Any] = {"sparsity": sparsity, "criterion": name, "seed": seed}
                row |= {f"removed_{kind}": x for kind, x in method.removed(selection).items()}
                with method.without(selection):
                    row |= measures["development"](method.embedder)
                    if "test" in measures and name == OURS:
                        row["test_spearman"] = measures["test"](method.embedder)["spearman"]
                rows.append(row)
                if shown is not None:
                    shown.update(1)
    return rows


def best(rows: Sequence[dict[str, Any]]) -> float:
    """The sparsity of ours that did best on the development pairs; of equals the highest."""
    ours = [row for row in rows if row["criterion"] == OURS and not isnan(row["spearman"])]
    if not ours:
        raise InputError("model: all its cosines are the same at each sparsity; there is no best")
    top: float = max(ours, key=lambda row: (row["spearman"], row["sparsity"]))["sparsity"]
    return top
