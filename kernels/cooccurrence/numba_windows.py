"""Pairs within a window of words: the positions at most `width` apart in one text."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simcse_fast.kernels.numba_threads import jit

Array = NDArray[Any]


class Windows(NamedTuple):
    """Texts as they stand; text s is entries[starts[s] : starts[s + 1]]."""

    entries: Array  # (tokens,) words
    starts: Array  # (texts + 1,)
    width: int


@jit
def add_company(ids: Array, starts: Array, width: int, company: Array) -> None:
    """Add the positions beside each occurrence to its word's; width 0: the whole text."""
    for s in range(len(starts) - 1):
        start, end = starts[s], starts[s + 1]
        for i in range(start, end):
            low, high = start, end
            if width > 0:
                low, high = max(start, i - width), min(end, i + width + 1)
            company[ids[i]] += high - low - 1


@jit
def sum_beside(starts: Array, width: int) -> tuple[float, float]:
    """Sum of the positions beside each token, and of their squares; width 0: the whole text."""
    total, squares = 0.0, 0.0
    for s in range(len(starts) - 1):
        length = starts[s + 1] - starts[s]
        for i in range(length):
            beside = np.float64(length - 1)
            if width > 0:
                beside = np.float64(min(i, width) + min(length - 1 - i, width))
            total += beside
            squares += beside * beside
    return total, squares


@jit
def count_windows(
    texts: Windows,
    share: tuple[int, int],
    log_p: Array,
    terms: tuple[Array, Array, Array],  # company, cross, own; see engine.Terms
    dense: int,
    triangle: Array,
    load: Array,  # (words - dense, 2) occurrences of each word, and the positions beside them
) -> int:
    """Add a range of texts to the terms, the triangle of frequent pairs and the rows' load.

    Returns the occurrences that were added to the load.
    """
    ids, (company, cross, own) = texts.entries, terms
    found = 0
    for s in range(*share):
        start, end = texts.starts[s], texts.starts[s + 1]
        for i in range(start, end):
            word = np.int64(ids[i])
            low, high = max(start, i - texts.width), min(end, i + texts.width + 1)
            total = 0.0
            for j in range(low, high):
                total += log_p[ids[j]]
            company[word] += high - low - 1
            cross[word] += total - log_p[word]
            if word >= dense:
                load[word - dense, 0] += 1
                load[word - dense, 1] += high - low
                found += 1
            for j in range(i + 1, high):
                other = np.int64(ids[j])
                if other == word:
                    own[word] += 2
                elif word < dense and other < dense:
                    rare = max(word, other)
                    triangle[rare * (rare - 1) // 2 + min(word, other)] += np.uint32(1)
    return found


@jit
def fill_windows(
    texts: Windows,
    share: tuple[int, int],
    words: tuple[int, int],  # first, end
    spans: Array,  # out, unless empty
    cursor: Array,  # (end - first,) in and out: the next span of each word; or their number so far
    copies: Array,  # out, unless empty: the windows of the range's words, one after the other
    place: int,  # the next free one of `copies`
) -> int:
    """Write the windows of the range's words; returns the end of the copies."""
    first, last = words
    for s in range(*share):
        start, end = texts.starts[s], texts.starts[s + 1]
        done = start  # what of the text is copied
        for i in range(start, end):
            row = np.int64(texts.entries[i]) - first
            if row < 0 or row >= last - first:
                continue
            low, high = max(start, i - texts.width), min(end, i + texts.width + 1)
            begin = max(low, done)
            if len(copies):
                for j in range(begin, high):
                    copies[place + j - begin] = texts.entries[j]
            place, done = place + high - begin, high
            if len(spans):
                shift = place - high if len(copies) else np.int64(0)
                spans[cursor[row], 0] = low + shift
                spans[cursor[row], 1] = high + shift
            cursor[row] += 1
    return place
