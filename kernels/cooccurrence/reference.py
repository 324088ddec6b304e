"""Information gain written out. The oracle of the tests; never optimised."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def cooccurrence_counts(
    ids: NDArray[np.integer],  # (tokens,)
    offsets: NDArray[np.integer],  # (sentences + 1,) sentence s is ids[offsets[s] : offsets[s + 1]]
    size: int,
) -> NDArray[np.int64]:  # (size, size)
    """c[w, v]: how often v stands beside w, counted once for each pair of distinct positions."""
    pairs = np.zeros((size, size), dtype=np.int64)
    for start, stop in pairwise(offsets):
        times = np.bincount(ids[start:stop], minlength=size)
        pairs += np.outer(times, times) - np.diag(times)
    return pairs


def cooccurrence_kl(
    ids: NDArray[np.integer], offsets: NDArray[np.integer], size: int
) -> NDArray[np.float64]:  # (size,)
    """KL(w) = sum_v P(v|w) log(P(v|w) / P(v)); NaN for a word without company."""
    unigram = np.bincount(ids, minlength=size) / max(len(ids), 1)
    gains = np.full(size, np.nan)
    for word, pairs in enumerate(cooccurrence_counts(ids, offsets, size)):
        if pairs.any():
            seen = pairs > 0
            beside = pairs[seen] / pairs.sum()
            gains[word] = np.sum(beside * np.log(beside / unigram[seen]))
    return gains
