"""Scores as bars, token similarities as a heat map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap

from simcse_fast.attribution.pieces import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from simcse_fast.attribution.attributions import Attributions
    from simcse_fast.attribution.similarity import TokenSimilarity

# Okabe and Ito's blue and orange: told apart by every reader.
BLUE, ORANGE = "#0072B2", "#E69F00"
MOST_NUMBERS = 12  # words on a side of a heat map with its numbers written in
DARK = 0.93  # of the largest share: from here on numbers are white


def plot_scores(result: Attributions, sentence: int, ax: Axes | None) -> Axes:
    """Horizontal bars, the first word on top."""
    tokens, scores = result.tokens[sentence], result.scores[sentence]
    if ax is None:
        size = (7, 1.2 + 0.3 * max(len(tokens), 1))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    places = np.arange(len(tokens))
    bars = ax.barh(places, scores, color=np.where(scores < 0, ORANGE, BLUE))
    ax.bar_label(bars, [f"{score:+.3g}" for score in scores], padding=3, fontsize=8)
    ax.set_yticks(places, tokens, parse_math=False)  # a word may hold a dollar
    ax.invert_yaxis()
    ax.axvline(0, color="0.5", linewidth=0.8)
    ax.margins(x=0.15)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"score: {result.method} of {result.target}", parse_math=False)
    ax.set_title(
        f"value {result.values[sentence]:.3f}, baseline "
        f"{result.baseline_values[sentence]:.3f}, error {percent(result.errors[sentence])}",
        loc="left",
        fontsize=10,
    )
    return ax


def plot_similarity(similarity: TokenSimilarity, ax: Axes | None = None) -> Axes:
    """A heat map of what each pair of tokens adds to the cosine.

    Args:
        similarity: of two sentences.
        ax: where to draw; a new figure by default.

    Returns:
        The axes: tokens of a down, of b across.
    """
    shares = similarity.shares()
    rows, columns = shares.shape
    if ax is None:
        size = (2.4 + 0.55 * max(columns, 4), 1.6 + 0.42 * max(rows, 3))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    most = float(np.abs(shares).max(initial=0)) or 1.0
    colours = LinearSegmentedColormap.from_list("orange-blue", [ORANGE, "white", BLUE])
    image = ax.imshow(shares, cmap=colours, vmin=-most, vmax=most, aspect="auto")
    ax.set_yticks(range(rows), similarity.tokens_a, parse_math=False)
    ax.set_xticks(range(columns), similarity.tokens_b, rotation=45, ha="right", parse_math=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if max(rows, columns) <= MOST_NUMBERS:
        for (i, j), share in np.ndenumerate(shares):
            ink = "white" if share > DARK * most else "black"
            ax.text(j, i, f"{share:z.2f}", ha="center", va="center", fontsize=8, color=ink)
    ax.figure.colorbar(image, ax=ax, label="on the scale of a cosine", shrink=0.8)
    ax.set_title(f"token similarity, together {shares.sum():.3f}", loc="left", fontsize=10)
    return ax
