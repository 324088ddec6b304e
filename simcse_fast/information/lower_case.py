"""Words numbered in lower case at once, where spellings must not meet late.

The splitter folds ASCII; what other scripts spell in two ways are two entries of its table until
all is read. Whoever counts sets of words, or numbers by a given vocabulary, cannot wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from simcse_fast.information.sentences import Sentences, from_arrow
from simcse_fast.kernels.cooccurrence.numba_sentences import drop_repeats
from simcse_fast.kernels.text.numba_kernels import Words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def spelled(words: Words, first: int = 0) -> pa.LargeStringArray:
    """A table's entries from `first` on, zero copy: lower-cased where they are ASCII."""
    table, last = words.table, words.known
    ends = pa.py_buffer(table.ends[first : last + 1])
    return pa.LargeStringArray.from_buffers(last - first, ends, pa.py_buffer(table.letters))


def lower_cased(words: pa.LargeStringArray) -> tuple[Array, pa.LargeStringArray]:
    """Rows of the words that are not ASCII, and how Python lower-cases those."""
    rows = np.flatnonzero(~pc.string_is_ascii(words).to_numpy(zero_copy_only=False))
    lower = [word.lower() for word in words.take(rows).to_pylist()]
    return rows, pa.array(lower, pa.large_string())


def in_lower_case(words: Words) -> pa.LargeStringArray:
    """All entries of a table in lower case; what other scripts spell in two ways comes twice."""
    every = spelled(words)
    rows, lower = lower_cased(every)
    mask = np.zeros(len(every), bool)
    mask[rows] = True
    return pc.replace_with_mask(every, mask, lower)


class Numbering:
    """Numbers words in lower case, those of a vocabulary by their place in it."""

    def __init__(self, vocabulary: pa.LargeStringArray | None = None) -> None:
        self.words = Words()
        self.lower = np.empty(0, np.uint32)  # of each entry of the table: the one in lower case
        if vocabulary is not None:
            known = from_arrow(vocabulary, "vocabulary")
            self.lower = self.words.number(known.data, known.starts)[0]

    def __call__(self, sentences: Sentences) -> tuple[Array, Array]:
        """Ids (tokens,) and the number of tokens of each sentence."""
        ids, sizes = self.words.number(sentences.data, sentences.starts)
        self._enter_lower_case()
        return self.lower[ids], sizes

    def _enter_lower_case(self) -> None:
        """Python lower-cases what is not ASCII; what comes of it is numbered like any text."""
        first, known = len(self.lower), self.words.known
        other, lower = lower_cased(spelled(self.words, first))
        text = from_arrow(lower, "words")
        found = self.words.number(text.data, text.starts)[0]
        added = np.arange(first, self.words.known, dtype=np.uint32)
        added[: known - first][other] = found
        self.lower = np.concatenate([self.lower, added])


class Sets:
    """Makes sets of sentences, part by part."""

    def __init__(self) -> None:
        self.seen, self.sentences = np.zeros(0, np.int64), 1

    def __call__(self, ids: Array, sizes: Array) -> Array:
        """The ids without a sentence's repeats; the sizes are corrected in place."""
        self.seen = grown(self.seen, int(ids.max()) + 1 if len(ids) else 0)
        kept = drop_repeats(ids, sizes, self.seen, self.sentences)
        self.sentences += len(sizes)
        return ids[:kept]


def grown(array: Array, size: int) -> Array:
    """With zeros behind it, room to spare."""
    if size <= len(array):
        return array
    return np.concatenate([array, np.zeros(2 * size - len(array), array.dtype)])
