"""A study in pictures: clouds of words with the line through them, and bars of R squared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simcse_fast.studies.options import METHOD_TITLES, QUANTITY_TITLES
from simcse_fast.studies.rows import ALL, OCCURRENCE, WORD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from simcse_fast.studies.result import Study

    Floats = NDArray[np.float64]

# Okabe and Ito's colours: told apart by every reader.
COLOURS = {"before": "#9AA3AD", "after": "#0072B2"}
LINE = "#E69F00"
UNITS = {name: f"{title} [nats]" for name, title in QUANTITY_TITLES.items()}
MOST_DOTS = 4000  # drawn at random among more
NAMED = 14  # words at the edges of a cloud
NAME_SIZE = (0.17, 0.055)  # of a panel
MIDDLE = (0.5, 99.5)  # percentiles of the weights; what is further off than they are apart is cut
BAR = 0.38


def plot_scatter(result: Study, name: str | None = None, method: str | None = None) -> Figure:
    """Each word's mean weight against what the corpus tells of it, a row an encoder."""
    place = chosen(result, name, method)
    points = result.points[place].by_word()
    encoders, quantities = list(points.weights), result.options.quantities
    size = (4.6 * len(quantities), 3.5 * len(encoders))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        len(encoders), len(quantities), squeeze=False, sharex="col",
        sharey=False if result.static else "all",
    )  # fmt: skip
    words = result.table.column("word")[points.row]
    dots = np.random.default_rng(0).permutation(len(points.row))[:MOST_DOTS]
    for i, encoder in enumerate(encoders):
        for j, quantity in enumerate(quantities):
            ax = panels[i, j]
            x, y = result.table.column(quantity)[points.row], points.weights[encoder]
            cloud(ax, x, y, words, dots, COLOURS[encoder])
            ax.set_title(title(result, place, encoder, quantity), fontsize=9.5, loc="left")
            if i == len(encoders) - 1:
                ax.set_xlabel(UNITS[quantity])
        panels[i, 0].set_ylabel(label(place[1]))
    return figure


def chosen(result: Study, name: str | None, method: str | None) -> tuple[str, str]:
    """The first set and method that are meant.

    Raises:
        ValueError: there is none.
    """
    for place in result.points:
        if name in {None, place[0]} and method in {None, place[1]}:
            return place
    known = ", ".join(f"{one} {other}" for one, other in result.points)
    raise ValueError(f"name: expected a set and a method of {known}; got {name} {method}.")


def label(method: str) -> str:
    """What the weights are."""
    title = METHOD_TITLES[method]
    is_length = method not in {"ig", "shap", "norms"}
    return title if is_length else f"weight by {title}, 1 is even"


def title(result: Study, place: tuple[str, str], encoder: str, quantity: str) -> str:
    """R squared of the lines."""
    told = []
    for level, what in ((WORD, "words"), (OCCURRENCE, "occurrences")):
        about = {"set": place[0], "method": place[1], "encoder": encoder, "quantity": quantity}
        told += [
            row.get("note") or f"R² = {row['r_squared']:.2f} ({what})"
            for row in result.select(**about, level=level, band=ALL)
        ]
    return f"{encoder}: {', '.join(told)}"


def cloud(
    ax: Axes, x: Floats, y: Floats, words: NDArray[Any], dots: NDArray[np.int64], colour: str
) -> None:
    """Dots, the line through all points, and names at the edges."""
    low, high = np.percentile(y, MIDDLE)
    low, high = max(y.min(), 2 * low - high), min(y.max(), 2 * high - low)
    room = 0.08 * (high - low) or 1.0
    ax.set_ylim(low - room, high + room)
    shown = dots[(y[dots] > low - room) & (y[dots] < high + room)]
    ax.scatter(x[shown], y[shown], s=6, alpha=0.35, linewidths=0, color=colour, rasterized=True)
    if np.ptp(x):
        slope, start = np.polyfit(x, y, 1)
        ends = np.array([x.min(), x.max()])
        ax.plot(ends, start + slope * ends, color=LINE, linewidth=1.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    name_edges(ax, x[shown], y[shown], [words[i] for i in shown])


def name_edges(ax: Axes, x: Floats, y: Floats, words: Sequence[str]) -> None:
    """Names of words far from the middle, where they do not collide."""
    if len(x) < 2 or not np.ptp(x) or not np.ptp(y):  # noqa: PLR2004
        return
    unit = np.column_stack([(x - x.min()) / np.ptp(x), (y - y.min()) / np.ptp(y)])
    far = np.argsort(-np.linalg.norm(unit - np.median(unit, axis=0), axis=1))
    taken: list[Any] = []
    for i in far:
        right = unit[i, 0] > 1 - NAME_SIZE[0]  # a name there would leave the panel
        middle = unit[i] + (NAME_SIZE[0] * (-0.5 if right else 0.5), 0)
        gaps = np.abs(np.array(taken).reshape(-1, 2) - middle)
        if len(taken) < NAMED and not (gaps < NAME_SIZE).all(axis=1).any():
            taken.append(middle)
            ax.annotate(
                str(words[i]),
                (x[i], y[i]),
                xytext=(-4 if right else 4, 1),
                textcoords="offset points",
                ha="right" if right else "left",
                fontsize=7.5,
                parse_math=False,
            )


def plot_bars(result: Study) -> Figure:
    """R squared by set and method; a panel a quantity, with 95 % intervals."""
    quantities, names = result.options.quantities, list(result.encoders)
    places = list(result.points)
    width = max(3.2, 1.1 + 0.75 * len(places))
    figure = Figure(figsize=(width * len(quantities), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(quantities), squeeze=False, sharey=True)[0]
    level = WORD if result.static else OCCURRENCE
    for ax, quantity in zip(panels, quantities, strict=True):
        for number, encoder in enumerate(names):
            rows = [
                row
                for name, method in places
                for row in result.select(
                    set=name, method=method, quantity=quantity, band=ALL, level=level,
                    encoder=encoder,
                )
            ]  # fmt: skip
            bars(ax, rows, (number - (len(names) - 1) / 2) * BAR, encoder)
        ax.set_title(UNITS[quantity].removesuffix(" [nats]"), fontsize=10, loc="left")
        told = [f"{METHOD_TITLES[m]}" + ("" if result.static else f"\n{n}") for n, m in places]
        ax.set_xticks(range(len(places)), told, fontsize=8, rotation=20 if result.static else 0)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", alpha=0.25, linewidth=0.6)
        ax.set_axisbelow(True)
    panels[0].set_ylabel("R² of the weights")
    panels[0].set_ylim(bottom=0)
    if len(names) > 1:
        panels[0].legend(frameon=False, fontsize=8)
    return figure


def bars(ax: Axes, rows: Sequence[dict[str, Any]], shift: float, encoder: str) -> None:
    """A bar a place; one without a line is missing."""
    known = [(i, row) for i, row in enumerate(rows) if "note" not in row]
    if not known:
        return
    places = np.array([i for i, _ in known]) + shift
    values = np.array([row["r_squared"] for _, row in known])
    ends = np.array([[row["r_squared_low"], row["r_squared_high"]] for _, row in known]).T
    whiskers = np.maximum([values - ends[0], ends[1] - values], 0)
    style: dict[str, Any] = {"ecolor": "0.35", "capsize": 2, "error_kw": {"linewidth": 0.9}}
    ax.bar(places, values, BAR, color=COLOURS[encoder], label=encoder, yerr=whiskers, **style)
