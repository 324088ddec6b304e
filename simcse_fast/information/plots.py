"""Information gain against frequency, with what chance alone would give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from simcse_fast.information.table import Column, InformationTable

NAMED = 12  # words with the largest values, and as many of the most frequent
BINS = 60  # of counts, for the curve of chance
APART = (0.12, 0.03)  # of a plot's width and height, between labels
TITLES = {
    "information_gain": "information gain KL(P(·|w) ‖ P) [nats]",
    "corrected": "information gain beyond chance [nats]",
}


def plot_gain(table: InformationTable, ax: Axes | None, column: Column) -> Axes:
    """One dot a word; see `InformationTable.plot`."""
    if ax is None:
        ax = plt.subplots(figsize=(7, 5))[1]
    count, value = table.column("count"), table.column(column)
    ax.scatter(count, value, s=4, alpha=0.35, linewidths=0, rasterized=True)
    if "null" in table.arrow.column_names:
        draw_chance(table, ax, column)
    name_words(table, ax, column)
    if np.isfinite(value).any():
        ax.set_xscale("log")
    ax.set_xlabel("occurrences of the word")
    ax.set_ylabel(TITLES[column])
    ax.set_title(f"{len(table):,} words, {table.tokens:,} tokens")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def draw_chance(table: InformationTable, ax: Axes, column: Column) -> None:
    """The median of `null` among words of about equal count; zero for corrected values."""
    if column == "corrected":
        ax.axhline(0, color="tab:red", linewidth=1.2, label="by chance")
    else:
        count, null = table.column("count"), table.column("null")
        known = ~np.isnan(null)
        count, null = count[known], null[known]
        edges = np.geomspace(count.min(), count.max() + 1, BINS) if len(count) else [1]
        bins = np.digitize(count, edges)
        kept = np.unique(bins)
        middles = [[np.median(count[bins == k]), np.median(null[bins == k])] for k in kept]
        ax.plot(*np.transpose(middles or np.empty((0, 2))), color="tab:red", label="by chance")
    ax.legend(frameon=False)


def name_words(table: InformationTable, ax: Axes, column: Column) -> None:
    """Labels beside the dots of the words of largest value and of largest count, if apart."""
    rows = [*table.head(NAMED).arrow.to_pylist(), *table.top(NAMED, by=column).arrow.to_pylist()]
    rows = [row for row in rows if np.isfinite(row[column])]
    if not rows:
        return
    values = table.column(column)
    height = float(np.nanmax(values) - np.nanmin(values)) or 1.0
    span = float(np.log(table.column("count").max())) or 1.0
    taken: list[tuple[float, float]] = []
    for row in rows:
        place = np.log(row["count"]) / span, row[column] / height
        if all(abs(place[0] - x) > APART[0] or abs(place[1] - y) > APART[1] for x, y in taken):
            taken.append(place)
            ax.annotate(
                str(row["word"]),
                (row["count"], row[column]),
                xytext=(3, 2),
                textcoords="offset points",
                fontsize=7,
            )


def save_plot(table: InformationTable, path: Path, **options: Any) -> None:
    """Information gain and, where the table has it, what is beyond chance, side by side."""
    panels = [False, True] if "corrected" in table.arrow.column_names else [False]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6.4 * len(panels), 4.8), squeeze=False, layout="constrained"
    )
    try:
        for ax, corrected in zip(axes[0], panels, strict=True):
            table.plot(ax, corrected=corrected)
        figure.savefig(path, dpi=150, **options)
    finally:
        plt.close(figure)
