"""The sentences that units are scored on, and pairs with scores that models are compared on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simcse_fast.errors import InputError
from simcse_fast.training.texts import label, read_scored_pairs

POSITIVE_ABOVE = 4.0  # of scores 0 to 5, as SimCSE takes its pairs for alignment
PAIR, SCORED = 2, 3


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
        InputError: the pairs cannot be read, or none is positive.
    """
    if not _unscored(pairs):
        scored = scored_pairs(pairs, "pairs")
        return sentences_of(scored, positive_above, "pairs"), scored
    first, second = (list(column) for column in zip(*_checked(pairs), strict=True))
    return _calibration(first, second, [True] * len(first)), None


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
    return _calibration(scored.first, scored.second, positive)


def _calibration(first: list[str], second: list[str], positive: list[bool]) -> Calibration:
    texts = list(dict.fromkeys([*first, *second]))
    place = {text: row for row, text in enumerate(texts)}
    chosen = [(place[a], place[b]) for a, b, p in zip(first, second, positive, strict=True) if p]
    columns = torch.tensor(chosen).T
    return Calibration(texts, columns[0], columns[1])


def scored_pairs(source: Any, argument: str) -> Scored:
    """Pairs with scores, from a path or from memory."""
    return Scored(*read_scored_pairs(source, argument))


def _unscored(pairs: Any) -> bool:
    """Whether these are pairs of texts in memory, without scores."""
    if isinstance(pairs, str | Mapping) or not isinstance(pairs, Iterable):
        return False
    first = next(iter(pairs), None) if isinstance(pairs, list | tuple) else None
    return isinstance(first, list | tuple) and len(first) == PAIR


def _checked(pairs: list[Any]) -> list[Any]:
    for row, pair in enumerate(pairs):
        if not isinstance(pair, list | tuple) or len(pair) != PAIR:
            length = len(pair) if isinstance(pair, list | tuple) else type(pair).__name__
            raise InputError(f"pairs: row {row} has {length} fields; expected {PAIR} as row 0 has")
        if not all(isinstance(text, str) for text in pair):
            raise InputError(f"pairs: row {row} of {label(pairs)} holds something else than text")
    return pairs
