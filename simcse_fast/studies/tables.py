"""The tables of a study, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from simcse_fast.studies.options import METHOD_TITLES, QUANTITIES, QUANTITY_TITLES
from simcse_fast.studies.rows import ALL, CHANGE, OCCURRENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simcse_fast.studies.result import Study

LEVELS = {
    "occurrence": "A point is a word in a sentence",
    "word": "A point is a word, its mean weight",
}


def points_frame(result: Study) -> pd.DataFrame:
    """A row each point."""
    words = result.table.column("word")
    about = {name: result.table.column(name) for name in columns_of(result)}
    parts = [
        pd.DataFrame(
            {
                "set": name,
                "method": method,
                "sentence": points.sentence,
                "word": words[points.row],
                **{column: values[points.row] for column, values in about.items()},
                **{f"weight_{encoder}": own for encoder, own in points.weights.items()},
            }
        )
        for (name, method), points in result.points.items()
    ]
    found = pd.concat(parts, ignore_index=True)
    return found.drop(columns="sentence") if result.static else found


def columns_of(result: Study) -> list[Any]:
    """What the corpus tells of a word."""
    return ["count", *(name for name in QUANTITIES if name in result.table.arrow.column_names)]


def before_and_after(result: Study, level: str) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table over all words."""
    names = list(result.encoders)
    both = len(names) > 1
    head = ["sentences", "method", "quantity", "points"]
    for title in ("R²", "β", "Spearman", "partial R²"):
        head += [f"{title} {name}" for name in names]
        head += [f"{title} change"] * (both and title == "R²")
    lines = []
    for name, method in result.points:
        for quantity in result.options.quantities:
            place = {"set": name, "method": method, "quantity": quantity, "band": ALL}
            rows = {row["encoder"]: row for row in result.select(**place, level=level)}
            if rows:
                lines.append(
                    [
                        *(name, METHOD_TITLES[method], QUANTITY_TITLES[quantity]),
                        *cells(rows, names, both=both),
                    ]
                )
    return head, lines


def cells(rows: dict[str, dict[str, Any]], names: Sequence[str], *, both: bool) -> list[str]:
    """The numbers of a line, or why there are none."""
    first = rows[names[0]]
    found = [f"{first['points']:,}"]
    if "note" in first:
        return [*found, first["note"]]
    found += [f"{rows[name]['r_squared']:.3f}" for name in names]
    if both:
        found.append(with_interval(rows[CHANGE], "r_squared"))
    found += [f"{rows[name]['beta']:.3f} ± {rows[name]['beta_error']:.3f}" for name in names]
    found += [f"{rows[name]['spearman']:.3f}" for name in names]
    partial = [rows[name]["partial_r_squared"] for name in names]
    return found + ["" if value != value else f"{value:.3f}" for value in partial]  # noqa: PLR0124 - NaN


def with_interval(row: dict[str, Any], name: str) -> str:
    """A difference with its 95 % interval."""
    return f"{row[name]:+.3f} [{row[f'{name}_low']:+.3f}, {row[f'{name}_high']:+.3f}]"


def markdown(result: Study) -> str:
    """The tables over all words."""
    parts = []
    for level, title in LEVELS.items():
        head, lines = before_and_after(result, level)
        if lines:
            rows = [head, ["---"] * 3 + ["---:"] * (len(head) - 3), *lines]
            parts.append(f"{title}:\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts) + "\n"


def findings(result: Study) -> list[str]:
    """What the rows say, a sentence for each method."""
    names = list(result.encoders)
    level = "word" if result.static else OCCURRENCE
    said = []
    for method in dict.fromkeys(method for _, method in result.points):
        place = {"method": method, "level": level, "band": ALL, "quantity": "information_gain"}
        rows = [row for row in result.select(**place) if "note" not in row]
        last = [row for row in rows if row["encoder"] == names[-1]]
        if not last:
            continue
        values = ", ".join(f"{row['r_squared']:.2f} on {row['set']}" for row in last)
        sentence = (
            f"{METHOD_TITLES[method]}: information gain explains (R²) {values} of the variance "
            f"of the weights {names[-1]}"
        )
        changes = [row for row in rows if row["encoder"] == CHANGE]
        if changes:
            rose = sum(row["r_squared_low"] > 0 for row in changes)
            fell = sum(row["r_squared_high"] < 0 for row in changes)
            sentence += (
                f"; beyond doubt (95 %) this is more than before on {rose} of {len(changes)} sets "
                f"of sentences, and less on {fell}"
            )
        said.append(f"{sentence}.")
    return said


def moved(result: Study, words: int) -> tuple[list[tuple[str, float, float]], ...]:
    """The words whose mean weight rose most and fell most: word, before, after."""
    method = next(iter(result.points))[1]
    frame = points_frame(result)
    frame = frame[frame["method"] == method]
    grouped = frame.groupby("word")[["weight_before", "weight_after"]]
    mean = grouped.mean()[grouped.size() >= LEAST_TIMES if not result.static else slice(None)]
    by = (mean["weight_after"] - mean["weight_before"]).sort_values()
    rows = [(str(word), *mean.loc[word].tolist()) for word in by.index]
    return rows[::-1][:words], rows[:words]


LEAST_TIMES = 5  # a word stands in the sentences, for its mean to say something
