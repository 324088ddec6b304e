"""The report: one HTML file with everything in it."""

from __future__ import annotations

from collections import defaultdict
from html import escape
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from simcse_fast.page import document, picture, table
from simcse_fast.sparsity.plots import plot_curve, plot_scores
from simcse_fast.sparsity.selection import Selection
from simcse_fast.sparsity.sweep import OURS

if TYPE_CHECKING:
    from simcse_fast.sparsity.result import Sparsified

STYLE = "th:nth-child(2), td:nth-child(2) { text-align: left; }"
COLUMNS = ("spearman", "alignment", "uniformity", "test_spearman")


def page(result: Sparsified) -> str:
    """Findings, curves, scores, all numbers."""
    shares = " and ".join(
        f"{100 * share:.1f} % of the {kind}" for kind, share in result.removed.items()
    )
    parts = [f"<p>{escape(shares)} removed. {escape(' '.join(result.notes))}</p>"]
    if result.curve:
        parts += [f"<p>{escape(_finding(result))}</p>", picture(plot_curve(result), "curves")]
        parts += ["<h2>All models</h2>", _table(result)]
    parts += ["<h2>Scores</h2>", picture(plot_scores(result), "scores by layer")]
    if isinstance(result.selection, Selection):
        parts.append(_layers(result.selection))
    return document("SparseCSE: parameters removed", parts, STYLE)


def _finding(result: Sparsified) -> str:
    ours = {row["sparsity"]: row for row in result.curve if row["criterion"] == OURS}
    dense, sparse = ours[0.0], ours[result.sparsity]
    text = (
        f"On the pairs to choose by, Spearman's correlation x 100 is {sparse['spearman']:.2f} "
        f"after removal and was {dense['spearman']:.2f}"
    )
    if "test_spearman" in sparse:
        before, after = dense["test_spearman"], sparse["test_spearman"]
        text += f"; on the test pairs {after:.2f}, before {before:.2f}"
    if result.retrained_scores:
        text += f"; retrained {result.retrained_scores['spearman']:.2f}"
        if "test_spearman" in result.retrained_scores:
            text += f" and {result.retrained_scores['test_spearman']:.2f}"
    return f"{text}."


def _table(result: Sparsified) -> str:
    rows = defaultdict(list)
    for row in result.curve:
        rows[row["sparsity"], row["criterion"]].append(row)
    names = [name for name in COLUMNS if any(name in row for row in result.curve)]
    head = ["removed", "by", *(name.replace("_", " ") for name in names)]
    lines = [
        [f"{100 * sparsity:g} %", criterion]
        + [_cell([row[name] for row in several if name in row]) for name in names]
        for (sparsity, criterion), several in rows.items()
    ]
    return table(head, lines)


def _cell(values: list[float]) -> str:
    """The mean, with the deviation where there are several seeds."""
    if not values:
        return ""
    digits = 2 if abs(fmean(values)) > 10 else 4  # noqa: PLR2004 - correlations x 100, and losses
    shown = f"{fmean(values):.{digits}f}"
    return shown if len(values) == 1 else f"{shown} ± {stdev(values):.{digits}f}"


def _layers(selection: Selection) -> str:
    each = zip(selection.head_counts, selection.widths, strict=True)
    lines = [[str(number), str(heads), f"{width:,}"] for number, (heads, width) in enumerate(each)]
    return table(["layer", "heads kept", "neurons kept"], lines)
