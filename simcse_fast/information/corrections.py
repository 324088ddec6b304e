"""What information gain would be if the words beside a word were drawn at random."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from simcse_fast.errors import InputError
from simcse_fast.information.counting import How, count_pairs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from simcse_fast.information.ids import Numbered
    from simcse_fast.kernels.cooccurrence.engine import Chunk

GRID = 64  # values of R at which the sum over the vocabulary is taken
POINTS = 4096  # of the table of h
SMALLEST, LARGEST = 1e-12, 1e6  # expected counts; h is known in closed form outside
SUMMED = 200.0  # expected count up to which h is a sum over counts, beyond it a series
MOST_DRAWN = 1_000_000_000  # tokens numpy draws from without replacement


def excess(expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """h(x) = E[c log c] - x log x for c ~ Poisson(x), by its definition.

    Args:
        expected: (n,) x > 0.
    """
    found = np.empty_like(expected)
    large = expected > SUMMED
    x = expected[large]
    # E f(c) by Taylor at x, with Poisson's central moments x, x, x + 3 x^2, ...
    found[large] = 1 / 2 + 1 / (12 * x) + 1 / (12 * x**2) + 19 / (120 * x**3)
    x = expected[~large]
    count = np.arange(1, int(SUMMED + 12 * np.sqrt(SUMMED)) + 30, dtype=np.float64)
    log_factorial = np.cumsum(np.log(count))
    chance = np.exp(np.log(x)[:, None] * count - x[:, None] - log_factorial)
    found[~large] = chance @ (count * np.log(count)) - x * np.log(x)
    return found


@cache
def table_of_excess() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A grid of log x, and h there."""
    log_x = np.linspace(np.log(SMALLEST), np.log(LARGEST), POINTS)
    return log_x, excess(np.exp(log_x))


def clumping(
    chance: NDArray[np.float64],  # (words,) share of all tokens
    beside: tuple[float, float],  # sums over the tokens of the positions beside each, and squares
    tokens: int,
) -> NDArray[np.float64]:  # (words,)
    """Variance over mean of a pair's count in a shuffled corpus; 1 for Poisson.

    c_wv is a sum over the occurrences of v of K, the number of w in l positions beside it:
    K ~ Binomial(l, p_w) has variance over mean 1 - p_w + p_w Var(l) / E(l).
    """
    mean = beside[0] / tokens
    variance = beside[1] / tokens - mean**2
    spread = variance / mean if mean else 1.0
    return np.maximum(1 + chance * (spread - 1), 1e-3)


def null_gain(
    share: NDArray[np.float64],  # (words,) P(v), sums to 1
    company: NDArray[np.int64],  # (words,) R_w
    clumps: NDArray[np.float64] | float = 1.0,  # (words,) see `clumping`
) -> NDArray[np.float64]:  # (words,)
    """Expected KL of each word if its company were independent of it; NaN without company.

    KL0(R) = (1/R) sum_v h(R P(v)), h(x) = E[c log c] - x log x, c ~ Poisson(x): equal to
    (1/R) [sum_v E[c_v log c_v] - R sum_v P(v) log P(v)] - log R, without the differences of large
    numbers. Counts that come in clumps of k tell as much as R / k single ones. R enters smoothly:
    the sum is taken for 64 values and interpolated.
    """
    known = company > 0
    null = np.full(len(company), np.nan)
    if not known.any():
        return null
    values, times = np.unique(share[share > 0], return_counts=True)
    effective = np.broadcast_to(company / clumps, company.shape)[known]
    grid = np.geomspace(effective.min(), effective.max() * (1 + 1e-9), GRID)
    log_x, h = table_of_excess()
    sums = np.array([times @ np.interp(np.log(values * size), log_x, h) for size in grid])
    null[known] = np.exp(np.interp(np.log(effective), np.log(grid), np.log(sums / grid)))
    return null


def check_shuffle(tokens: int) -> None:
    """What numpy can draw from without replacement."""
    if tokens >= MOST_DRAWN:
        raise InputError(
            f'correction: "shuffle" takes corpora of fewer than {MOST_DRAWN:,} tokens, this has '
            f'{tokens:,}; expected "null" for so many'
        )


def shuffled(numbered: Numbered, seed: tuple[int, int]) -> Iterator[Chunk]:
    """All tokens of a corpus in random order, in sentences of the same lengths.

    A chunk's words are drawn without replacement from what is left, then put in random order: a
    random permutation of the whole that never holds more than a chunk.
    """
    generator, left = np.random.default_rng(seed), numbered.counts.copy()
    for offsets in numbered.lengths():
        drawn = generator.multivariate_hypergeometric(left, int(offsets[-1]), method="marginals")
        left -= drawn
        ids = np.repeat(np.arange(len(drawn), dtype=np.uint32), drawn)
        generator.shuffle(ids)
        yield ids, offsets


def shuffled_gain(numbered: Numbered, how: How, rounds: int, seed: int) -> NDArray[np.float64]:
    """Mean KL of each word over shuffled corpora; NaN where it never had company."""
    total, times = np.zeros(len(numbered.counts)), np.zeros(len(numbered.counts))
    for number in range(rounds):
        other = replace(numbered, source=partial(shuffled, numbered, (seed, number)))
        gain = count_pairs(other, replace(how, visit=None)).gain
        known = ~np.isnan(gain)
        total[known] += gain[known]
        times += known
    with np.errstate(invalid="ignore"):  # 0 / 0
        mean: NDArray[np.float64] = total / times
    return mean
