"""The matrix of co-occurrence counts itself, as scipy CSR or as Parquet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simcse_fast.files import written_whole
from simcse_fast.information.ids import told
from simcse_fast.kernels.cooccurrence.numba_rows import collect_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from pathlib import Path

    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    from simcse_fast.kernels.cooccurrence.engine import Corpus, Counted, Index

    Triples = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

MOST = 1 << 22  # pairs that are collected at a time, or those of one row


def pairs_of_rows(index: Index, corpus: Corpus, shown: int) -> Iterator[Triples]:
    """(word, other, count) of the pairs of an index among the first `shown` words, other < word."""
    first, starts, spans = index.rows
    rows = min(shown, first + len(starts) - 1) - first
    if rows <= 0:
        return
    entries = np.zeros(starts[rows] + 1, np.int64)
    np.cumsum(spans[: starts[rows], 1] - spans[: starts[rows], 0], out=entries[1:], dtype=np.int64)
    ends = entries[starts[: rows + 1]]
    cuts = np.searchsorted(ends, np.arange(0, int(ends[-1]) + MOST, MOST))
    count = np.zeros(len(corpus.counts), corpus.kind)
    for low, high in pairwise(np.unique([0, *np.minimum(cuts, rows), rows]).tolist()):
        room = int(ends[high] - ends[low])
        others, times, after = np.empty(room, np.uint32), np.empty(room, np.int64), ends * 0
        share = (low, high)
        packing, window = corpus.packing, corpus.window > 0
        collect_rows(index.entries, packing, index.rows, share, window, count, others, times, after)
        found = np.diff(after[low:high], prepend=0)
        words = np.repeat(np.arange(first + low, first + high), found)
        yield words, others[: len(words)].astype(np.int64), times[: len(words)]


def pairs_of_triangle(counted: Counted, shown: int) -> Iterator[Triples]:
    """Those of the first words, and of every word with itself."""
    dense = len(counted.terms.own) - len(counted.load)
    words, others = np.tril_indices(min(dense, shown), -1)
    times = counted.triangle[: len(words)].astype(np.int64)
    kept = times > 0
    yield words[kept], others[kept], times[kept]
    own = np.flatnonzero(counted.terms.own[:shown])
    yield own, own, counted.terms.own[own]


class Pairs(ABC):
    """Takes the pairs of the first `shown` words, a range of rows after the other."""

    shown: int

    @abstractmethod
    def add(self, triples: Iterator[Triples]) -> None:
        """More pairs."""

    def visit(self, index: Index, corpus: Corpus) -> None:
        """Those of a range of rows."""
        self.add(pairs_of_rows(index, corpus, self.shown))


class MatrixOfPairs(Pairs):
    """Collects pairs for a matrix in memory."""

    def __init__(self, shown: int) -> None:
        self.shown, self.parts = shown, list[Any]()

    def add(self, triples: Iterator[Triples]) -> None:
        """More pairs."""
        self.parts += [
            (words.astype(np.int32), others.astype(np.int32), times)
            for words, others, times in triples
        ]

    def finish(self, counted: Counted) -> csr_array:
        """The symmetric matrix."""
        from scipy import sparse  # noqa: PLC0415 - for who wants the matrix

        self.add(pairs_of_triangle(counted, self.shown))
        words, others, times = (
            np.concatenate(columns) for columns in zip(*self.parts, strict=True)
        )
        self.parts = []
        lower = sparse.csr_array((times, (words, others)), (self.shown, self.shown))
        diagonal = sparse.diags_array(lower.diagonal(), dtype=np.int64)
        whole = (lower + lower.T - diagonal).tocsr()
        whole.eliminate_zeros()
        whole.sort_indices()
        return whole


class FileOfPairs(Pairs):
    """Writes pairs to Parquet: columns word, other, count; each unordered pair once."""

    SCHEMA = pa.schema({"word": pa.large_string(), "other": pa.large_string(), "count": pa.int64()})

    def __init__(self, path: Path, end: ExitStack, vocabulary: pa.Array, shown: int) -> None:
        self.shown, self.vocabulary = shown, vocabulary.cast(pa.large_string())
        self.told = partial(told, path, "return_counts", "name another file")
        with self.told():
            unfinished = end.enter_context(written_whole(path))
            self.writer = pq.ParquetWriter(unfinished, self.SCHEMA)

    def add(self, triples: Iterator[Triples]) -> None:
        """More pairs."""
        for words, others, times in triples:
            columns = (self.vocabulary.take(pa.array(ids)) for ids in (words, others))
            with self.told():
                self.writer.write_table(pa.table([*columns, pa.array(times)], schema=self.SCHEMA))

    def finish(self, counted: Counted) -> None:
        """Write what needed no rows, and close the file."""
        self.add(pairs_of_triangle(counted, self.shown))
        with self.told():
            self.writer.close()
