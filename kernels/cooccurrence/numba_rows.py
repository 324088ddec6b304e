"""Rows of pair counts: one array of counters takes a word's row, is harvested, and cleared.

A pair belongs to its rarer word. Words are numbered by frequency, so a row's partners have smaller
numbers; pairs among the first words are counted in a triangle that stays in cache instead.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simcse_fast.kernels.numba_threads import jit, prefetch

AHEAD = 8  # occurrences to prefetch ahead: a row's sentences lie anywhere in memory

Array = NDArray[Any]


class Rows(NamedTuple):
    """Where the words from `first` on occur: row w has spans[starts[w - first] : ...]."""

    first: int
    starts: Array  # (rows + 1,)
    spans: Array  # (occurrences, 2) entries [start, stop) that stand beside the word


@jit
def entropy(count: int, table: Array) -> Any:
    """f(c) = c log c, from a table where it reaches."""
    return table[count] if count < len(table) else count * np.log(count)


@jit
def harvest(count: int, word: int, table: Array, sums: Array) -> Any:
    """Add f(count) to the partner's sum and return it for the row's; pairs seen once add 0."""
    if count <= 1:
        return 0.0
    value = entropy(count, table)
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
def add_row(entries: Array, packing: Any, rows: Rows, row: int, window: bool, count: Array) -> Any:
    """Count the partners of one row; returns how many entries were read.

    A window holds rarer words too, which are no partners. In a bag all entries before `stop` are,
    and entry `stop` is the row's own, with the times it occurs there.
    """
    spans, word = rows.spans, np.uint64(rows.first + row)
    bits, mask = packing
    touched: Any = 0
    for k in range(rows.starts[row], rows.starts[row + 1]):
        ahead = min(k + AHEAD, len(spans) - 1)
        start, stop = np.int64(spans[ahead, 0]), np.int64(spans[ahead, 1])
        prefetch(entries, start)
        prefetch(entries, (start + stop) >> 1)
        prefetch(entries, stop)
        start, stop = np.int64(spans[k, 0]), np.int64(spans[k, 1])
        touched += stop - start
        if window:
            for i in range(start, stop):
                if entries[i] < word:
                    count[entries[i]] += np.uint32(1)
        else:
            times = entries[stop] & mask
            for i in range(start, stop):
                count[entries[i] >> bits] += times * (entries[i] & mask)
    return touched


@jit
def sum_rows(
    entries: Array,  # words, or word << bits | times
    packing: Any,  # (bits, mask) of entries
    rows: Rows,
    row_range: tuple[int, int],
    window: bool,  # entries are plain words of all frequencies
    table: Array,  # (n,) f(0 ... n - 1)
    count: Array,  # (words,) all zero, and again so at return
    sums: Array,  # (words,) out
) -> None:
    """Add f(c_wv) of every pair whose rarer word w is in `row_range` to both words' sums."""
    bits = packing[0]
    for row in range(*row_range):
        word = rows.first + row
        touched = add_row(entries, packing, rows, row, window, count)
        total = 0.0
        if touched > word >> 2:  # most counters are in use: read them in order
            for other in range(word):
                total += harvest(count[other], other, table, sums)
                count[other] = 0
        else:
            for k in range(rows.starts[row], rows.starts[row + 1]):
                for i in range(np.int64(rows.spans[k, 0]), np.int64(rows.spans[k, 1])):
                    if window and entries[i] >= np.uint64(word):
                        continue
                    partner = entries[i] >> bits
                    total += harvest(count[partner], partner, table, sums)
                    count[partner] = 0
        sums[word] += total


@jit
def collect_rows(
    entries: Array,
    packing: Any,
    rows: Rows,
    row_range: tuple[int, int],
    window: bool,
    count: Array,  # (words,) all zero, and again so at return
    others: Array,  # (>= pairs,) out: partners of each row, smaller numbers than its own
    times: Array,  # (>= pairs,) out: how often they stand beside it
    ends: Array,  # (rows,) out: pairs up to the end of each row
) -> None:
    """The rows of the matrix of counts below its diagonal."""
    found, bits = 0, packing[0]
    for row in range(*row_range):
        word = rows.first + row
        touched = add_row(entries, packing, rows, row, window, count)
        if touched > word >> 2:
            for other in range(word):
                if count[other] > 0:
                    others[found], times[found] = other, count[other]
                    count[other] = 0
                    found += 1
        else:
            for k in range(rows.starts[row], rows.starts[row + 1]):
                for i in range(np.int64(rows.spans[k, 0]), np.int64(rows.spans[k, 1])):
                    if window and entries[i] >= np.uint64(word):
                        continue
                    partner = entries[i] >> bits
                    if count[partner] > 0:
                        others[found], times[found] = partner, count[partner]
                        count[partner] = 0
                        found += 1
        ends[row] = found


def entropy_table(size: int = 1 << 14) -> NDArray[np.float64]:
    """f(c) = c log c for small counts."""
    counts = np.arange(size, dtype=np.float64)
    return counts * np.log(np.maximum(counts, 1))
