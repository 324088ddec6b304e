"""Alignment against uniformity: one dot a model, in the colour of its score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simcse_fast.errors import InputError
from simcse_fast.evaluation.tasks import GROUPS, STS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from simcse_fast.evaluation.result import Evaluation

    Floats = NDArray[np.float64]

BLUE = "#0072B2"  # Okabe and Ito's
LEAST = 0.25  # of a score, at both ends of the colours
SIZE, FONT = 60, 8.5  # of a dot in square points, of a name in points
RINGS = (7, 20, 34, 50, 68, 88)  # points from a dot to its name
DIAGONAL = 0.7
DIRECTIONS = (
    *((1, 0), (-1, 0), (0, 1), (0, -1)),
    *((DIAGONAL, DIAGONAL), (-DIAGONAL, DIAGONAL), (DIAGONAL, -DIAGONAL), (-DIAGONAL, -DIAGONAL)),
)
ACROSS = {-1: "right", 0: "center", 1: "left"}
UP = {-1: "top", 0: "center", 1: "bottom"}
AWAY, DOT = 4.0, 400.0  # square pixels that a point of distance, and a covered dot, count as


def plot(evaluations: Mapping[str, Evaluation]) -> Figure:
    """Alignment across, uniformity up, the mean STS score as colour; the lower left is best.

    Args:
        evaluations: by name of the model, each with the tasks alignment and uniformity. The colour
            is the mean over those of STS12-16, STS-B and SICK-R that all models have.

    Returns:
        A matplotlib figure, which `savefig` writes; pyplot does not know it.

    Raises:
        ValueError: there is no model, or one has no alignment or uniformity.
    """
    if not evaluations:
        raise InputError("evaluations: expected one or more, got none.")
    places = np.array([_place(name, one) for name, one in evaluations.items()])
    x, y = places.T
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    shared = _shared(evaluations)
    style: dict[str, Any] = {"s": SIZE, "linewidths": 0.8, "edgecolors": "white", "zorder": 3}
    if shared and len(evaluations) > 1:
        means = [float(np.mean([one[task] for task in shared])) for one in evaluations.values()]
        low, high = min(means) - LEAST, max(means) + LEAST
        dots = ax.scatter(x, y, c=means, cmap="viridis", vmin=low, vmax=high, **style)
        label = "STS, mean" if len(shared) == len(GROUPS[STS]) else f"mean of {', '.join(shared)}"
        figure.colorbar(dots, ax=ax, label=label, pad=0.02)
    else:
        ax.scatter(x, y, color=BLUE, **style)
    ax.set_xlabel("alignment, $\\ell_{align}$   (lower is better)")
    ax.set_ylabel("uniformity, $\\ell_{uniform}$   (lower is better)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    _margins(ax, places)
    _name(figure, ax, places, list(evaluations))
    return figure


def _place(name: str, one: Evaluation) -> tuple[float, float]:
    for wanted in ("alignment", "uniformity"):
        if wanted not in one:
            raise InputError(
                f"evaluations: {name} has no {wanted}; evaluate with the tasks alignment and "
                "uniformity."
            )
    return one["alignment"], one["uniformity"]


def _shared(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """STS tasks whose mean can be compared."""
    names = [task.name for task in GROUPS[STS]]
    scores = {name: [one.get(name, np.nan) for one in evaluations.values()] for name in names}
    return [name for name, found in scores.items() if np.isfinite(found).all()]


def _margins(ax: Axes, places: Floats) -> None:
    """Room for names, and a scale that is no illusion where all dots are about the same."""
    low, high = places.min(axis=0), places.max(axis=0)
    room = np.maximum(0.18 * (high - low), 0.02 * np.maximum(abs(low), abs(high)) + 1e-3)
    ax.set_xlim(low[0] - room[0], high[0] + room[0])
    ax.set_ylim(low[1] - room[1], high[1] + room[1])


def _name(figure: Figure, ax: Axes, dots: Floats, names: list[str]) -> None:
    """Names beside dots, each where it covers least of other dots, other names, and the frame.

    A name that finds no room beside its dot goes farther out, at the end of a line.
    """
    figure.draw_without_rendering()
    pixels = ax.transData.transform(dots)
    point = figure.dpi / 72
    taken = np.empty((0, 4))
    crowd = np.linalg.norm(pixels[:, None] - pixels[None], axis=2).sum(axis=1)
    for row in np.argsort(-crowd):  # those at the edge have the fewest ways
        label = ax.annotate(
            names[row],
            tuple(dots[row]),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=FONT,
            parse_math=False,
        )
        size = np.array(label.get_window_extent().size)
        steps = np.array([(r * x, r * y) for r in RINGS for x, y in DIRECTIONS])
        # The side of the name that faces the dot is where the step ends.
        low = pixels[row] + point * steps + (np.sign(steps.round()) - 1) / 2 * size
        boxes = np.hstack([low, low + size])
        costs = np.array([_covered(box, pixels, taken, point) for box in boxes])
        costs += _outside(boxes, np.array(ax.bbox.extents))
        costs += AWAY * np.repeat(RINGS, len(DIRECTIONS))
        best = int(np.argmin(costs))
        taken = np.vstack([taken, boxes[best]])
        x, y = np.sign(steps[best].round()).astype(int)
        label.set(position=tuple(steps[best]), ha=ACROSS[x], va=UP[y])
        if best >= len(DIRECTIONS):
            ax.plot(*_line(ax, pixels[row], point * steps[best]), color="0.6", linewidth=0.6)


def _line(ax: Axes, dot: Floats, step: Floats) -> Floats:
    """From a dot to its name, (2, 2) x and y of the data."""
    found: Floats = ax.transData.inverted().transform([dot, dot + step]).T
    return found


def _covered(box: Floats, dots: Floats, taken: Floats, point: float) -> float:
    """Square pixels of other names under a name, and as many for each dot."""
    gap = np.hypot(*(np.clip(dots, box[:2], box[2:]) - dots).T)
    hit = np.count_nonzero(gap < 0.8 * RINGS[0] * point)
    shared = np.minimum(taken[:, 2:], box[2:]) - np.maximum(taken[:, :2], box[:2])
    return float(shared.clip(min=0).prod(axis=1).sum() + DOT * hit)


def _outside(boxes: Floats, frame: Floats) -> Floats:
    """Square pixels of names beyond the frame, which count double."""
    shared = np.minimum(boxes[:, 2:], frame[2:]) - np.maximum(boxes[:, :2], frame[:2])
    whole = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    found: Floats = 2 * (whole - shared.clip(min=0).prod(axis=1))
    return found
