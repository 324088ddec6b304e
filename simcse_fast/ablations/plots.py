"""Scores with their deviations, and alignment against uniformity while models are trained."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from simcse_fast.ablations.result import Ablation

# Okabe and Ito's colours, told apart by every reader; the marks tell more than eight apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#B5A500")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
LABELS = {
    "dropout": "dropout",
    "augmentation": "second view",
    "pooling": "pooling",
    "temperature": "temperature",
    "batch": "batch size",
    "hard_negatives": "hard negatives",
    "objective": "objective",
    "own": "configurations",
}
ACROSS = 3  # panels side by side
BESIDE = 0.2  # of the way to the next configuration: where the seeds' dots are


def plot_scores(result: Ablation) -> Figure:
    """A panel a group: each seed a dot, the mean a mark with the standard deviation."""
    groups = list(dict.fromkeys(row["group"] for row in result.rows))
    figure, panels = _panels(len(groups), 4.2, 3.4)
    summary = result.summary()
    for ax, group in zip(panels, groups, strict=True):
        members = [one for one in summary if one["group"] == group]
        for place, one in enumerate(members):
            scores = [
                row["development"]
                for row in result.rows
                if (row["group"], row["configuration"]) == (group, one["configuration"])
                and row["development"] is not None
            ]
            ax.plot([place + BESIDE] * len(scores), scores, ".", color="0.4", markersize=4)
            if one["development"] is not None:
                ax.errorbar(
                    *(place, one["development"], one["development_deviation"]),
                    fmt="o", color=COLOURS[0], capsize=3, markersize=5,
                )  # fmt: skip
        names = [one["configuration"] for one in members]
        ax.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
        ax.set_xlim(-0.6, len(names) - 0.4)
        _finish(ax, LABELS[group], "", "STS, Spearman x 100")
    return figure


def plot_trajectories(result: Ablation) -> Figure | None:
    """A panel a group, a line a configuration: the mean of the seeds that were followed."""
    followed = [row for row in result.rows if len(row["trajectory"]) > 1]
    groups = list(dict.fromkeys(row["group"] for row in followed))
    if not groups:
        return None
    figure, panels = _panels(len(groups), 4.6, 3.8)
    for ax, group in zip(panels, groups, strict=True):
        rows = [row for row in followed if row["group"] == group]
        looks = cycle(zip(COLOURS, MARKS, strict=True))
        for name in dict.fromkeys(row["configuration"] for row in rows):
            mine = [row["trajectory"] for row in rows if row["configuration"] == name]
            x, y = (_mean(mine, measure) for measure in ("alignment", "uniformity"))
            colour, mark = next(looks)
            ax.plot(x, y, "-", color=colour, linewidth=1, alpha=0.8)
            ax.plot(x[1:], y[1:], mark, color=colour, markersize=3, label=name)
            ax.plot(x[-1:], y[-1:], mark, color=colour, markersize=8)
            ax.plot(x[:1], y[:1], "o", color="0.3", markersize=7, fillstyle="none", zorder=3)
        _finish(ax, LABELS[group], "alignment (lower is better)", "uniformity (lower is better)")
        ax.legend(frameon=False, fontsize=7)
    every = followed[0]["every"]
    figure.suptitle(
        f"every {every} steps, from the open circle to the large mark"
        if every > 1
        else "each step",
        fontsize=9,
    )
    return figure


def _mean(trajectories: list[list[dict[str, Any]]], name: str) -> np.ndarray[Any, Any]:
    values = [[np.nan if p[name] is None else p[name] for p in one] for one in trajectories]
    found: np.ndarray[Any, Any] = np.array(values, float).mean(axis=0)
    return found


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    across = min(count, ACROSS)
    down = -(-count // across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for ax in grid[count:]:
        ax.set_visible(False)
    return figure, list(grid[:count])


def _finish(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
