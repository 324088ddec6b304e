"""The rows of a study's table: a regression for each encoder, quantity and band of frequency."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_fast.studies import regression

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from simcse_fast.information import InformationTable
    from simcse_fast.studies.options import Quantity
    from simcse_fast.studies.points import Points

    Floats = NDArray[np.float64]

OCCURRENCE, WORD = "occurrence", "word"
CHANGE = "change"
ALL = "all"
FIGURES = ("r_squared", "beta", "spearman", "partial_r_squared")
SELF: Quantity = "self_information"


@dataclass(frozen=True)
class Quantities:
    """What the corpus says of the words in its table, (rows,) each."""

    values: dict[str, Floats]
    count: NDArray[np.int64]
    self_information: Floats

    @classmethod
    def of(cls, table: InformationTable, names: Sequence[Quantity]) -> Quantities:
        """Columns of a table."""
        values: dict[str, Floats] = {name: table.column(name) for name in names}
        return cls(values, table.column("count"), table.column(SELF))

    def bands(self, row: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """All points, and those of words of about equal count: powers of ten."""
        yield ALL, np.ones(len(row), bool)
        power = np.floor(np.log10(self.count[row])).astype(np.int64)
        for digits in np.unique(power).tolist():
            yield f"{10**digits:,} to {10 ** (digits + 1) - 1:,}", power == digits


def rows_of(
    points: Points,
    quantities: Quantities,
    levels: Sequence[str] = (OCCURRENCE, WORD),
    *,
    resamples: int,
    seed: int,
    **about: Any,
) -> list[dict[str, Any]]:
    """All regressions of one set of sentences under one method.

    Args:
        points: the words in the sentences.
        quantities: what to regress on.
        levels: whether a point is a word wherever it stands, or the mean of them.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        about: what all rows say of where they are from.
    """
    found = []
    for level in levels:
        own = points if level == OCCURRENCE else points.by_word()
        bands = [(band, own.only(kept)) for band, kept in quantities.bands(own.row)]
        fits = {
            (quantity, band): fits_of(some, quantity, quantities, resamples, seed)
            for band, some in bands  # outside, as all lines of a band have the same resamples
            for quantity in quantities.values
        }
        for quantity, (band, _) in product(quantities.values, bands):
            place = {**about, "level": level, "quantity": quantity, "band": band}
            found += [{**place, **row} for row in compared(fits[quantity, band])]
    return found


Fit = tuple[regression.Line, regression.Resampled] | int  # or the number of points, too few


def fits_of(
    points: Points, quantity: str, quantities: Quantities, resamples: int, seed: int
) -> dict[str, Fit]:
    """A line for each encoder, where there are points enough."""
    if not regression.enough(points.sentence):
        return dict.fromkeys(points.weights, len(points.row))
    x = quantities.values[quantity][points.row]
    z = None if quantity == SELF else quantities.self_information[points.row]
    return {
        name: regression.fit(x, weight, points.sentence, z, resamples=resamples, seed=seed)
        for name, weight in points.weights.items()
    }


def compared(fits: dict[str, Fit]) -> Iterator[dict[str, Any]]:
    """A row for each encoder, and one for the change from the first to the last."""
    for name, found in fits.items():
        yield {"encoder": name, **figures(found)}
    first, last = next(iter(fits.values())), list(fits.values())[-1]
    if len(fits) > 1 and not isinstance(first, int) and not isinstance(last, int):
        yield {"encoder": CHANGE, **change(first, last)}


def figures(found: Fit) -> dict[str, Any]:
    """The columns of a row."""
    if isinstance(found, int):
        return {"points": found, "note": f"too few points for a line: {found}"}
    line, _ = found
    row: dict[str, Any] = {"points": line.points, "clusters": line.clusters}
    for name in FIGURES:
        row[name] = getattr(line, name)
        row[f"{name}_low"], row[f"{name}_high"] = line.intervals[name]
    return row | {"beta_error": line.beta_error}


def change(
    first: tuple[regression.Line, regression.Resampled],
    last: tuple[regression.Line, regression.Resampled],
) -> dict[str, Any]:
    """Last less first; the same sentences were drawn for both, so the intervals are paired."""
    row: dict[str, Any] = {"points": last[0].points, "clusters": last[0].clusters}
    for name in FIGURES:
        row[name] = getattr(last[0], name) - getattr(first[0], name)
        with np.errstate(invalid="ignore"):  # resamples whose words are all alike
            differences = last[1].values[name] - first[1].values[name]
        row[f"{name}_low"], row[f"{name}_high"] = regression.interval(differences)
    return row
