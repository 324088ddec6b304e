"""Information gain of every word, exact, row by row: no hash, no sort of pairs, no shared writes.

With f(x) = x log x, c_wv the count of a pair, R_w = sum_v c_wv and P the distribution to compare
with,

    KL(w) = (sum_v f(c_wv) - sum_v c_wv log P(v)) / R_w - log R_w,

so only sum_v f(c_wv) needs pairs. Words are numbered by frequency. Pairs among the first `DENSE`
words are counted in a triangle that stays in cache; every other word is a row, whose occurrences
an inverted index lists. `count_chunk` gives the triangle and all that needs no pairs; an `Index`
of a range of rows, made from one chunk or copied from many, gives the rest. See
docs/information.md.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simcse_fast.kernels.cooccurrence import numba_rows
from simcse_fast.kernels.cooccurrence.numba_rows import Rows, entropy_table
from simcse_fast.kernels.cooccurrence.numba_sentences import (
    RANKED,
    Bags,
    add_terms,
    count_dense,
    fill_rows,
    measure_rows,
    sort_sentences,
)
from simcse_fast.kernels.cooccurrence.numba_windows import Windows, count_windows, fill_windows
from simcse_fast.kernels.numba_threads import Tick, run_workers

DENSE = 1024  # 2 MB of 32-bit counts, which stay in a core's L2 or near it
PIECE = 1 << 17  # tokens a worker takes through all steps while they are in cache
CUTS = 256  # slices of rows, between which progress is told
FREQUENT = 4096  # words whose sums have so many terms that they are added up in two stages
BITS_32 = 1 << 32

Array = NDArray[Any]
Chunk = tuple[NDArray[np.uint32], NDArray[np.int64]]  # ids, and where each sentence begins


class Terms(NamedTuple):
    """What of KL needs no pairs, per word."""

    company: Array  # (words,) R_w
    cross: Array  # (words,) sum_v c_wv log P(v)
    own: Array  # (words,) c_ww


@dataclass(frozen=True)
class Corpus:
    """What is known of a corpus before its pairs are counted."""

    counts: NDArray[np.int64]  # (words,) how often each word occurs, falling
    longest: int  # tokens of the longest sentence
    window: int = 0  # positions to either side; 0: the whole sentence

    @property
    def dense(self) -> int:
        """Words whose pairs are counted in the triangle."""
        return min(DENSE, len(self.counts))

    @property
    def kind(self) -> type[np.unsignedinteger[Any]]:
        """Of counters: no pair's count exceeds the positions beside all of one word."""
        beside = min(2 * self.window, self.longest) if self.window else self.longest
        return np.uint32 if int(self.counts.max(initial=0)) * beside < BITS_32 else np.uint64

    @property
    def bits(self) -> int:
        """For the times in an entry of a bag."""
        return max(self.longest, 1).bit_length()

    @property
    def entry(self) -> type[np.unsignedinteger[Any]]:
        """Of entries: word and times in one number."""
        if self.window or len(self.counts).bit_length() + self.bits <= 32:  # noqa: PLR2004
            return np.uint32
        return np.uint64

    @property
    def packing(self) -> tuple[Any, Any]:
        """(bits, mask) of entries; a window's are plain words."""
        return self.entry(0 if self.window else self.bits), self.entry((1 << self.bits) - 1)


@dataclass(frozen=True)
class Run:
    """Who does the work."""

    workers: int
    tick: Tick  # called with numbers of tokens that are done

    def __call__(self, work: Callable[[int], Iterator[int]]) -> None:
        """Run `work(0)`, `work(1)`, ... side by side."""
        run_workers(self.workers, work, self.tick)

    def shares(self, starts: Array) -> list[tuple[int, int]]:
        """Ranges of sentences with about equal numbers of tokens, one for each worker."""
        marks = np.linspace(0, starts[-1], self.workers + 1)[1:-1]
        return list(pairwise([0, *np.searchsorted(starts, marks).tolist(), len(starts) - 1]))


class Counted(NamedTuple):
    """What the first reading of a corpus gives."""

    triangle: Array  # (dense * (dense - 1) / 2,) counts of pairs among the first words
    load: Array  # (words - dense, 2) occurrences of each other word, entries read for its row
    terms: Terms


class Index(NamedTuple):
    """Everything that the rows of a range of words need."""

    entries: Array
    rows: Rows


def pieces(starts: Array, share: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Ranges of sentences that cover a share, of about PIECE tokens each."""
    low, high = share
    marks = np.arange(int(starts[low]) + PIECE, int(starts[high]), PIECE)
    cuts = np.unique(np.searchsorted(starts[: high + 1], marks))
    yield from pairwise([low, *cuts[(cuts > low) & (cuts < high)].tolist(), high])


def empty_bags(corpus: Corpus, chunk: Chunk, *, overwrite: bool) -> Bags:
    """Bags still to be filled, in the memory of the ids if that is allowed."""
    ids, starts = chunk
    reuse = overwrite and ids.dtype == corpus.entry
    entries = ids if reuse else np.empty(len(ids), corpus.entry)
    return Bags(entries, starts, np.zeros(len(starts) - 1, np.uint32), *corpus.packing)


def prepare(corpus: Corpus, chunk: Chunk, *, overwrite: bool) -> Bags | Windows:
    """The texts as they stand for windows, else bags still to be filled."""
    if corpus.window:
        return Windows(*chunk, corpus.window)
    return empty_bags(corpus, chunk, overwrite=overwrite)


def sort_bags(ids: Array, bags: Bags, share: tuple[int, int], *, overwrite: bool) -> None:
    """Fill the bags of a range of sentences."""
    low, high = share
    long = low + np.flatnonzero(np.diff(bags.starts[low : high + 1]) > RANKED)
    if len(long) and not overwrite:
        first, last = bags.starts[low], bags.starts[high]
        ids, whole = np.empty(int(last), ids.dtype), ids  # untouched pages take no memory
        ids[first:last] = whole[first:last]
    for s in long.tolist():
        ids[bags.starts[s] : bags.starts[s + 1]].sort()
    sort_sentences(ids, bags, share)


def log_shares(counts: Array) -> NDArray[np.float64]:
    """Log P(v), P(v) being v's share of all; of what never occurs nobody asks."""
    log_p: NDArray[np.float64] = np.log(np.maximum(counts, 1) / max(int(counts.sum()), 1))
    return log_p


def empty_counts(corpus: Corpus) -> Counted:
    """Nothing counted yet."""
    words, dense = len(corpus.counts), corpus.dense
    terms = Terms(*(np.zeros(words, of) for of in (np.int64, np.float64, np.int64)))
    triangle = np.zeros(dense * (dense - 1) // 2, np.uint64)
    return Counted(triangle, np.zeros((words - dense, 2), np.int64), terms)


def count_chunk(
    run: Run, corpus: Corpus, chunk: Chunk, log_p: Array, *, overwrite: bool = False
) -> tuple[Bags | Windows, list[Counted]]:
    """Fill a chunk's bags; counts of each worker, whose sum (`add_counts`) is the chunk's."""
    ids, starts = chunk
    texts, shares = prepare(corpus, chunk, overwrite=overwrite), run.shares(starts)
    counted = []
    for _ in shares:
        fresh = empty_counts(corpus)
        counted.append(fresh._replace(triangle=fresh.triangle.astype(corpus.kind)))

    def work(worker: int) -> Iterator[int]:
        triangle, load, terms = counted[worker]
        frequent = np.zeros(min(FREQUENT, len(corpus.counts)))
        for low, high in pieces(starts, shares[worker]):
            if isinstance(texts, Windows):
                rare = count_windows(texts, (low, high), log_p, terms, corpus.dense, triangle, load)
            else:
                sort_bags(ids, texts, (low, high), overwrite=overwrite)
                add_terms(texts, (low, high), log_p, *terms)
                rare = count_dense(texts, (low, high), corpus.dense, triangle, load)
            move_up(terms.cross, frequent)
            yield int(starts[high] - starts[low]) - rare
        terms.cross[: len(frequent)] = frequent

    run(work)
    return texts, counted


def move_up(sums: Array, frequent: Array) -> None:
    """Add the first sums to those of earlier pieces: rounding grows with a stage's terms alone."""
    np.add(frequent, sums[: len(frequent)], out=frequent)
    sums[: len(frequent)] = 0


def add_counts(total: Counted, parts: list[Counted]) -> None:
    """Add up what workers counted; in their order, so that sums are the same bit by bit."""
    for triangle, load, terms in parts:
        np.add(total.triangle, triangle, out=total.triangle)
        np.add(total.load, load, out=total.load)
        for whole, part in zip(total.terms, terms, strict=True):
            np.add(whole, part, out=whole)


def index_chunk(
    run: Run, corpus: Corpus, texts: Bags | Windows, parts: list[Counted], load: Array
) -> Index:
    """The index of all rows over one chunk, which stays where it is."""
    first, last = corpus.dense, len(corpus.counts)
    starts = np.concatenate([[0], np.cumsum(load[:, 0])])
    place = np.uint32 if len(texts.entries) < BITS_32 else np.int64
    spans = np.empty((int(starts[-1]), 2), place)
    cursors = [starts[:-1].copy()]  # worker k's spans of a word follow those of worker k - 1
    for part in parts[:-1]:
        cursors.append(cursors[-1] + part.load[:, 0])
    shares, nothing = run.shares(texts.starts), np.empty(0, corpus.entry)

    def work(worker: int) -> Iterator[int]:
        fill(texts, shares[worker], (first, last), spans, cursors[worker], nothing, 0)
        yield 0

    run(work)
    return Index(texts.entries, Rows(first, starts, spans))


def fill(texts: Bags | Windows, *arguments: Any) -> None:
    """The spans of either kind of texts."""
    if isinstance(texts, Windows):
        fill_windows(texts, *arguments)
    else:
        fill_rows(texts, *arguments)


def copy_rows(
    run: Run, corpus: Corpus, chunks: Iterator[Chunk], words: tuple[int, int], load: Array
) -> Index:
    """The index of a range of words over many chunks, with copies of what stands beside them."""
    first, last = words
    of_range = load[first - corpus.dense : last - corpus.dense]
    starts = np.concatenate([[0], np.cumsum(of_range[:, 0])])
    room = min(int(of_range.sum()), int(corpus.counts.sum()))  # each position once at most
    copies = np.empty(max(room, 1), corpus.entry)  # pages that are never written take no memory
    spans = np.empty((int(starts[-1]), 2), np.uint32 if room < BITS_32 else np.int64)
    rows, cursor, place = Rows(first, starts, spans), starts[:-1].copy(), 0
    for chunk in chunks:
        cursor, place = copy_chunk(run, corpus, chunk, words, rows, cursor, copies, place)
    return Index(copies, rows)


def copy_chunk(
    run: Run,
    corpus: Corpus,
    chunk: Chunk,
    words: tuple[int, int],
    rows: Rows,
    cursor: Array,  # (last - first,) the next span of each word
    copies: Array,
    place: int,  # the next free one of `copies`
) -> tuple[Array, int]:
    """Copy what one chunk has beside a range of words; returns (cursor, place) after it."""
    ids, offsets = chunk
    texts, shares = prepare(corpus, chunk, overwrite=True), run.shares(offsets)
    seen = np.zeros((len(shares) + 1, words[1] - words[0]), np.int64)
    copied = np.zeros(len(shares) + 1, np.int64)

    def measure(worker: int) -> Iterator[int]:
        after = worker + 1
        if isinstance(texts, Windows):
            none = rows.spans[:0], seen[after], copies[:0]
            copied[after] = fill_windows(texts, shares[worker], words, *none, 0)
        else:
            sort_bags(ids, texts, shares[worker], overwrite=True)
            copied[after] = measure_rows(texts, shares[worker], words, seen[after])
        yield 0

    run(measure)
    cursors, places = cursor + np.cumsum(seen, axis=0), place + np.cumsum(copied)
    after_all = cursors[-1].copy(), int(places[-1])

    def write(worker: int) -> Iterator[int]:
        place = int(places[worker])
        fill(texts, shares[worker], words, rows.spans, cursors[worker], copies, place)
        yield 0

    run(write)
    return after_all


def slices(index: Index) -> list[tuple[int, int]]:
    """Ranges of rows of equal numbers of occurrences, which the workers take in turn.

    Neighbours stay together: a row's first sentences are fetched while its predecessor is read.
    """
    starts = index.rows.starts
    return list(pairwise(np.unique(np.searchsorted(starts, np.linspace(0, starts[-1], CUTS + 1)))))


def sum_rows(run: Run, corpus: Corpus, index: Index, table: Array) -> NDArray[np.float64]:
    """sum_v f(c_wv) over the pairs of an index, added to both words'."""
    words, rows, ranges = len(corpus.counts), index.rows, slices(index)
    sums = np.zeros((run.workers, words))

    def work(worker: int) -> Iterator[int]:
        count, frequent = np.zeros(words, corpus.kind), np.zeros(min(FREQUENT, words))
        for low, high in ranges[worker :: run.workers]:
            numba_rows.sum_rows(
                *(index.entries, corpus.packing, rows, (low, high)),
                *(corpus.window > 0, table, count, sums[worker]),
            )
            move_up(sums[worker], frequent)
            yield int(rows.starts[high] - rows.starts[low])
        sums[worker, : len(frequent)] = frequent

    run(work)
    total: NDArray[np.float64] = sums.sum(axis=0)
    return total


def sum_triangle(corpus: Corpus, counted: Counted, table: Array) -> NDArray[np.float64]:
    """sum_v f(c_wv) over pairs of the first words, and f(c_ww) of all."""
    sums = np.zeros(len(corpus.counts))
    numba_rows.sum_dense(counted.triangle, corpus.dense, table, sums)
    own = counted.terms.own
    twice = np.flatnonzero(own)
    beyond = own[twice] * np.log(own[twice])
    sums[twice] += np.where(
        own[twice] < len(table), table[np.minimum(own[twice], len(table) - 1)], beyond
    )
    return sums


def divergence(sums: Array, terms: Terms) -> NDArray[np.float64]:
    """KL(w) in nats from sum_v f(c_wv); NaN for a word without company."""
    company = np.where(terms.company > 0, terms.company, np.nan)
    gain: NDArray[np.float64] = (sums - terms.cross) / company - np.log(company)
    return gain


def pair_sums(
    corpus: Corpus,
    chunk: Chunk,
    run: Run,
    *,
    log_p: Array,
    table: Array,
    overwrite: bool = False,
    visit: Callable[[Index, Corpus], object] | None = None,
) -> tuple[NDArray[np.float64], Counted]:
    """sum_v f(c_wv) for every word w of one chunk, and what needs no rows.

    Args:
        corpus: counts of its words, numbered by frequency: speed rests on the order.
        chunk: (tokens,) words and (sentences + 1,) first token of each sentence.
        run: the workers, each with its own counters.
        log_p: (words,) log P(v).
        table: f(0), f(1), ... with f(0) = f(1) = 0; counts beyond it give c log c.
        overwrite: the ids are not needed any more: entries may take their memory.
        visit: gets the index.
    """
    texts, parts = count_chunk(run, corpus, chunk, log_p, overwrite=overwrite)
    counted = empty_counts(corpus)
    add_counts(counted, parts)
    index = index_chunk(run, corpus, texts, parts, counted.load)
    del parts
    if visit:
        visit(index, corpus)
    return sum_triangle(corpus, counted, table) + sum_rows(run, corpus, index, table), counted


def cooccurrence_kl(
    ids: NDArray[np.uint32],  # (tokens,) by frequency, see pair_sums
    offsets: NDArray[np.int64],  # (sentences + 1,)
    counts: NDArray[np.int64],  # (words,)
    *,
    threads: int,
    tick: Tick,
    window: int = 0,
    overwrite: bool = False,
) -> NDArray[np.float64]:  # (words,)
    """KL(w) in nats; NaN for a word without company. Exact counts of any size."""
    corpus = Corpus(counts, int(np.diff(offsets).max(initial=0)), window)
    run, log_p, table = Run(threads, tick), log_shares(counts), entropy_table()
    sums, counted = pair_sums(
        corpus, (ids, offsets), run, log_p=log_p, table=table, overwrite=overwrite
    )
    return divergence(sums, counted.terms)
