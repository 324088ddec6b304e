"""Words in sentences as points: what the corpus knows of a word, and what encoders make of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from simcse_fast.studies.words import relative, weights_of, words_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from simcse_fast.information import InformationTable
    from simcse_fast.studies.words import Word

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

UNKNOWN = -1


@dataclass(frozen=True)
class Coverage:
    """How many words of a set of sentences became points."""

    words: int  # in its sentences, repeats counted
    known: int  # that the corpus has often enough
    points: int  # that every encoder has a weight for, too

    @property
    def unknown_share(self) -> float:
        """Share of the words that the corpus lacks, or has too rarely."""
        return 1 - self.known / self.words if self.words else 0.0


@dataclass(frozen=True)
class Points:
    """Words of sentences under one method.

    Attributes:
        sentence: (points,) where the word stands.
        row: (points,) of the information table.
        weights: (points,) of each encoder, relative to an even share.
        coverage: what became of the words.
    """

    sentence: Ints
    row: Ints
    weights: dict[str, Floats]
    coverage: Coverage

    def by_word(self) -> Points:
        """One point a word: the mean of its weights, wherever it stands."""
        row, number = np.unique(self.row, return_inverse=True)
        times = np.bincount(number)
        means = {name: np.bincount(number, weight) / times for name, weight in self.weights.items()}
        return Points(row, row, means, self.coverage)

    def only(self, kept: NDArray[np.bool_]) -> Points:
        """Some of the points."""
        weights = {name: weight[kept] for name, weight in self.weights.items()}
        return Points(self.sentence[kept], self.row[kept], weights, self.coverage)


@dataclass(frozen=True)
class Vocabulary:
    """Rows of an information table by word."""

    rows: dict[str, int]

    @classmethod
    def of(cls, table: InformationTable) -> Vocabulary:
        """Of words whose information is a number."""
        finite = np.isfinite(table.column("information_gain"))
        words = table.column("word").tolist()
        return cls({word: row for row, word in enumerate(words) if finite[row]})

    def numbers(self, words: Sequence[Word]) -> Ints:
        """(words,) rows, UNKNOWN for words that the table lacks."""
        return np.array([self.rows.get(word.text, UNKNOWN) for word in words], np.int64)


def points_of(
    sentences: Sequence[str], tables: Mapping[str, Path], vocabulary: Vocabulary
) -> Points:
    """Join the attributions of one set of sentences, a table for each encoder, with the corpus.

    Only words that all encoders have a weight for become points: the same for all.
    """
    words = [words_of(sentence) for sentence in sentences]
    weights = {name: weights_in(path, words) for name, path in tables.items()}
    row = np.concatenate([np.zeros(0, np.int64), *map(vocabulary.numbers, words)])
    sentence = np.repeat(np.arange(len(words)), [len(own) for own in words])
    known = row != UNKNOWN
    kept = known & np.all([np.isfinite(weight) for weight in weights.values()], axis=0)
    coverage = Coverage(len(row), int(known.sum()), int(kept.sum()))
    return Points(sentence, row, weights, coverage).only(kept)


def weights_in(path: Path, words: Sequence[Sequence[Word]]) -> Floats:
    """(words of all sentences,) relative weights from a table of `attribute_file`."""
    table = pq.read_table(path, columns=["starts", "ends", "scores"])
    found = [np.zeros(0)]
    columns = [table[name].to_pylist() for name in ("starts", "ends", "scores")]
    for own, starts, ends, scores in zip(words, *columns, strict=True):
        spans = list(zip(starts, ends, strict=True))
        found.append(relative(weights_of(own, spans, np.array(scores, np.float64))))
    return np.concatenate(found)
