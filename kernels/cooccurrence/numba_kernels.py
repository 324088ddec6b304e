"""Information gain of every word, exact, row by row: no hash, no sort of pairs, no shared writes.

With f(x) = x log x, L_s tokens in sentence s, R_w the sum of L_s - 1 over w's occurrences and
T_s the sum of log P(v) over the tokens of s,

    KL(w) = (sum_v f(c_wv) - sum_occurrences (T_s - log P(w))) / R_w - log R_w,

so only sum_v f(c_wv) needs pairs. Words are numbered by frequency and sorted inside each
sentence: a pair belongs to its rarer word, whose partners are the entries before it. Pairs among
the first `DENSE` words are counted in a triangle that stays in cache; every other word is a row,
whose occurrences an inverted index lists. See docs/information.md.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from simcse_fast.kernels.numba_threads import Tick, jit, pieces, run_workers

DENSE = 1024  # 2 MB of 32-bit counts: one core's L2
RANKED = 192  # tokens up to which sorting by comparing all with all wins; vector code, no branches
AHEAD = 8  # occurrences to prefetch ahead: a row's sentences lie anywhere in memory
SLICE = 4096  # sentences a worker takes through all steps while they are in cache

Array = NDArray[Any]
Counter = type[np.unsignedinteger[Any]]


class Bags(NamedTuple):
    """Sentences as sorted (word, times) entries; sentence s begins at starts[s]."""

    entries: Array  # (tokens,) word << bits | times
    starts: Array  # (sentences + 1,)
    sizes: Array  # (sentences,) entries in use, at most starts[s + 1] - starts[s]
    bits: np.integer[Any]
    mask: np.integer[Any]  # (1 << bits) - 1


class Rows(NamedTuple):
    """Where the words from `first` on occur: row w has spans[starts[w - first] : ...]."""

    first: int
    starts: Array  # (rows + 1,)
    spans: Array  # (occurrences, 2) entries [start, stop) before the word; entry `stop` is its own


class Terms(NamedTuple):
    """The terms of KL that need no pairs, per word; each worker adds to its own."""

    company: Array  # (words,) R_w
    cross: Array  # (words,) sum over occurrences of T_s - log P(w)
    own: Array  # (words,) c_ww


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of array[index]; 0.39 -> 0.17 s on the rows of 6.8 M tokens."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address, flag = builder.gep(data, [arguments[1]]), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, flag, flag, flag])
        call = builder.module.declare_intrinsic("llvm.prefetch", (address.type,), kind)
        builder.call(call, [address, flag(0), flag(3), flag(1)])  # for reading, keep, data
        return context.get_dummy_value()

    return types.void(array, index), emit


@jit
def sort_sentences(ids: Array, bags: Bags, share: tuple[int, int]) -> None:
    """Fill the bags of a range of sentences; longer ones than RANKED come sorted."""
    entries, bits = bags.entries, bags.bits
    words, times = np.empty(RANKED, np.uint32), np.zeros(RANKED, np.uint32)
    for s in range(*share):
        start, end = bags.starts[s], bags.starts[s]
        sentence = ids[start : bags.starts[s + 1]]
        if len(sentence) <= RANKED:
            for i in range(len(sentence)):
                word, rank = sentence[i], np.int32(0)
                for j in range(len(sentence)):
                    rank = np.int32(rank + np.int32(sentence[j] < word))  # 32 bits: wider vectors
                words[np.uint32(rank)] = word
                times[np.uint32(rank)] += np.uint32(1)
            for i in range(len(sentence)):
                entries[end] = words[i] << bits | times[i]
                end += times[i] > 0  # equal words share a rank and leave gaps behind it
                times[i] = 0
        else:
            for i in range(len(sentence)):
                if i == 0 or sentence[i] != sentence[i - 1]:
                    entries[end] = sentence[i] << bits
                    end += 1
                entries[end - 1] += np.uint32(1)
        bags.sizes[s] = end - start


@jit
def add_terms(bags: Bags, share: tuple[int, int], log_p: Array, terms: Terms) -> None:
    """Add a range of sentences to the terms that need no pairs."""
    for s in range(*share):
        start = bags.starts[s]
        beside = bags.starts[s + 1] - start - 1
        total = 0.0
        for i in range(start, start + bags.sizes[s]):
            total += log_p[bags.entries[i] >> bags.bits] * (bags.entries[i] & bags.mask)
        for i in range(start, start + bags.sizes[s]):
            word, times = bags.entries[i] >> bags.bits, np.int64(bags.entries[i] & bags.mask)
            terms.company[word] += times * beside
            terms.cross[word] += times * (total - log_p[word])
            if times > 1:
                terms.own[word] += times * (times - 1)


@jit
def count_dense(
    bags: Bags, share: tuple[int, int], dense: int, triangle: Array, seen: Array
) -> None:
    """Count pairs of words below `dense` in a triangle, and the sentences of every other word."""
    entries, bits, mask = bags.entries, bags.bits, bags.mask
    one, first = np.uint64(1), np.uint64(dense)  # unsigned: no test for negative indices
    for s in range(*share):
        start = bags.starts[s]
        for stop in range(start, start + bags.sizes[s]):
            word, times = np.uint64(entries[stop] >> bits), entries[stop] & mask
            if word >= first:
                seen[word - first] += 1
                continue
            row = word * (word - one) >> one
            for i in range(start, stop):
                triangle[row + np.uint64(entries[i] >> bits)] += times * (entries[i] & mask)


@jit
def fill_rows(bags: Bags, share: tuple[int, int], rows: Rows, cursor: Array) -> None:
    """Write the spans of a range of sentences, each at its word's cursor."""
    for s in range(*share):
        start = bags.starts[s]
        for stop in range(start + bags.sizes[s] - 1, start - 1, -1):
            row = np.int64(bags.entries[stop] >> bags.bits) - rows.first
            if row < 0:
                break
            rows.spans[cursor[row], 0] = start
            rows.spans[cursor[row], 1] = stop
            cursor[row] += 1


@jit
def harvest(count: int, word: int, table: Array, sums: Array) -> Any:
    """Add f(count) to the partner's sum and return it for the row's; pairs seen once add 0."""
    if count <= 1:
        return 0.0
    value = table[count] if count < len(table) else count * np.log(count)
    sums[word] += value
    return value


@jit
def sum_dense(triangle: Array, dense: int, table: Array, sums: Array) -> None:
    """Add f(c_wv) of every pair in the triangle to both words' sums."""
    for word in range(dense):
        base = word * (word - 1) // 2
        for other in range(word):
            sums[word] += harvest(triangle[base + other], other, table, sums)


@jit
def sum_rows(
    bags: Bags,
    rows: Rows,
    row_range: tuple[int, int, int],  # first row, end, step: a worker's share is interleaved
    table: Array,  # (n,) f(0 ... n - 1)
    count: Array,  # (words,) all zero, and again so at return
    sums: Array,  # (words,) out
) -> None:
    """Add f(c_wv) of every pair whose rarer word w is in `row_range` to both words' sums."""
    entries, bits, mask, spans = bags.entries, bags.bits, bags.mask, rows.spans
    for row in range(*row_range):
        word = rows.first + row
        touched: Any = 0
        for k in range(rows.starts[row], rows.starts[row + 1]):
            ahead = min(k + AHEAD, len(spans) - 1)
            start, stop = np.int64(spans[ahead, 0]), np.int64(spans[ahead, 1])
            prefetch(entries, start)
            prefetch(entries, (start + stop) >> 1)
            prefetch(entries, stop)
            start, stop = np.int64(spans[k, 0]), np.int64(spans[k, 1])
            times = entries[stop] & mask
            for i in range(start, stop):
                count[entries[i] >> bits] += times * (entries[i] & mask)
            touched += stop - start
        total = 0.0
        if touched > word >> 2:  # most counters are in use: read them in order
            for other in range(word):
                total += harvest(count[other], other, table, sums)
                count[other] = 0
        else:
            for k in range(rows.starts[row], rows.starts[row + 1]):
                for i in range(np.int64(spans[k, 0]), np.int64(spans[k, 1])):
                    partner = entries[i] >> bits
                    total += harvest(count[partner], partner, table, sums)
                    count[partner] = 0
        sums[word] += total


def entropy_table(size: int = 1 << 14) -> NDArray[np.float64]:
    """f(c) = c log c for small counts."""
    counts = np.arange(size, dtype=np.float64)
    return counts * np.log(np.maximum(counts, 1))


def pack(ids: Array, offsets: Array, words: int) -> tuple[Array, Bags]:
    """Empty bags wide enough for `ids`, and the ids with long sentences sorted."""
    lengths = np.diff(offsets)
    longest = int(lengths.max(initial=1))
    bits = longest.bit_length()
    kind = np.uint32 if words.bit_length() + bits <= 32 else np.uint64  # noqa: PLR2004
    if longest > RANKED:
        ids = ids.copy()
        for s in np.flatnonzero(lengths > RANKED):
            ids[offsets[s] : offsets[s + 1]].sort()
    entries, sizes = np.empty(len(ids), kind), np.zeros(len(lengths), np.int64)
    return ids, Bags(entries, offsets, sizes, kind(bits), kind((1 << bits) - 1))


@dataclass(frozen=True)
class Run:
    """Who does the work: worker k takes the sentences `shares[k]`."""

    shares: list[tuple[int, int]]
    tick: Tick

    def __call__(self, work: Callable[[int], Iterator[int]]) -> None:
        """Run `work` on every worker."""
        run_workers(len(self.shares), work, self.tick)


def count_sentences(
    run: Run, ids: Array, bags: Bags, *, counts: Array, dense: int, kind: Counter
) -> tuple[Array, Array, Terms]:
    """The triangle of counts, sentences of each row's word by worker, and the other terms."""
    workers, words = len(run.shares), len(counts)
    log_p = np.log(np.maximum(counts, 1) / max(len(ids), 1))
    triangles: Array = np.zeros((workers, dense * (dense - 1) // 2), kind)
    seen = np.zeros((workers, words - dense), np.int64)
    terms = Terms(*(np.zeros((workers, words), of) for of in (np.int64, np.float64, np.int64)))

    def work(worker: int) -> Iterator[int]:
        mine = Terms(*(term[worker] for term in terms))
        for low, high in pieces(*run.shares[worker], SLICE):
            rare = seen[worker].sum()
            sort_sentences(ids, bags, (low, high))
            add_terms(bags, (low, high), log_p, mine)
            count_dense(bags, (low, high), dense, triangles[worker], seen[worker])
            yield int(bags.starts[high] - bags.starts[low] - seen[worker].sum() + rare)

    run(work)
    triangle = triangles.sum(axis=0, dtype=np.uint64)
    return triangle, seen, Terms(*(term.sum(axis=0) for term in terms))


def index_rows(run: Run, bags: Bags, dense: int, seen: Array) -> Rows:
    """The inverted index; worker k's spans of a word follow those of worker k - 1."""
    ends = np.cumsum(seen.T).reshape(seen.T.shape)
    starts = np.concatenate([[0], ends[:, -1]])
    place = np.uint32 if len(bags.entries) < 1 << 32 else np.int64
    rows = Rows(dense, starts, np.empty((int(starts[-1]), 2), place))
    cursors = np.ascontiguousarray((ends - seen.T).T)

    def work(worker: int) -> Iterator[int]:
        fill_rows(bags, run.shares[worker], rows, cursors[worker])
        yield 0

    run(work)
    return rows


def add_rows(run: Run, bags: Bags, rows: Rows, *, table: Array, sums: Array, kind: type) -> None:
    """Add every row's pairs to `sums`, one line of it for each worker."""
    workers, words = sums.shape
    # Slices of equal numbers of occurrences; inside a slice the workers take rows in turn.
    cuts = np.unique(np.searchsorted(rows.starts, np.linspace(0, rows.starts[-1], 65)))

    def work(worker: int) -> Iterator[int]:
        count: Array = np.zeros(words, kind)
        for low, high in pairwise(cuts.tolist()):
            share = (low + worker, high, workers)
            sum_rows(bags, rows, share, table, count, sums[worker])
            yield int(rows.starts[high] - rows.starts[low]) if worker == 0 else 0

    run(work)


def pair_sums(
    ids: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    counts: NDArray[np.int64],
    *,
    table: NDArray[np.float64],
    threads: int,
    tick: Tick,
) -> tuple[NDArray[np.float64], Terms]:
    """sum_v f(c_wv) for every word w, and the terms that need no pairs.

    Args:
        ids: (tokens,) words numbered by frequency, 0 the most frequent: speed rests on the order.
        offsets: (sentences + 1,) first token of each sentence, then the number of tokens.
        counts: (words,) how often each word occurs.
        table: f(0), f(1), ... with f(0) = f(1) = 0; counts beyond it give c log c.
        threads: workers, each with its own counters.
        tick: called with numbers of tokens that are done.
    """
    words, sentences = len(counts), len(offsets) - 1
    edges = [sentences * k // threads for k in range(threads + 1)]
    run = Run(list(pairwise(edges)), tick)
    dense = min(DENSE, words)
    ids, bags = pack(ids, offsets, words)
    # No count of a pair exceeds the tokens beside all occurrences of one word.
    most = int(counts.max(initial=0)) * int(np.diff(offsets).max(initial=0))
    kind: Counter = np.uint32 if most < 1 << 32 else np.uint64

    triangle, seen, terms = count_sentences(run, ids, bags, counts=counts, dense=dense, kind=kind)
    sums = np.zeros((threads, words))
    sum_dense(triangle, dense, table, sums[0])
    rows = index_rows(run, bags, dense, seen)
    add_rows(run, bags, rows, table=table, sums=sums, kind=kind)
    in_table = table[np.minimum(terms.own, len(table) - 1)]
    beyond = terms.own * np.log(np.maximum(terms.own, 1))
    return sums.sum(axis=0) + np.where(terms.own < len(table), in_table, beyond), terms


def cooccurrence_kl(
    ids: NDArray[np.uint32],  # (tokens,) by frequency, see pair_sums
    offsets: NDArray[np.int64],  # (sentences + 1,)
    counts: NDArray[np.int64],  # (words,)
    *,
    threads: int,
    tick: Tick,
) -> NDArray[np.float64]:  # (words,)
    """KL(w) in nats; NaN for a word without company. Exact counts of any size."""
    sums, terms = pair_sums(ids, offsets, counts, table=entropy_table(), threads=threads, tick=tick)
    company = np.where(terms.company > 0, terms.company, np.nan)
    return (sums - terms.cross) / company - np.log(company)
