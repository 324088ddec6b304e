"""Alignment of positive pairs and uniformity of all sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from simcse_fast.errors import InputError
from simcse_fast.metrics import alignment, uniformity

if TYPE_CHECKING:
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
        alike = [row for row, score in enumerate(pairs.scores) if score > ALIKE]
        if not alike:
            raise InputError(f"{task.name}: no pair of {pairs.file} has a score above {ALIKE:g}.")
        sides = [[side[row] for row in alike] for side in (pairs.first, pairs.second)]
        value = alignment(*(torch.from_numpy(embed(side)) for side in sides))
        about = {"measure": "mean squared distance of positive pairs", "count": len(alike)}
    else:
        # A sentence that occurs twice would be a pair of its own, at distance 0.
        texts = list(dict.fromkeys(pairs.texts))
        if len(texts) < 2:  # noqa: PLR2004 - a pair
            raise InputError(f"{task.name}: {pairs.file} holds one sentence; expected two.")
        value = uniformity(torch.from_numpy(embed(texts)))
        about = {"measure": "log mean Gaussian potential", "count": len(texts)}
    return float(value), {**about, "all": float(value), "notes": []}
