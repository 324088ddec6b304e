"""The report: one HTML file with everything in it."""

from __future__ import annotations

import io
from base64 import b64encode
from collections import defaultdict
from html import escape
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from simcse_fast.sparsity.plots import plot_curve, plot_scores
from simcse_fast.sparsity.selection import Selection
from simcse_fast.sparsity.sweep import OURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from simcse_fast.sparsity.result import Sparsified

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem;
  margin: 0 auto; padding: 2rem 1.25rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
img { max-width: 100%; background: white; border-radius: 6px; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .8rem; border-bottom: 1px solid #8884; }
th:nth-child(2), td:nth-child(2) { text-align: left; }
"""
COLUMNS = ("spearman", "alignment", "uniformity", "test_spearman")


def page(result: Sparsified) -> str:
    """Findings, curves, scores, all numbers."""
    shares = " and ".join(
        f"{100 * share:.1f} % of the {kind}" for kind, share in result.removed.items()
    )
    parts = [f"<p>{escape(shares)} removed. {escape(' '.join(result.notes))}</p>"]
    if result.curve:
        parts += [f"<p>{escape(_finding(result))}</p>", _picture(plot_curve(result), "curves")]
        parts += ["<h2>All models</h2>", _table(result)]
    parts += ["<h2>Scores</h2>", _picture(plot_scores(result), "scores by layer")]
    if isinstance(result.selection, Selection):
        parts.append(_layers(result.selection))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Sparsified encoder</title><style>{STYLE}</style></head>\n<body>"
        f"<h1>SparseCSE: parameters removed</h1>\n{chr(10).join(parts)}\n</body></html>\n"
    )


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


def _picture(figure: Figure, description: str) -> str:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    data = b64encode(image.getvalue()).decode()
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'


def _table(result: Sparsified) -> str:
    rows = defaultdict(list)
    for row in result.curve:
        rows[row["sparsity"], row["criterion"]].append(row)
    names = [name for name in COLUMNS if any(name in row for row in result.curve)]
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    lines = [f"<tr><th>removed</th><th>by</th>{head}</tr>"]
    for (sparsity, criterion), several in rows.items():
        cells = "".join(f"<td>{_cell([r[n] for r in several if n in r])}</td>" for n in names)
        lines.append(f"<tr><td>{100 * sparsity:g} %</td><td>{escape(criterion)}</td>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _cell(values: list[float]) -> str:
    """The mean, with the deviation where there are several seeds."""
    if not values:
        return ""
    digits = 2 if abs(fmean(values)) > 10 else 4  # noqa: PLR2004 - correlations x 100, and losses
    shown = f"{fmean(values):.{digits}f}"
    return shown if len(values) == 1 else f"{shown} ± {stdev(values):.{digits}f}"


def _layers(selection: Selection) -> str:
    lines = ["<tr><th>layer</th><th>heads kept</th><th>neurons kept</th></tr>"]
    each = zip(selection.head_counts, selection.widths, strict=True)
    lines += [f"<tr><td>{n}</td><td>{h}</td><td>{w:,}</td></tr>" for n, (h, w) in enumerate(each)]
    return f"<table>{''.join(lines)}</table>"
