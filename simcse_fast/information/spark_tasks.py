"""What Spark's workers run: Arrow batches in, Arrow batches out. See simcse_fast.information.spark.

Nothing of pyspark is imported here, and no Python loop goes over sentences or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from simcse_fast.information.lower_case import Numbering, Sets, grown, spelled
from simcse_fast.information.sentences import Repairs, Sentences, from_arrow, join
from simcse_fast.kernels.cooccurrence import engine, numba_rows
from simcse_fast.kernels.cooccurrence.numba_sentences import (
    Bags,
    add_terms,
    count_dense,
    fill_rows,
    measure_rows,
)
from simcse_fast.kernels.cooccurrence.numba_shuffle import (
    count_words,
    measure_records,
    write_records,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    Batches = Iterator[pa.RecordBatch]
    Array = NDArray[Any]
    Record = tuple[int, pa.Buffer, pa.Buffer]  # bucket, keys, values

BLOCK = 4 << 20  # bytes of text that are numbered, sorted and sent together
ROOM = 32 << 20  # bytes of records in one Arrow batch, all buckets together
ROWS = 1 << 16  # of sums in one Arrow batch
MOST = (1 << 31) - 1  # bytes of one column of an Arrow batch on Spark
# What a task adds up by itself goes to the others in so many parts: bucket -1 - k is part k of the
# triangle, bucket -1 - PARTS - k holds the terms of the words k, k + PARTS, k + 2 * PARTS, ...
PARTS = 16
TERMS = np.dtype([("cross", np.float64), ("own", np.int64)])

# Columns, in Spark's notation; a row without a word counts the sentences.
WORDS = "word string, count long, company long, longest long, nulls long, squares double"
RECORDS = "bucket int, keys binary, values binary"
SUMS = "word int, entropy double, cross double, own long"


@dataclass(frozen=True)
class Plan:
    """What every task of the second reading knows."""

    corpus: engine.Corpus
    vocabulary: pa.LargeStringArray  # (words,) by frequency
    log_p: Array  # (words,) log P(v)
    bounds: Array  # (buckets + 1,) bucket b owns the rows of words bounds[b] ... bounds[b + 1] - 1
    presence: bool


def blocks(batches: Batches) -> Iterator[tuple[Sentences, int]]:
    """The first column in larger parts, invalid UTF-8 replaced; and how many nulls it had."""
    waiting: list[Sentences] = []
    size, nulls = 0, 0
    for batch in batches:
        column = batch.column(0)
        nulls += column.null_count
        waiting.append(from_arrow(column.drop_null(), "corpus", Repairs()))
        size += column.nbytes
        if size >= BLOCK:
            yield join(waiting), nulls
            waiting, size, nulls = [], 0, 0
    if waiting:
        yield join(waiting), nulls


def count(batches: Batches, *, presence: bool) -> Batches:
    """The words of a task: occurrences and tokens beside them."""
    numbering, sets = Numbering(), Sets()
    counts, company = np.zeros(0, np.int64), np.zeros(0, np.int64)
    sentences, longest, nulls, squares = 0, 0, 0, 0.0
    for text, missing in blocks(batches):
        ids, sizes = numbering(text)
        ids = sets(ids, sizes) if presence else ids
        beside = np.maximum(sizes.astype(np.float64) - 1, 0)
        squares += float(sizes @ beside**2)
        counts, company = (grown(x, numbering.words.known) for x in (counts, company))
        count_words(ids, sizes, counts, company)
        sentences, nulls = sentences + len(sizes), nulls + missing
        longest = max(longest, int(sizes.max(initial=0)))
    used = np.flatnonzero(counts)
    words = spelled(numbering.words).take(used).cast(pa.string())
    yield pa.record_batch(
        [pa.array([None], pa.string()), [sentences], [0], [longest], [nulls], [squares]],
        names=names(WORDS),
    )
    none = np.zeros(len(used), np.int64)
    columns = [words, counts[used], company[used], none, none, none.astype(np.float64)]
    yield pa.record_batch(columns, names=names(WORDS))


def names(columns: str) -> list[str]:
    """Of the columns in Spark's notation."""
    return [column.split()[0] for column in columns.split(", ")]


def send(batches: Batches, plan: Plan) -> Batches:
    """The records of a task's sentences, and at the end what it could add up by itself."""
    numbering, sets = Numbering(plan.vocabulary), Sets()
    counted = engine.empty_counts(plan.corpus)
    counted = counted._replace(triangle=counted.triangle.astype(plan.corpus.kind))
    owner = owners(plan)
    for text, _ in blocks(batches):
        ids, sizes = numbering(text)
        ids = sets(ids, sizes) if plan.presence else ids
        check_known(ids, sizes, plan)
        bags = sort_and_count(ids, sizes, plan, counted)
        yield from records(bags, owner, len(plan.bounds) - 1)
    yield totals(counted)


def check_known(ids: Array, sizes: Array, plan: Plan) -> None:
    """The kernels trust the first reading: what it did not see would be written out of bounds."""
    longest = int(sizes.max(initial=0))
    if int(ids.max(initial=0)) >= len(plan.vocabulary) or longest > plan.corpus.longest:
        raise RuntimeError(
            "corpus: Spark's second reading found words or sentences that the first did not; "
            "expected the same rows each time: write what is random or changing to files first"
        )


def owners(plan: Plan) -> Array:
    """The bucket of each word; -1 for the first words, whose pairs are in the triangle."""
    owner = np.full(len(plan.corpus.counts), -1, np.int32)
    sizes = np.diff(plan.bounds)
    owner[plan.corpus.dense :] = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return owner


def sort_and_count(ids: Array, sizes: Array, plan: Plan, counted: engine.Counted) -> Bags:
    """Sentences as bags; the triangle and all that needs no pairs is counted."""
    corpus, starts = plan.corpus, np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    entries = ids if ids.dtype == corpus.entry else np.empty(len(ids), corpus.entry)
    bags = Bags(entries, starts, np.zeros(len(sizes), np.uint32), *corpus.packing)
    for share in engine.pieces(starts, (0, len(sizes))):
        engine.sort_bags(ids, bags, share, overwrite=True)
        add_terms(bags, share, plan.log_p, *counted.terms)
        count_dense(bags, share, corpus.dense, counted.triangle, counted.load)
    return bags


def records(bags: Bags, owner: Array, buckets: int) -> Batches:
    """What the buckets need of the sentences: one row for each, of many records."""
    low = 0 if buckets else len(bags.sizes)
    while low < len(bags.sizes):
        number, lengths = np.zeros(buckets, np.int64), np.zeros(buckets, np.int64)
        room = ROOM // bags.entries.itemsize
        high = measure_records(bags, low, owner, room, number, lengths)
        last, ends = np.cumsum(number), np.cumsum(lengths)
        sizes, entries = np.empty(last[-1], np.uint32), np.empty(ends[-1], bags.entries.dtype)
        write_records(bags, (low, high), owner, last - number, ends - lengths, sizes, entries)
        used = np.flatnonzero(number)
        if len(used):
            yield packed(used, binary(sizes, last[used]), binary(entries, ends[used]))
        low = high


def packed(buckets: Any, keys: pa.Array, values: pa.Array) -> pa.RecordBatch:
    """Rows of RECORDS."""
    return pa.record_batch([pa.array(buckets, pa.int32()), keys, values], names=names(RECORDS))


def binary(values: Array, ends: Array) -> pa.BinaryArray:
    """Consecutive parts of an array as Arrow binaries, zero copy."""
    if values.nbytes > MOST:
        raise ValueError(
            f"corpus: one sentence takes {values.nbytes:,} bytes in the shuffle; expected at most "
            f"{MOST:,}: split long texts into sentences, or raise bucket_bytes"
        )
    offsets = (np.concatenate([[0], ends]) * values.itemsize).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values)]
    return pa.BinaryArray.from_buffers(pa.binary(), len(ends), buffers)


def totals(counted: engine.Counted) -> pa.RecordBatch:
    """The triangle and the terms of one task, in parts."""
    rows: list[tuple[int, bytes, bytes]] = []
    for k, part in enumerate(np.array_split(counted.triangle, PARTS)):
        if part.any():
            rows.append((-1 - k, b"", part.tobytes()))
    terms, used = counted.terms, np.flatnonzero(counted.terms.company)
    for k in range(PARTS):
        words = used[used % PARTS == k].astype(np.uint32)
        if len(words):
            part = np.empty(len(words), TERMS)
            part["cross"], part["own"] = terms.cross[words], terms.own[words]
            rows.append((-1 - PARTS - k, words.tobytes(), part.tobytes()))
    buckets, keys, values = zip(*rows, strict=True) if rows else ((), (), ())
    return packed(buckets, pa.array(keys, pa.binary()), pa.array(values, pa.binary()))


def add_up(batches: Batches, plan: Plan) -> Batches:
    """The sums of a task whose batches are sorted by bucket and hold whole buckets."""
    sums = Sums(plan)
    for bucket, found in groupby(rows_of(batches), key=lambda record: record[0]):
        sums.add(bucket, found)
    result = sums.result()
    yield from (result.slice(first, ROWS) for first in range(0, len(result), ROWS))


def rows_of(batches: Batches) -> Iterator[Record]:
    """Rows of RECORDS, zero copy; each stands for many sentences."""
    for batch in batches:
        buckets, keys, values = batch.columns
        for row, bucket in enumerate(buckets.to_pylist()):
            yield bucket, keys[row].as_buffer(), values[row].as_buffer()


def joined(buffers: Iterable[pa.Buffer], of: Any) -> Array:
    """Numbers that arrived in parts."""
    return np.concatenate([np.frombuffer(buffer, of) for buffer in buffers])


class Sums:
    """What one task adds up, over all buckets that it gets."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.table = plan, numba_rows.entropy_table()
        words, dense = len(plan.corpus.counts), plan.corpus.dense
        self.entropy, self.cross = np.zeros(words), np.zeros(words)
        self.own = np.zeros(words, np.int64)
        self.triangle = np.zeros(dense * (dense - 1) // 2, plan.corpus.kind)
        self.counters = np.zeros(words, plan.corpus.kind)  # of one row, all zero between rows

    def add(self, bucket: int, found: Iterator[Record]) -> None:
        """One bucket, of either kind."""
        if bucket >= 0:
            _, keys, values = zip(*found, strict=True)
            self._add_rows(bucket, joined(keys, np.uint32), joined(values, self.plan.corpus.entry))
        elif bucket >= -PARTS:
            part = np.array_split(self.triangle, PARTS)[-1 - bucket]  # a view
            for _, _, values in found:
                part += np.frombuffer(values, part.dtype)
        else:
            for _, keys, values in found:
                words, terms = np.frombuffer(keys, np.uint32), np.frombuffer(values, TERMS)
                self.cross[words] += terms["cross"]
                self.own[words] += terms["own"]

    def _add_rows(self, bucket: int, sizes: Array, entries: Array) -> None:
        """All pairs of the rows of a bucket: index them, count row by row, add f of the counts."""
        corpus = self.plan.corpus
        first, last = self.plan.bounds[bucket : bucket + 2].tolist()
        starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        bags, share = Bags(entries, starts, sizes, *corpus.packing), (0, len(sizes))
        seen = np.zeros(last - first, np.int64)
        measure_rows(bags, share, (first, last), seen)
        ends = np.concatenate([[0], np.cumsum(seen)])
        place = np.uint32 if len(entries) < engine.BITS_32 else np.int64
        spans = np.empty((int(ends[-1]), 2), place)
        fill_rows(bags, share, (first, last), spans, ends[:-1].copy(), entries[:0], 0)
        rows = numba_rows.Rows(first, ends, spans)
        numba_rows.sum_rows(
            *(entries, corpus.packing, rows, (0, last - first), False),
            *(self.table, self.counters, self.entropy),
        )

    def result(self) -> pa.RecordBatch:
        """Rows of SUMS, those that are not zero."""
        numba_rows.sum_dense(self.triangle, self.plan.corpus.dense, self.table, self.entropy)
        used = np.flatnonzero((self.entropy != 0) | (self.cross != 0) | (self.own != 0))
        columns = [x[used] for x in (self.entropy, self.cross, self.own)]
        return pa.record_batch([used.astype(np.int32), *columns], names=names(SUMS))
