"""Which words to leave out together, and what each look says about every word.

A target of a sentence with n words is a function v on the 2^n sets of words. Shapley values are
linear in v, so weights found once for n serve all sentences of n words, and every output dimension.

Where not all sets are looked at, v is interpolated between those that are, by the kernel

    k(S, T) = prod_i (1 + rho s_i t_i),   s_i = 1 where word i is in S, else -1,

whose eigenfunctions are the products of s over subsets of words: an interaction of u words has
prior variance rho^u. Single words get more beside it (TREND), so that additive targets are met
almost exactly. It is a Gaussian process on the corners of a cube; Shapley values of the
interpolant are Shapley values by Bayesian quadrature. Efficiency holds exactly, since the empty
and the full set are among the looks. Beside KernelSHAP: python -m benchmarks.bench_attribution.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

INTERACTION = 1.2  # rho = INTERACTION / n: docs/attribution.md
MOST_RHO = 0.2
ORDERS = 64  # of interactions; those of more words have next to no variance
LAYER = 2 / 3  # of the sets that are left, for all of one size
KEPT = 512  # samples: 2 MiB a number of words
TREND = 0.1  # prior variance of a constant and of each word's own part, over k(S, S)


@dataclass(frozen=True)
class Coalitions:
    """Sets of n words, the empty one first and the full one second, and their weights.

    Attributes:
        sets: (M, n) bool, True for words that stay.
        weights: (n, M) Shapley values = weights @ values of the sets.
        doubt: (M, M) and the square of a sentence's sampling error is values @ doubt @ values;
            None where all sets are there.
    """

    sets: NDArray[np.bool_]
    weights: NDArray[np.float64]
    doubt: NDArray[np.float64] | None


def coalitions(words: int, samples: int, seed: int) -> Coalitions:
    """All sets, where there are no more than `samples`; else so many of them.

    Args:
        words: n.
        samples: M at most; the empty and the full set are always there.
        seed: of the sets that are drawn.
    """
    # Those of more samples hold too much to keep it.
    return (_kept if samples <= KEPT else _made)(words, samples, seed)


def _made(words: int, samples: int, seed: int) -> Coalitions:
    if 2**words <= samples:
        return _exact(words)
    sets = _drawn(words, max(samples, 2), np.random.default_rng(seed))
    return Coalitions(sets, *_interpolated(sets))


_kept = lru_cache(maxsize=64)(_made)


def _exact(words: int) -> Coalitions:
    """Every set, with the weights of Shapley's formula."""
    numbers = np.arange(2**words)
    numbers[1:] = numbers[:0:-1]  # the empty one first, then the full one
    sets = (numbers[:, None] >> np.arange(words)) & 1 == 1
    size = sets.sum(1)
    with_it = np.array([0.0, *(1 / (words * math.comb(words - 1, s)) for s in range(words))])
    without = np.append(with_it[1:], 0.0)
    weights = np.where(sets, with_it[size][:, None], -without[size][:, None])
    return Coalitions(sets, weights.T, None)


def _drawn(words: int, samples: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Sets with their complements: all of one word, then of two and so on, the rest by chance.

    A size is taken whole where two thirds of what is left suffice: the middle needs looks as well.
    """
    found: dict[bytes, NDArray[np.bool_]] = {}

    def add(members: NDArray[np.int64] | tuple[int, ...]) -> None:
        one = np.zeros(words, bool)
        one[list(members)] = True
        for each in (one, ~one):
            if len(found) < samples:
                found.setdefault(each.tobytes(), each)

    add(())
    size, middle = 1, max(words // 2, 1)
    while size <= middle:
        room = samples - len(found)
        if 2 * math.comb(words, size) > (room if size == 1 else room * LAYER):
            break
        for members in itertools.combinations(range(words), size):
            add(members)
        size += 1
    sizes = np.arange(min(size, middle), middle + 1)
    # By the root of how many sets a size has.
    likely = np.array([-math.lgamma(k + 1) - math.lgamma(words - k + 1) for k in sizes.tolist()])
    likely = np.exp((likely - likely.max()) / 2)
    while len(found) < min(samples, 2**words):
        chosen = random.choice(sizes, p=likely / likely.sum())
        add(random.choice(words, chosen, replace=False))
    return np.array(list(found.values()))


def _interpolated(
    sets: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights of the interpolant's Shapley values, and how far these may be off."""
    words = sets.shape[1]
    rho = min(INTERACTION / words, MOST_RHO)
    signs = np.where(sets, 1.0, -1.0)
    agreeing = (words + signs @ signs.T) / 2
    # k over its largest value, so that nothing overflows for long sentences.
    kernel = ((1 - rho) / (1 + rho)) ** (words - agreeing)
    scale = (1 + rho) ** -words
    share, prior = _shares(words, rho)
    among = sets.sum(1, keepdims=True) - sets  # (M, n) other words that are in the set
    cross = signs * share[among] * scale  # (M, n) covariance of values and Shapley values
    kernel = kernel + TREND * (1 + signs @ signs.T)
    cross = cross + TREND * 2 * signs
    inverse = np.linalg.inv(kernel)
    weights = cross.T @ inverse
    left = max(words * (prior * scale + 4 * TREND) - float((weights * cross.T).sum()), 0.0)
    # The trend takes a number a word and one more; the rest tells how large interactions are.
    doubt = inverse * (left / max(len(sets) - words - 1, 1))
    # Values count from that of the empty set, which is the first: a constant has no influence.
    weights[:, 0] -= weights.sum(1)
    doubt[0] -= doubt.sum(0)
    doubt[:, 0] -= doubt.sum(1)
    return weights, doubt


def _shares(words: int, rho: float) -> tuple[NDArray[np.float64], float]:
    """Covariance of one word's Shapley value with v(T), by how many other words are in T.

    The Shapley value of prod_{i in U} s_i is 2 / |U| for members of U where |U| is odd, else 0.

    Returns:
        (n,) without the word's own sign; and the prior variance of the Shapley value.
    """
    order = np.arange(1, min(words, ORDERS) + 1)
    value = np.where(order % 2, 2 / order, 0) * rho**order
    shares = np.empty(words)
    for inside in range(words):
        plus = _binomial(inside)
        minus = _binomial(words - 1 - inside) * (-1.0) ** np.arange(ORDERS)
        shares[inside] = np.convolve(plus, minus)[: len(order)] @ value
    prior = _binomial(words - 1)[: len(order)] @ (value * np.where(order % 2, 2 / order, 0))
    return shares, float(prior)


def _binomial(number: int) -> NDArray[np.float64]:
    """(ORDERS,) how many subsets of each size so many words have."""
    return np.array([float(math.comb(number, size)) for size in range(ORDERS)])
