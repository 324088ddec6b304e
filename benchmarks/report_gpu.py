"""Tables and plots of the GPU results, for benchmarks/report.py."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from pathlib import Path

FLOOR = "products in panels"  # with any number of rows: the best stands for all
SHOWN = {
    FLOOR: "#999999",
    "simcse_fast triton": "#0072B2",
    "simcse_fast cuda": "#000000",
    "simcse_fast torch": "#56B4E9",
    "eager": "#D55E00",
    "torch.compile": "#009E73",
    "memeff": "#CC79A7",
    "siglip-kernel": "#E69F00",
    "inf-cl": "#882255",
    "cut-cross-entropy": "#44AA99",
    "liger-kernel": "#661100",
}
INTRODUCTION = """Medians by the device's clock, warm. "products in panels" is the floor: the bare
matrix products of the plan in the best of its panels, gradients accumulated in fp32, nothing else.
TFLOP/s count the floor's products (1 forward; 3 row-only, 4 symmetric with the backward pass),
whatever a method executes. The error is of the gradients, relative, against fp64 at 2,048 rows."""


def direction(symmetric: bool) -> str:
    """As a heading says it."""
    return "symmetric" if symmetric else "row-only"


def best(rows: list[dict[str, Any]], method: str) -> dict[str, Any]:
    """The quickest row of a method, or one that says why it has no time."""
    mine = [row for row in rows if row["method"].startswith(method)]
    timed = [row for row in mine if "ms" in row]
    if timed:
        return min(timed, key=lambda row: row["ms"]["median"])
    return mine[0] if mine else {"reason": "not measured"}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """One line a method for a single problem, and why a peer has none."""
    lines = [
        "| | ms | / floor | TFLOP/s | extra memory, GiB | error |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    floor = best(rows, FLOOR).get("ms", {}).get("median")
    for method in SHOWN:
        if not any(row["method"].startswith(method) for row in rows):
            continue
        row = best(rows, method)
        error = f"{row['gradient_error']:.1e}" if "gradient_error" in row else ""
        if "ms" not in row:
            lines.append(f"| {method} | {row['reason'][:90]} | | | | {error} |")
            continue
        ms = row["ms"]["median"]
        ratio = f"{ms / floor:.2f}" if floor else ""
        memory = f"{row['peak_mib'] / 1024:.2f}" if "peak_mib" in row else ""
        lines.append(
            f"| {method} | {ms:,.3f} | {ratio} | {row['tflops']:.0f} | {memory} | {error} |"
        )
    return lines


def sizes_table(rows: list[dict[str, Any]]) -> list[str]:
    """Milliseconds of every method by N, at one width."""
    methods = [m for m in SHOWN if "ms" in best(rows, m)]
    lines = ["| N | " + " | ".join(methods) + " |", "|---:|" + "---:|" * len(methods)]
    for count in sorted({row["rows"] for row in rows}):
        here = [row for row in rows if row["rows"] == count]
        times = [best(here, method).get("ms") for method in methods]
        cells = [f"{time['median']:,.3f}" if time else "" for time in times]
        lines.append(f"| {count:,} | {' | '.join(cells)} |")
    return lines


def plot(rows: list[dict[str, Any]], widths: list[int], path: Path) -> None:
    """Time by N, both logarithmic: a panel for each width and direction."""
    figure, axes = plt.subplots(
        2, len(widths), figsize=(max(7.5, 3.1 * len(widths)), 6), sharex=True, squeeze=False
    )
    for (line, symmetric), (column, width) in product(enumerate((False, True)), enumerate(widths)):
        axis = axes[line][column]
        for method, colour in SHOWN.items():
            chosen = [r for r in rows if (r["symmetric"], r["width"]) == (symmetric, width)]
            counts = sorted({row["rows"] for row in chosen})
            times = [best([r for r in chosen if r["rows"] == n], method).get("ms") for n in counts]
            points = [(n, time["median"]) for n, time in zip(counts, times, strict=True) if time]
            if points:
                style = "--" if method == FLOOR else "-"
                axis.loglog(
                    *zip(*points, strict=True), style, marker=".", color=colour, label=method
                )
        axis.set(title=f"{direction(symmetric)}, D = {width}")
        axis.grid(alpha=0.25)
        if line:
            axis.set_xlabel("pairs N")
    for row in axes:
        row[0].set_ylabel("ms, forward and backward")
    named = {
        name: line
        for a in axes.flat
        for line, name in zip(*a.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named, loc="lower center", ncols=4, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def heading(what: str, source: dict[str, Any]) -> list[str]:
    """Of which device, and where it came from."""
    versions = ", ".join(f"{k} {v}" for k, v in source["versions"].items() if v != "not installed")
    return [
        *(f"## {what} on {source['gpu'] or 'no GPU: a rehearsal'}", ""),
        *(f"`{source['command']}` at commit {source['commit']}; {versions}.", ""),
    ]


def products(result: dict[str, Any]) -> list[str]:
    """What it says of the gradients' products."""
    lines = ["| product | panel's rows | D | ms | TFLOP/s | of the square one's | waves |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    for row in result["rows"][1:]:
        sizes = f"{row['rows']:,} | {row['width']:,} | {row['ms']['median']:,.3f}"
        rates = f"{row['tflops']:.0f} | {row['of_square']:.2f} | {row['waves']:.2f}"
        lines.append(f"| {row['product']} | {sizes} | {rates} |")
    return [*heading("Gradient products", result["provenance"]), *lines, ""]


def uniformity(result: dict[str, Any]) -> list[str]:
    """What it says of uniformity."""
    rows = result["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = ["| N x D | | | " + " | ".join(f"{m}, ms" for m in methods) + " |"]
    lines += ["|---|---|---|" + "---:|" * len(methods)]
    keys = "rows", "width", "dtype", "backward"
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        mine = {row["method"]: row for row in rows if tuple(row[k] for k in keys) == key}
        cells = [
            f"{mine[m]['ms']['median']:,.3f}" if "ms" in mine[m] else mine[m]["reason"][:60]
            for m in methods
        ]
        what = "value and gradient" if key[3] else "value"
        lines.append(f"| {key[0]:,} x {key[1]} | {key[2]} | {what} | {' | '.join(cells)} |")
    return [*heading("Uniformity", result["provenance"]), *lines, ""]


def section(result: dict[str, Any], picture: Path) -> list[str]:
    """What docs/benchmarks.md says of one GPU."""
    source, everything = result["provenance"], result["rows"]
    problems = [row for row in everything if row["method"] != "square product"]
    first = problems[0]
    dtype = first["dtype"]
    full = [row for row in problems if row["backward"]]
    plotted = [row for row in full if row["dtype"] == dtype]
    by_width: dict[int, set[int]] = {}
    for row in plotted:
        by_width.setdefault(row["width"], set()).add(row["rows"])
    plot(plotted, sorted(width for width, sizes in by_width.items() if len(sizes) > 1), picture)
    lines = [
        *heading("The loss", source),
        *(INTRODUCTION, "", f"![time by N]({picture.name})", ""),
    ]
    size = {key: first[key] for key in ("rows", "width", "dtype")}
    for symmetric, backward in product((False, True), (True, False)):
        kind = size | {"symmetric": symmetric, "backward": backward}
        if chosen := [row for row in problems if kind.items() <= row.items()]:
            passes = "forward and backward" if backward else "forward"
            name = (
                f"{first['rows']:,} x {first['width']}, {dtype}, {direction(symmetric)}, {passes}"
            )
            lines += [f"### {name}", "", *table(chosen), ""]
    kinds = sorted({(row["dtype"], row["symmetric"], row["width"]) for row in full})
    for kind in kinds:
        chosen = [row for row in full if (row["dtype"], row["symmetric"], row["width"]) == kind]
        name = f"By N: D = {kind[2]}, {kind[0]}, {direction(kind[1])}"
        lines += [f"### {name}", "", *sizes_table(chosen), ""]
    return lines
