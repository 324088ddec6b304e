"""Semantic similarity: how far the order of cosines is that of people's scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import spearmanr

from simcse_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from simcse_fast.evaluation.rows import Pairs
    from simcse_fast.evaluation.tasks import Task

    Embed = Callable[[list[str]], NDArray[np.float32]]

FEW = 2  # pairs that have an order


def correlate(task: Task, pairs: Pairs, embed: Embed) -> tuple[float, dict[str, Any]]:
    """Spearman's correlation x 100 over all pairs, and of the sub-sets.

    Raises:
        ValueError: the gold scores have no order.
    """
    if len(pairs.scores) < FEW or np.ptp(pairs.scores) == 0:
        raise InputError(
            f"{task.name}: all {len(pairs.scores)} gold scores of {pairs.file} are "
            f"{pairs.scores[0]:g}; expected two or more that differ."
        )
    similarity = cosines(embed(pairs.first), embed(pairs.second))
    sources = np.array(pairs.sources)
    subsets = {
        source: spearman(similarity[sources == source], pairs.scores[sources == source])
        for source in dict.fromkeys(pairs.sources)
    }
    score = spearman(similarity, pairs.scores)
    known = [one for one in subsets.values() if np.isfinite(one)]
    details = {
        "measure": "Spearman x 100",
        "all": score,
        "mean": float(np.mean(known)) if known else float("nan"),
        "subsets": subsets,
        "count": len(pairs.scores),
        "dropped": pairs.dropped,
        "notes": notes_of(task, pairs, score, subsets),
    }
    return score, details


def notes_of(task: Task, pairs: Pairs, score: float, subsets: dict[str, float]) -> list[str]:
    """What a reader of the score should know."""
    notes = []
    count = len(pairs.scores)
    if task.pairs is not None and count != task.pairs:
        notes.append(f"{count:,} pairs, where {task.pairs:,} are published")
    if not np.isfinite(score):
        notes.append("all pairs have the same cosine, which has no order")
    elif lost := [name for name, one in subsets.items() if not np.isfinite(one)]:
        notes.append(f"no correlation, and no part of the mean: {', '.join(lost)}")
    return notes


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, D), (N, D) -> (N,); 0 beside a zero row."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    found: NDArray[np.float64] = (x * y).sum(axis=1) / np.where(lengths > 0, lengths, 1)
    return found


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Rank correlation x 100; NaN where one side has no order."""
    if len(a) < FEW or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return 100 * float(spearmanr(a, b).statistic)
