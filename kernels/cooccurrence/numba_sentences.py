"""Pairs within a sentence, whose order does not matter: each sentence a sorted bag of words.

A sentence becomes (word, times) entries in order of frequency; the words before an entry are more
frequent, so the pairs that belong to it are the entries before it.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simcse_fast.kernels.numba_threads import jit

RANKED = 192  # tokens up to which sorting by comparing all with all wins; vector code, no branches

Array = NDArray[Any]


class Bags(NamedTuple):
    """Sentences as sorted (word, times) entries; sentence s begins at starts[s]."""

    entries: Array  # (tokens,) word << bits | times
    starts: Array  # (sentences + 1,)
    sizes: Array  # (sentences,) entries in use, at most starts[s + 1] - starts[s]
    bits: np.integer[Any]
    mask: np.integer[Any]  # (1 << bits) - 1


@jit
def drop_repeats(ids: Array, sizes: Array, seen: Array, first: int) -> int:
    """Keep the first of equal words of a sentence, in place; returns the number of tokens left.

    seen: (words,) the last sentence of each word, below `first`, the number of this first one.
    """
    start: Any = 0
    end = 0
    for s in range(len(sizes)):
        stop, kept = start + np.int64(sizes[s]), end
        for i in range(start, stop):
            if seen[ids[i]] != first + s:
                seen[ids[i]] = first + s
                ids[end] = ids[i]
                end += 1
        start, sizes[s] = stop, end - kept
    return end


@jit
def sort_sentences(ids: Array, bags: Bags, share: tuple[int, int]) -> None:
    """Fill the bags of a range of sentences; longer ones than RANKED come sorted.

    The entries may lie in the memory of the ids.
    """
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
            first: Any = 0
            while first < len(sentence):
                word, after = sentence[first], first + 1
                while after < len(sentence) and sentence[after] == word:
                    after += 1
                entries[end] = word << bits | np.uint32(after - first)
                end, first = end + 1, after
        bags.sizes[s] = end - start


@jit
def add_terms(
    bags: Bags, share: tuple[int, int], log_p: Array, company: Array, cross: Array, own: Array
) -> None:
    """Add a range of sentences to the terms that need no pairs, see engine.Terms."""
    for s in range(*share):
        start = bags.starts[s]
        stop = start + np.int64(bags.sizes[s])
        beside = bags.starts[s + 1] - start - 1
        total = 0.0
        for i in range(start, stop):
            total += log_p[bags.entries[i] >> bags.bits] * (bags.entries[i] & bags.mask)
        for i in range(start, stop):
            word, times = bags.entries[i] >> bags.bits, np.int64(bags.entries[i] & bags.mask)
            company[word] += times * beside
            cross[word] += times * (total - log_p[word])
            if times > 1:
                own[word] += times * (times - 1)


@jit
def count_dense(
    bags: Bags, share: tuple[int, int], dense: int, triangle: Array, load: Array
) -> int:
    """Count pairs of words below `dense` in a triangle, and every other word's load.

    load: (words - dense, 2) sentences of each word, and the entries before it there. Returns what
    was added to the sentences.
    """
    entries, bits, mask = bags.entries, bags.bits, bags.mask
    one, first = np.uint64(1), np.uint64(dense)  # unsigned: no test for negative indices
    rare = 0
    for s in range(*share):
        start = bags.starts[s]
        for stop in range(start, start + np.int64(bags.sizes[s])):
            word, times = np.uint64(entries[stop] >> bits), entries[stop] & mask
            if word >= first:
                load[word - first, 0] += 1
                load[word - first, 1] += stop - start
                rare += 1
                continue
            row = word * (word - one) >> one
            for i in range(start, stop):
                triangle[row + np.uint64(entries[i] >> bits)] += times * (entries[i] & mask)
    return rare


@jit
def measure_rows(bags: Bags, share: tuple[int, int], words: tuple[int, int], seen: Array) -> int:
    """Count the sentences of each word in a range; returns the entries up to its last ones."""
    first, last = words
    copied = 0
    for s in range(*share):
        start = bags.starts[s]
        stop = start + np.int64(bags.sizes[s])
        while stop > start and np.int64(bags.entries[stop - 1] >> bags.bits) >= last:
            stop -= 1
        for i in range(stop - 1, start - 1, -1):
            word = np.int64(bags.entries[i] >> bags.bits)
            if word < first:
                break
            if i == stop - 1:
                copied += stop - start
            seen[word - first] += 1
    return copied


@jit
def fill_rows(
    bags: Bags,
    share: tuple[int, int],
    words: tuple[int, int],  # first, end
    spans: Array,
    cursor: Array,  # (end - first,) in and out: the next span of each word
    copies: Array,  # out, unless empty: the entries up to the last word of the range
    place: int,  # the next free one of `copies`
) -> None:
    """Write the spans of a range of sentences, each at its word's cursor."""
    first, last = words
    for s in range(*share):
        start = bags.starts[s]
        stop, shift = start + np.int64(bags.sizes[s]), np.int64(0)
        while stop > start and np.int64(bags.entries[stop - 1] >> bags.bits) >= last:
            stop -= 1
        if stop == start or np.int64(bags.entries[stop - 1] >> bags.bits) < first:
            continue
        if len(copies):
            shift = place - start
            for i in range(start, stop):
                copies[i + shift] = bags.entries[i]
            place += stop - start
        for i in range(stop - 1, start - 1, -1):
            row = np.int64(bags.entries[i] >> bags.bits) - first
            if row < 0:
                break
            spans[cursor[row], 0] = start + shift
            spans[cursor[row], 1] = i + shift
            cursor[row] += 1
