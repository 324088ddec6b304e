"""Scores of a tokenizer's pieces added up to the words that the corpus is counted in."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simcse_fast.kernels.text.reference import is_word_character

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Word(NamedTuple):
    """A word of the tokenizer "words" where it stands in a sentence."""

    text: str  # lower-cased
    start: int
    end: int


def words_of(sentence: str) -> list[Word]:
    """The words of a sentence as `information_gain` counts them.

    Example:
        >>> words_of("Don't!")
        [Word(text='don', start=0, end=3), Word(text='t', start=4, end=5)]
    """
    found, place = [], 0
    for inside, run in groupby(sentence, is_word_character):
        text = "".join(run)
        if inside:
            found.append(Word(text.lower(), place, place + len(text)))
        place += len(text)
    return found


def weights_of(
    words: Sequence[Word],
    spans: Sequence[tuple[int, int]],  # of the pieces; (0, 0) for special tokens
    scores: NDArray[np.float64],  # (pieces,)
) -> NDArray[np.float64]:
    """(words,) sums of the scores of each word's pieces.

    A word whose pieces are not its own (one of them is part of another word too), or that has none
    (cut off behind the longest text), is NaN. Pieces of no word, as punctuation, are left out.
    """
    total, pieces = np.zeros(len(words)), np.zeros(len(words), np.int64)
    shared = np.zeros(len(words), bool)
    starts = np.array([word.start for word in words], np.int64)
    ends = np.array([word.end for word in words], np.int64)
    for (start, end), score in zip(spans, scores, strict=True):
        # Words are in order and apart, so those that a piece touches are neighbours.
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(starts, end, side="left"))
        if first >= last:
            continue
        total[first:last] += score
        pieces[first:last] += 1
        shared[first:last] |= last - first > 1
    return np.where((pieces > 0) & ~shared, total, np.nan)


def relative(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights over their mean size, so that sentences of any length can be compared.

    Of n words each weight is n times its share of all absolute weights; 1 is an even share.
    """
    size = np.nanmean(np.abs(weights)) if np.isfinite(weights).any() else 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        found: NDArray[np.float64] = weights / size
    return found
