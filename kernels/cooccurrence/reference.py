"""Information gain written out. The oracle of the tests; never optimised."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def cooccurrence_counts(
    ids: NDArray[np.integer],  # (tokens,)
    offsets: NDArray[np.integer],  # (sentences + 1,) sentence s is ids[offsets[s] : offsets[s + 1]]
    size: int,
    window: int | None = None,
) -> NDArray[np.int64]:  # (size, size)
    """c[w, v]: pairs of distinct positions of one sentence, at most `window` apart."""
    pairs = np.zeros((size, size), dtype=np.int64)
    for start, stop in pairwise(offsets):
        for i in range(start, stop):
            low, high = (start, stop) if window is None else (i - window, i + window + 1)
            beside = [*ids[max(start, low) : i], *ids[i + 1 : min(stop, high)]]
            np.add.at(pairs[ids[i]], np.array(beside, np.int64), 1)
    return pairs


def cooccurrence_kl(
    ids: NDArray[np.integer],
    offsets: NDArray[np.integer],
    size: int,
    window: int | None = None,
    marginal: bool = False,
) -> NDArray[np.float64]:  # (size,)
    """KL(w) = sum_v P(v|w) log(P(v|w) / P(v)); NaN for a word without company."""
    counts = cooccurrence_counts(ids, offsets, size, window)
    share = counts.sum(axis=0) if marginal else np.bincount(ids, minlength=size)
    gains = np.full(size, np.nan)
    for word, pairs in enumerate(counts):
        if pairs.any():
            seen = pairs > 0
            beside = pairs[seen] / pairs.sum()
            gains[word] = np.sum(beside * np.log(beside / (share[seen] / share.sum())))
    return gains
