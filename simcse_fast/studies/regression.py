"""Straight lines through clustered points, and how far they can be trusted.

Points of one sentence are not independent, so sentences are what errors and intervals count.
Everything that is bootstrapped is a function of sums over points; a resampled sentence only counts
more than once in them, so that a thousand resamples are one product of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FEWEST = 30  # points, and half as many clusters, that a line is drawn through
RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles
AT_ONCE = 2_000_000  # counts of clusters


@dataclass(frozen=True)
class Line:
    """A regression of y on x, beside it the rank correlation, and what x adds to z.

    Intervals are (low, high) percentiles of the bootstrap over clusters.
    """

    points: int
    clusters: int
    r_squared: float
    beta: float
    beta_error: float  # standard error, robust against clusters and unequal variances
    spearman: float
    partial_r_squared: float  # of x, given z; NaN without z
    intervals: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Resampled:
    """What lines become when clusters are drawn with replacement, (resamples,) each."""

    values: dict[str, Floats]

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Percentiles of each."""
        return {name: interval(values) for name, values in self.values.items()}


def interval(values: Floats) -> tuple[float, float]:
    """Percentiles; NaN where no resample has a value."""
    known = values[np.isfinite(values)]
    if not len(known):
        return (float("nan"), float("nan"))
    low, high = np.percentile(known, INTERVAL)
    return float(low), float(high)


def enough(clusters: NDArray[np.int64]) -> bool:
    """Whether there are points enough for a line and its error."""
    return len(clusters) >= FEWEST and 2 * len(np.unique(clusters)) >= FEWEST


@lru_cache(maxsize=1)  # the lines of one band, for all encoders and quantities, follow each other
def draws(clusters: int, resamples: int, seed: int) -> NDArray[np.int32]:
    """(resamples, clusters) how often each cluster is drawn."""
    generator = np.random.default_rng(seed)
    chance = np.full(clusters, 1 / clusters)
    drawn = np.empty((resamples, clusters), np.int32)
    for rows in at_once(resamples, clusters):
        drawn[rows] = generator.multinomial(clusters, chance, size=len(drawn[rows]))
    return drawn


def at_once(resamples: int, clusters: int) -> Iterator[slice]:
    """Rows of resamples, so many that their counts take little memory in double."""
    rows = max(1, AT_ONCE // clusters)
    for begin in range(0, resamples, rows):
        yield slice(begin, begin + rows)


def fit(
    x: Floats,  # (points,)
    y: Floats,  # (points,)
    clusters: NDArray[np.int64],  # (points,) any numbers
    z: Floats | None = None,  # (points,)
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Line, Resampled]:
    """The line of y on x, and its bootstrap.

    Two calls with the same clusters and seed draw the same resamples: their difference is paired.
    """
    names, number = np.unique(clusters, return_inverse=True)
    columns = [x, y, x if z is None else z, rankdata(x), rankdata(y)]
    centred = np.column_stack([column - column.mean() for column in columns])
    sums = moments(centred, number, len(names))
    given = z is not None
    whole = statistics(sums.sum(0)[None], centred.shape[1], given=given)
    drawn = draws(len(names), resamples, seed)
    parts = [drawn[rows].astype(np.float64) @ sums for rows in at_once(*drawn.shape)]
    resampled = Resampled(statistics(np.concatenate(parts), centred.shape[1], given=given))
    line = Line(
        points=len(x),
        clusters=len(names),
        **{name: float(found[0]) for name, found in whole.items()},
        beta_error=clustered_error(centred[:, 0], centred[:, 1], number, len(names)),
        intervals=resampled.intervals(),
    )
    return line, resampled


def moments(columns: Floats, number: NDArray[np.int64], clusters: int) -> Floats:
    """(clusters, 1 + k + k * k): of each cluster the points, sums and sums of products."""
    products = (columns[:, :, None] * columns[:, None, :]).reshape(len(columns), -1)
    terms = np.hstack([np.ones((len(columns), 1)), columns, products])
    found = np.zeros((clusters, terms.shape[1]))
    np.add.at(found, number, terms)
    return found


def statistics(sums: Floats, width: int, *, given: bool) -> dict[str, Floats]:
    """From sums over points, (rows, 1 + k + k * k): x, y, z, rank of x, rank of y."""
    mean = sums[:, 1 : 1 + width] / sums[:, :1]
    second = sums[:, 1 + width :].reshape(-1, width, width) / sums[:, :1, None]
    covariance = second - mean[:, :, None] * mean[:, None, :]
    spread = np.sqrt(np.maximum(np.einsum("rii->ri", covariance), 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = covariance / (spread[:, :, None] * spread[:, None, :])
        xy, xz, yz = correlation[:, 0, 1], correlation[:, 0, 2], correlation[:, 1, 2]
        partial = (xy - xz * yz) ** 2 / ((1 - xz**2) * (1 - yz**2))
        return {
            "r_squared": xy**2,
            "beta": covariance[:, 0, 1] / covariance[:, 0, 0],
            "spearman": correlation[:, 3, 4],
            "partial_r_squared": partial if given else np.full(len(partial), np.nan),
        }


def clustered_error(x: Floats, y: Floats, number: NDArray[np.int64], clusters: int) -> float:
    """Standard error of the slope by the sandwich over clusters (CR1); x and y are centred."""
    around = float(x @ x)
    if not around:
        return float("nan")
    rest = y - x * (x @ y / around)
    pull = np.bincount(number, x * rest, clusters)
    points = len(x)
    scale = clusters / (clusters - 1) * (points - 1) / (points - 2)
    return float(np.sqrt(scale * (pull @ pull)) / around)
