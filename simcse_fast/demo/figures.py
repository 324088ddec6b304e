"""The figures of the report, each for a light and for a dark page."""

from __future__ import annotations

from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from simcse_fast.demo.timing import Comparison
    from simcse_fast.demo.training import History
    from simcse_fast.demo.weights import Words

# Okabe and Ito's blue and orange: told apart by every reader, on white and on black.
BLUE, ORANGE = "#0072B2", "#E69F00"
INK = {"light": "#22262b", "dark": "#dfe3e8"}
FAINT = {"light": "#c9ced6", "dark": "#4a515c"}
FIRST = {"light": BLUE, "dark": "#56B4E9"}
LABELS = 14
NAME_WIDTH, NAME_HEIGHT = 0.18, 0.06  # of a panel


@contextmanager
def style(theme: str) -> Iterator[None]:
    """Transparent, thin axes, in the theme's ink."""
    ink = INK[theme]
    with plt.rc_context(
        {
            **dict.fromkeys(["text.color", "axes.labelcolor", "xtick.color", "ytick.color"], ink),
            "axes.edgecolor": FAINT[theme],
            "axes.grid": True,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "figure.dpi": 150,
            "font.family": "sans-serif",
            "font.size": 10,
            "grid.alpha": 0.35,
            "grid.color": FAINT[theme],
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "path.simplify": True,
        }
    ):
        yield


def draw(plot: Callable[..., Figure], *data: Any) -> dict[str, bytes]:
    """PNG by theme: on white for light (it also stands alone), see-through for dark."""
    images = {}
    for theme in INK:
        with style(theme):
            figure = plot(theme, *data)
            FigureCanvasAgg(figure)
            image = BytesIO()
            paper = {"facecolor": "white"} if theme == "light" else {"transparent": True}
            figure.savefig(image, format="png", metadata={"Software": None}, **paper)
            images[theme] = image.getvalue()
    return images


def loss_curve(theme: str, history: History) -> Figure:
    """Training loss by step beside what held-out halves say."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [point.step for point in history.held_out]
    left.plot(np.arange(1, len(history.losses) + 1), history.losses, color=FIRST[theme])
    left.set(title=f"Loss of the training batches ({history.batch_size:,} sentences each)")
    left.set(xlabel="step", ylabel="InfoNCE [nats]")
    accuracy = [100 * point.accuracy for point in history.held_out]
    right.plot(steps, accuracy, "o-", color=ORANGE, markersize=4)
    right.set(title="Held-out halves that find their other half", xlabel="step", ylabel="%")
    right.set_ylim(bottom=0)
    return figure


def norms(theme: str, words: Words) -> Figure:
    """Length of each word's vector against both kinds of information, before and after."""
    figure = Figure(figsize=(9, 7.2), layout="constrained")
    columns = {
        "information_gain": "information gain KL(w) [nats]",
        "self_information": "self-information \u2212log P(w) [nats]",
    }
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for row, moment in enumerate(("before", "after")):
        for column, (name, label) in enumerate(columns.items()):
            panel, x, y = panels[row, column], getattr(words, name), getattr(words, moment)
            panel.scatter(x, y, s=7, alpha=0.45, linewidths=0, color=FIRST[theme])
            slope, start = np.polyfit(x, y, 1)
            ends = np.array([x.min(), x.max()])
            panel.plot(ends, start + slope * ends, color=ORANGE)
            panel.set_title(f"{moment} training: R² = {words.r_squared(moment, name):.2f}")
            if row:
                panel.set_xlabel(label)
                name_some(panel, words.words, x, y)
        panels[row, 0].set_ylabel("length of the word's vector")
        panels[row, 0].set_ylim(bottom=max(panels[row, 0].get_ylim()[0], 0))  # lengths
    return figure


def name_some(panel: Any, words: list[str], x: Any, y: Any) -> None:
    """Name words at the edges of the cloud, as long as their names do not collide."""
    unit = np.column_stack([(x - x.min()) / np.ptp(x), (y - y.min()) / max(np.ptp(y), 1e-9)])
    far = np.argsort(-np.linalg.norm(unit - np.median(unit, axis=0), axis=1))
    taken: list[tuple[float, float]] = []
    for i in far:
        right = unit[i, 0] > 1 - NAME_WIDTH  # a name there would leave the panel
        middle = unit[i, 0] + (-NAME_WIDTH if right else NAME_WIDTH) / 2
        gaps = np.abs(np.array(taken).reshape(-1, 2) - (middle, unit[i, 1]))
        if len(taken) < LABELS and not (gaps < (NAME_WIDTH, NAME_HEIGHT)).all(axis=1).any():
            taken.append((middle, unit[i, 1]))
            shift, align = ((-5, 2), "right") if right else ((5, 2), "left")
            place = {"xytext": shift, "textcoords": "offset points", "ha": align}
            panel.annotate(words[i], (x[i], y[i]), fontsize=8, **place)


def costs(theme: str, comparisons: list[Comparison]) -> Figure:
    """Time and peak memory of both losses, one group of bars a size."""
    figure = Figure(figsize=(9, 0.9 + 0.62 * len(comparisons)), layout="constrained")
    measures = {"milliseconds": "forward + backward [ms]", "megabytes": "extra memory [MB]"}
    panels = figure.subplots(1, 2, sharey=True)
    place = np.arange(len(comparisons))[::-1]
    kinds = {"textbook": (0.2, FAINT[theme]), "fused": (-0.2, FIRST[theme])}
    for panel, (measure, label) in zip(panels, measures.items(), strict=True):
        for kind, (shift, colour) in kinds.items():
            values = [getattr(getattr(one, kind), measure) or 0 for one in comparisons]
            bars = panel.barh(place + shift, values, 0.36, color=colour, label=kind)
            known = [getattr(getattr(one, kind), measure) is not None for one in comparisons]
            texts = [
                f"{v:,.0f}" if k else "not measured" for v, k in zip(values, known, strict=True)
            ]
            panel.bar_label(bars, texts, padding=3, fontsize=9)
        panel.set(title=label)
        panel.set_yticks(place, [f"N = {one.rows:,}, D = {one.width}" for one in comparisons])
        panel.grid(visible=False)
        panel.margins(x=0.14)
        panel.locator_params(axis="x", nbins=5)
    panels[1].legend(loc="upper right")
    return figure
