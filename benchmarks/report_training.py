"""Tables and plots of the training results, for benchmarks/report.py."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from matplotlib import pyplot as plt

from benchmarks import harness
from benchmarks.training_peers import KEPT, OURS, STOCK

if TYPE_CHECKING:
    from pathlib import Path

COLOURS = {KEPT: "#0072B2", OURS: "#56B4E9", STOCK: "#D55E00", "GradCache": "#CC79A7"}
STATIC = {"simcse_fast": "#0072B2", "sentence-transformers": "#D55E00"}
OTHERS = ("#E69F00", "#009E73", "#882255")
ENCODER = """A step embeds both columns of a batch, computes the loss and ends in the encoder's
gradients. Seconds are medians of interleaved rounds; "x" is the stock cached loss's time over the
method's in the same round, the median of the rounds. Padding is padded over real tokens. Memory is
the most that a process with the method held beyond the model and its batch; it may take 10 GiB, and
graphs that are kept 65 % of what the machine has free. Steps that keep graphs are timed right after
one of their own, as in a training: their memory goes cold while others take their turns. Plain and
128 rows give their memory back between rounds, for all methods are there at once. Gradients are
compared with the uncached loss's at 32 pairs, dropout off."""
STATIC_TEXT = """A step embeds both columns, computes the loss and its gradients, and lets Adam move
the vectors. Milliseconds, medians of interleaved rounds."""


def seconds(method: dict[str, Any]) -> float:
    """The median of a method's rounds."""
    return statistics.median(method["s"])


def encoder_table(row: dict[str, Any]) -> list[str]:
    """One line a method for one batch."""
    stock = row["methods"].get(STOCK)
    lines = [
        "| | s | x | sentences/s | padding | memory, MiB | gradient off |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, method in row["methods"].items():
        padding = f"{method['padded'] / method['real']:.2f}" if "padded" in method else ""
        memory = f"{method['mib']:,.0f}" if "mib" in method else ""
        ratio = f"{harness.speed_up(stock['s'], method['s']):.2f}" if stock else ""
        cells = [
            *(f"{seconds(method):,.2f}", ratio),
            *(f"{method['sentences_per_s']:,.0f}", padding, memory),
            f"{method['gradient_error']:.1e}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def plot_encoder(rows: list[dict[str, Any]], path: Path) -> None:
    """Sentences a second by batch size, one panel an encoder and length."""
    titles = list(dict.fromkeys(row["encoder"] for row in rows))
    figure, axes = plt.subplots(1, len(titles), figsize=(4.6 * len(titles), 3.8), squeeze=False)
    names = list(dict.fromkeys(name for row in rows for name in row["methods"]))
    colours = dict(zip([n for n in names if n not in COLOURS], OTHERS * 2, strict=False)) | COLOURS
    for axis, title in zip(axes[0], titles, strict=True):
        chosen = [row for row in rows if row["encoder"] == title]
        for name in names:
            points = [
                (row["rows"], row["methods"][name]["sentences_per_s"])
                for row in chosen
                if name in row["methods"]
            ]
            if points:
                style = {"color": colours[name], "linewidth": 2.5 if name == KEPT else 1.3}
                axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, **style)
        axis.set(title=title, xlabel="pairs in a batch", xscale="log")
        ticks = sorted({row["rows"] for row in chosen})
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("sentences / s")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.19, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def encoders(result: dict[str, Any], picture: Path, about: str) -> list[str]:
    """What docs/benchmarks.md says of a machine's transformer steps."""
    rows = [row for row in result["rows"] if "methods" in row]
    plot_encoder(rows, picture)
    lines = [f"## Training steps on {about}", "", ENCODER, ""]
    lines += [f"![sentences a second by batch size]({picture.name})", ""]
    for row in rows:
        lines += [f"### {row['encoder']}, {row['rows']:,} pairs", "", *encoder_table(row), ""]
    for row in result["rows"]:
        if "loss_part" in row:
            ms = {name: value["median"] for name, value in row["ms"].items()}
            told = ", ".join(f"{name} {value:,.1f} ms" for name, value in ms.items())
            lines += [f"The loss part alone, {' x '.join(map(str, row['loss_part']))}: {told}.", ""]
        if "absent" in row:
            lines += [
                f"{row['encoder']}, {row['rows']:,} pairs: not enough memory for {row['absent']}.",
                "",
            ]
    return lines


def static(result: dict[str, Any], about: str) -> list[str]:
    """What docs/benchmarks.md says of a machine's steps of a static encoder."""
    rows = [row for row in result["rows"] if "ms" in row]
    names = list(dict.fromkeys(name for row in rows for name in row["ms"]))
    lines = [f"## Steps of a static encoder on {about}", "", STATIC_TEXT, ""]
    lines += ["| from | N x D | " + " | ".join(names) + " | stock / ours |"]
    lines += ["|---|---:|" + "---:|" * (len(names) + 1)]
    for row in rows:
        ms = {name: value["median"] for name, value in row["ms"].items()}
        cells = [f"{ms[name]:,.0f}" if name in ms else "not run" for name in names]
        stock, best = ms.get("sentence-transformers"), min(ms.values())
        ratio = f"{stock / best:.2f}" if stock else ""
        size = f"{row['rows']:,} x {row['width']}"
        lines.append(f"| {row['static']} | {size} | {' | '.join(cells)} | {ratio} |")
    told = [
        f"{row['mib']:,.0f} MiB at {row['rows']:,} x {row['width']}"
        for row in result["rows"]
        if row.get("mib")
    ]
    return [*lines, "", f"A step of ours adds {', '.join(told)} to a fresh process.", ""]
