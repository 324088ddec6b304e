"""Sentences on their way to the tasks that own the rows of their rare words.

A bucket is a range of rows. A sentence goes to every bucket that owns one of its words, once, as a
record: its entries up to the last such word, beside which all pairs of those rows stand.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simcse_fast.kernels.cooccurrence.numba_sentences import Bags
from simcse_fast.kernels.numba_threads import jit

Array = NDArray[Any]


@jit
def count_words(ids: Array, sizes: Array, counts: Array, company: Array) -> None:
    """Add the sentences to each word's occurrences and to the tokens that stand beside them."""
    place: Any = 0
    for s in range(len(sizes)):
        size = np.int64(sizes[s])
        for i in range(place, place + size):
            counts[ids[i]] += 1
            company[ids[i]] += size - 1
        place += size


@jit
def measure_records(
    bags: Bags,
    low: int,  # the first sentence
    owner: Array,  # (words,) the bucket of each word, rising; negative where none needs it
    room: int,
    records: Array,  # (buckets,) in and out: records of each
    lengths: Array,  # (buckets,) in and out: their entries
) -> int:
    """Measure the records of sentences until they fill the room; returns the first one left."""
    total = 0
    for s in range(low, len(bags.sizes)):
        start = bags.starts[s]
        last: Any = np.int32(-1)
        for i in range(start + np.int64(bags.sizes[s]) - 1, start - 1, -1):
            bucket = owner[bags.entries[i] >> bags.bits]
            if bucket < 0:
                break
            if bucket != last:
                records[bucket] += 1
                lengths[bucket] += i + 1 - start
                total += i + 1 - start
                last = bucket
        if total >= room:
            return s + 1
    return len(bags.sizes)


@jit
def write_records(
    bags: Bags,
    share: tuple[int, int],
    owner: Array,
    record: Array,  # (buckets,) in and out: the next record of each
    place: Array,  # (buckets,) in and out: the next entry of each
    sizes: Array,  # (records,) out: entries of each record
    entries: Array,  # (entries,) out: the records, those of a bucket one after the other
) -> None:
    """Write what `measure_records` measured."""
    for s in range(*share):
        start = bags.starts[s]
        last: Any = np.int32(-1)
        for i in range(start + np.int64(bags.sizes[s]) - 1, start - 1, -1):
            bucket = owner[bags.entries[i] >> bags.bits]
            if bucket < 0:
                break
            if bucket != last:
                to, length = place[bucket], i + 1 - start
                for k in range(length):
                    entries[to + k] = bags.entries[start + k]
                sizes[record[bucket]] = length
                place[bucket] = to + length
                record[bucket] += 1
                last = bucket
