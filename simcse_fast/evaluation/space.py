"""Alignment of positive pairs and uniformity of distinct sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from simcse_fast.errors import InputError
from simcse_fast.metrics import alignment, uniformity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from simcse_fast.evaluation.correlation import Embed
    from simcse_fast.evaluation.rows import Pairs
    from simcse_fast.evaluation.tasks import Task

ALIKE = 4.0  # gold scores above it make a positive pair, as in SimCSE


def place(task: Task, pairs: Pairs, embed: Embed) -> tuple[float, dict[str, Any]]:
    """Alignment or uniformity on the sphere.

    Raises:
        ValueError: no pair is positive, or there are not two sentences.
    """
    if task.name.startswith("alignment"):
        sides = positives(pairs.first, pairs.second, pairs.scores)
        if not sides[0]:
            raise InputError(f"{task.name}: no pair of {pairs.file} has a score above {ALIKE:g}.")
        value = alignment(*(torch.from_numpy(embed(side)) for side in sides))
        about = {"measure": "mean squared distance of positive pairs", "count": len(sides[0])}
    else:
        texts = distinct(pairs.texts)
        if len(texts) < 2:  # noqa: PLR2004 - a pair
            raise InputError(f"{task.name}: {pairs.file} holds one sentence; expected two.")
        value = uniformity(torch.from_numpy(embed(texts)))
        about = {"measure": "log mean Gaussian potential", "count": len(texts)}
    return float(value), {**about, "all": float(value), "notes": []}


def positives(
    first: Sequence[str], second: Sequence[str], scores: ArrayLike, above: float = ALIKE
) -> list[list[str]]:
    """Both sides of the pairs with a higher score."""
    rows = np.flatnonzero(np.asarray(scores) > above)
    return [[side[row] for row in rows.tolist()] for side in (first, second)]


def distinct(texts: Sequence[str]) -> list[str]:
    """Each text once: one that occurs twice would be a pair of its own, at distance 0."""
    return list(dict.fromkeys(texts))
