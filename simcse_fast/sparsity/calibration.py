"""The sentences that units are scored on, and pairs with scores that models are compared on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simcse_fast.errors import InputError
from simcse_fast.training.texts import read_pairs, read_scored_pairs

PAIR = 2  # sentences


@dataclass(frozen=True)
class Scored:
    """Sentence pairs with scores."""

    first: list[str]
    second: list[str]
    scores: list[float]


@dataclass(frozen=True)
class Calibration:
    """Distinct sentences, and which of them are positive pairs."""

    texts: list[str]
    first: Tensor  # (pairs,) int64
    second: Tensor  # (pairs,)


def calibration_of(pairs: Any, positive_above: float) -> tuple[Calibration, Scored | None]:
    """Sentences and positives; the pairs with their scores, where they have any.

    Raises:
        InputError: the pairs cannot be read, none is positive, or all are one sentence.
    """
    first, second, scores = read_pairs(pairs, "pairs")
    if scores is None:
        return _calibration(first, second, [True] * len(first), "pairs"), None
    scored = Scored(first, second, scores)
    return sentences_of(scored, positive_above, "pairs"), scored


def sentences_of(scored: Scored, positive_above: float, argument: str) -> Calibration:
    """The sentences of pairs with scores, and those that are positive.

    Raises:
        InputError: none is.
    """
    positive = [score > positive_above for score in scored.scores]
    if not any(positive):
        raise InputError(
            f"{argument}: none of {len(positive)} pairs has a score above {positive_above:g}, so "
            "there is no positive pair; see positive_above"
        )
    return _calibration(scored.first, scored.second, positive, argument)


def _calibration(
    first: list[str], second: list[str], positive: list[bool], argument: str
) -> Calibration:
    texts = list(dict.fromkeys([*first, *second]))
    if len(texts) < PAIR:
        raise InputError(f"{argument}: expected two or more distinct sentences, got {len(texts)}")
    place = {text: row for row, text in enumerate(texts)}
    chosen = [(place[a], place[b]) for a, b, p in zip(first, second, positive, strict=True) if p]
    columns = torch.tensor(chosen).T
    return Calibration(texts, columns[0], columns[1])


def scored_pairs(source: Any, argument: str) -> Scored:
    """Pairs with scores, from a path or from memory."""
    return Scored(*read_scored_pairs(source, argument))
