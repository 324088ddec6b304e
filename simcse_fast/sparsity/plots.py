"""Curves against sparsity, and scores by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simcse_fast.sparsity.selection import Selection
from simcse_fast.sparsity.sweep import MAGNITUDE, OURS, RANDOM

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from matplotlib.axes import Axes

    from simcse_fast.sparsity.result import Sparsified

# Okabe and Ito's colours: told apart by every reader.
COLOURS = {OURS: "#0072B2", MAGNITUDE: "#E69F00", RANDOM: "#7F7F7F"}
GONE = "#D55E00"
PANELS = {
    "spearman": "STS, Spearman x 100 (higher is better)",
    "alignment": "alignment (lower is better)",
    "uniformity": "uniformity (lower is better)",
}
BINS = 40
MANY = 100  # units of a layer from which on few of them would not be seen
LAYERS_A_ROW = 6


def plot_curve(result: Sparsified) -> Figure:
    """Three panels; random orders with the deviation of their seeds."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(PANELS))
    for ax, (name, title) in zip(axes, PANELS.items(), strict=True):
        dense = [row for row in result.curve if not row["sparsity"]]
        for criterion in COLOURS:
            rows = [row for row in result.curve if row["criterion"] == criterion]
            _line(ax, [row | {"criterion": criterion} for row in dense] * bool(rows) + rows, name)
        if name == "spearman":
            tested = [row for row in result.curve if "test_spearman" in row]
            if tested:
                x, y = zip(*((r["sparsity"], r["test_spearman"]) for r in tested), strict=True)
                ax.plot(x, y, "--", color=COLOURS[OURS], label=f"{OURS}, test pairs")
            ax.axvline(result.sparsity, color="0.8", zorder=0)
        if result.retrained_scores and name in result.retrained_scores:
            ax.plot(
                *(result.sparsity, result.retrained_scores[name], "*"),
                color=GONE, markersize=11, label="retrained",
            )  # fmt: skip
        ax.set_xlabel("share removed")
        ax.set_title(title, fontsize=10, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def _line(ax: Axes, rows: Sequence[dict[str, Any]], name: str) -> None:
    if not rows:
        return
    places = sorted({row["sparsity"] for row in rows})
    values = [[row[name] for row in rows if row["sparsity"] == place] for place in places]
    mean = np.array([np.mean(v) for v in values])
    spread = np.array([np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values])
    criterion = rows[0]["criterion"]
    colour = COLOURS[criterion]
    ax.plot(places, mean, "o-", markersize=3.5, color=colour, label=criterion)
    if spread.any():
        ax.fill_between(places, mean - spread, mean + spread, color=colour, alpha=0.25, linewidth=0)


def plot_scores(result: Sparsified) -> Figure:
    """A histogram for each layer (of weights: each matrix), what is removed in another colour."""
    kinds = _by_layer(result)
    rows = sum(-(-len(layers) // LAYERS_A_ROW) for layers in kinds.values())
    figure = Figure(figsize=(11, 1.5 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, LAYERS_A_ROW, squeeze=False)
    places = iter(grid.ravel())
    for kind, layers in kinds.items():
        highest = max(float(scores.max()) for scores, _ in layers) or 1.0
        many = layers[0][0].numel() > MANY
        edges = np.linspace(0, highest, (BINS if many else BINS // 3) + 1)
        for number, (scores, kept) in enumerate(layers):
            ax = next(places)
            both = [scores[kept].float().numpy(), scores[~kept].float().numpy()]
            ax.hist(both, edges, stacked=True, color=[COLOURS[OURS], GONE], log=many)
            ax.set_title(f"{kind}, {number}", fontsize=8, loc="left")
            ax.tick_params(labelsize=7)
            ax.spines[["top", "right"]].set_visible(False)
        for _ in range(-len(layers) % LAYERS_A_ROW):
            next(places).set_visible(False)
    figure.suptitle(
        f"scores by layer: kept (blue) and the {100 * result.sparsity:g} % removed (orange)",
        fontsize=10,
    )
    return figure


def _by_layer(result: Sparsified) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Scores and what stays, of each layer or matrix."""
    if isinstance(result.selection, Selection):
        return {
            kind: list(zip(result.scores[kind], getattr(result.selection, kind), strict=True))
            for kind in result.removed
        }
    pairs = zip(result.scores, result.selection, strict=True)
    return {"matrix": [(score.flatten().cpu(), mask.flatten()) for score, mask in pairs]}
