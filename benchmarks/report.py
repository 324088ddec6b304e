"""Tables and plots from benchmarks/results, and README's table: python -m benchmarks.report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import pyplot as plt

from benchmarks import (
    report_attribution,
    report_encoders,
    report_gpu,
    report_information,
    report_readme,
    report_study,
    report_training,
    word_weights,
)
from benchmarks.harness import RESULTS

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]
PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
OURS, EAGER, BARE = "simcse_fast", "eager", "three bare products"
COLOURS = dict(
    zip(
        (
            *(OURS, f"{OURS} without AMX", BARE, "three of our products", EAGER, "torch.compile"),
            "cut-cross-entropy (torch)",
        ),
        ("#0072B2", "#003C5F", "#999999", "#56B4E9", "#D55E00", "#009E73", "#CC79A7"),
        strict=True,
    )
)
OTHER = "#E69F00"
INTRODUCTION = """# Benchmarks

Written by `python -m benchmarks.report` from the files in `benchmarks/results`, one a processor.

Forward and backward of N pairs in fp32, milliseconds, medians of interleaved rounds in one process.
The floor, "three bare products", is the three matrix products that the loss cannot avoid, by torch,
in the loss's own panels, timed in the same rounds. Where "three of our products" is listed, the
loss uses the products of this package, which outrun torch's there: [loss.md](loss.md) says why."""
MEMORY = (
    "MiB that one step adds to a fresh process. Not run: methods whose N x N matrices exceed the "
    "free memory, and the cached loss where a step takes minutes."
)


def speed_table(rows: list[dict[str, Any]], width: int) -> list[str]:
    """Milliseconds of every method at one width, and what they say of ours."""
    rows = [row for row in rows if row.get("width") == width and "ms" in row]
    names = [name for name in rows[0]["ms"] if name != OURS]
    lines = [
        f"| N | {OURS} | " + " | ".join(names) + " | eager / ours | floor / ours |",
        "|---:|" + "---:|" * (len(names) + 3),
    ]
    for row in rows:
        ms = {name: value["median"] for name, value in row["ms"].items()}
        cells = [f"{ms[n]:,.2f}" if n in ms else "not run" for n in (OURS, *names)]
        ratios = f"{ms[EAGER] / ms[OURS]:.2f} | {ms[BARE] / ms[OURS]:.2f}"
        lines.append(f"| {row['rows']:,} | {' | '.join(cells)} | {ratios} |")
    return lines


def plain_table(rows: list[dict[str, Any]], field: str, cell: Callable[[Any], str]) -> list[str]:
    """One row for each that has the field, one column for each method."""
    rows = [row for row in rows if field in row]
    names = list(rows[0][field])
    lines = ["| N x D | " + " | ".join(names) + " |", "|---:|" + "---:|" * len(names)]
    for row in rows:
        cells = [cell(value) for value in row[field].values()]
        lines.append(f"| {row['rows']:,} x {row['width']} | {' | '.join(cells)} |")
    return lines


def mib(value: float | None) -> str:
    """A cell of the memory table."""
    return "not run" if value is None else f"{value:,.0f}"


def error_table(rows: list[dict[str, Any]], width: int) -> list[str]:
    """Relative error of the gradients against the textbook loss in fp64."""
    rows = [row for row in rows if row.get("width") == width and "ms" in row]
    rows = [row for row in rows if "gradient_error" in row["ms"][OURS]]
    names = [name for name, value in rows[0]["ms"].items() if "gradient_error" in value]
    lines = ["| N | " + " | ".join(names) + " |", "|---:|" + "---:|" * len(names)]
    for row in rows:
        cells = [f"{row['ms'][name]['gradient_error']:.1e}" for name in names]
        lines.append(f"| {row['rows']:,} | {' | '.join(cells)} |")
    return lines


def plot(rows: list[dict[str, Any]], widths: list[int], path: Path) -> None:
    """Time over the bare products, by N, one panel a width."""
    figure, axes = plt.subplots(1, len(widths), figsize=(3.1 * len(widths), 3.4), sharey=True)
    for axis, width in zip(axes, widths, strict=True):
        chosen = [row for row in rows if row.get("width") == width and "ms" in row]
        for name in chosen[0]["ms"]:
            points = [
                (row["rows"], row["ms"][name]["median"] / row["ms"][BARE]["median"])
                for row in chosen
                if name in row["ms"]
            ]
            axis.loglog(
                *zip(*points, strict=True),
                color=COLOURS.get(name, OTHER),
                linewidth=2.5 if name == OURS else 1.3,
                linestyle="--" if "products" in name else "-",
                label=name,
            )
        axis.set(title=f"D = {width}", xlabel="pairs N")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("time / three bare products")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    figure.savefig(path, metadata={"Date": None})


def machine(source: dict[str, Any]) -> str:
    """Where a result was measured."""
    if source["gpu"]:
        return str(source["gpu"])
    return f"{source['processor']}, {source['capability'].upper()}, {source['threads']} threads"


def origin(source: dict[str, Any]) -> str:
    """The command that gave a result, and with what."""
    versions = ", ".join(f"{k} {v}" for k, v in source["versions"].items() if v != "not installed")
    return f"`{source['command']}` at commit {source['commit']}; {versions}."


def training(folder: Path, page: Path) -> list[str]:
    """Sections on whole steps of training."""
    lines: list[str] = []
    for path in sorted(folder.glob("training-*.json")):
        result = json.loads(path.read_text())
        picture, source = page.with_name(f"{path.stem}.svg"), result["provenance"]
        lines += [*report_training.encoders(result, picture, machine(source)), origin(source), ""]
    for path in sorted(folder.glob("static-*.json")):
        result = json.loads(path.read_text())
        source = result["provenance"]
        lines += [*report_training.static(result, machine(source)), origin(source), ""]
    return lines


def attribution(folder: Path, page: Path) -> list[str]:
    """Sections on word weights."""
    lines: list[str] = []
    found = sorted(folder.glob("attribution-rules-*.json"))
    for path in sorted(set(folder.glob("attribution-*.json")) - set(found)):
        result = json.loads(path.read_text())
        picture, source = page.with_name(f"{path.stem}.svg"), result["provenance"]
        lines += report_attribution.section(result, picture, machine(source))
        lines += [origin(source), ""]
    for path in sorted(folder.glob("attention-*.json")):
        result = json.loads(path.read_text())
        source = result["provenance"]
        lines += [*report_attribution.attention(result, machine(source)), origin(source), ""]
    if found:
        lines += report_attribution.rules([json.loads(path.read_text()) for path in found])
    for path in sorted(folder.glob("word-weights-*.json")):
        result = json.loads(path.read_text())
        word_weights.plot(result["rows"][0], page.with_name("word-weights.svg"))
        lines += ["## The words of one sentence", "", "![two kinds of weights](word-weights.svg)"]
        lines += ["", origin(result["provenance"]), ""]
    return lines


def information(folder: Path, page: Path) -> list[str]:
    """Sections on information gain."""
    lines: list[str] = []
    for path in sorted(folder.glob("information-cpu-*.json")):
        result = json.loads(path.read_text())
        picture = page.with_name(f"{path.stem.replace('-cpu', '', 1)}.svg")
        source = result["provenance"]
        lines += report_information.section(result, picture, machine(source))
        lines += [origin(source), ""]
    return lines


def encoders(folder: Path, page: Path) -> list[str]:
    """Sections on metrics, evaluation and SparseCSE."""
    lines: list[str] = []
    for kind in ("uniformity", "evaluation"):
        for path in sorted(folder.glob(f"{kind}-cpu-*.json")):
            result = json.loads(path.read_text())
            source = result["provenance"]
            lines += getattr(report_encoders, kind)(result, machine(source))
            lines += [origin(source), ""]
    for part in ("scoring", "ablation", "sweep", "encoding", "retraining"):
        for path in sorted(folder.glob(f"sparsity-{part}-cpu-*.json")):
            result = json.loads(path.read_text())
            picture, source = page.with_name(f"{path.stem}.svg"), result["provenance"]
            lines += report_encoders.sparsity(result["rows"][0], picture, machine(source))
            lines += [origin(source), ""]
    return lines


def study(folder: Path) -> list[str]:
    """Sections on word weights against information."""
    lines: list[str] = []
    for part in ("static", "minilm"):
        for path in sorted(folder.glob(f"study-{part}-cpu-*.json")):
            result = json.loads(path.read_text())
            source = result["provenance"]
            lines += report_study.section(part, result["rows"], machine(source))
            lines += [origin(source), ""]
    return lines


def section(result: dict[str, Any], picture: str) -> list[str]:
    """What docs/benchmarks.md says of one machine."""
    rows, source = result["rows"], result["provenance"]
    widths = sorted({row["width"] for row in rows if "ms" in row})
    lines = [
        f"## The loss on {machine(source)}",
        "",
        origin(source),
        "",
        f"![time over the floor]({picture})",
        "",
    ]
    for width in widths:
        lines += [f"### D = {width}", "", *speed_table(rows, width), ""]
    if any("half_ms" in row for row in rows):
        times = plain_table(rows, "half_ms", lambda value: f"{value['median']:,.2f}")
        lines += ["### Inputs of 16 bits", "", *times, ""]
    lines += ["### Peak memory", "", MEMORY, "", *plain_table(rows, "mib", mib), ""]
    lines += [f"### Error of the gradients, D = {widths[0]}", ""]
    lines += ["Relative, against the textbook loss in fp64.", "", *error_table(rows, widths[0]), ""]
    absent = next((row["absent"] for row in rows if "absent" in row), {})
    return lines + [f"{name}: {reason}." for name, reason in absent.items()]


def main() -> None:
    """Write the page, and its plots beside it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="by default that beside docs")
    options = parser.parse_args()
    plt.rcParams["svg.hashsalt"] = "simcse_fast"  # the same file from the same figures
    lines = [INTRODUCTION, ""]
    on_cpu = sorted(options.results.glob("info_nce-cpu-*.json"))
    for path in on_cpu:
        result = json.loads(path.read_text())
        picture = options.page.with_name(f"{path.stem}.svg")
        widths = sorted({row["width"] for row in result["rows"] if "ms" in row})
        plot(result["rows"], widths, picture)
        lines += section(result, picture.name)
    for path in sorted(set(options.results.glob("info_nce-*.json")) - set(on_cpu)):
        picture = options.page.with_name(f"{path.stem}.svg")
        lines += report_gpu.section(json.loads(path.read_text()), picture)
    for kind in ("products", "uniformity"):
        for path in sorted(options.results.glob(f"{kind}-*.json")):
            if "-cpu-" not in path.name:
                lines += getattr(report_gpu, kind)(json.loads(path.read_text()))
    lines += training(options.results, options.page)
    lines += attribution(options.results, options.page)
    lines += information(options.results, options.page)
    lines += encoders(options.results, options.page)
    lines += study(options.results)
    options.page.write_text("\n".join(lines).rstrip() + "\n")
    print(options.page)
    if readme := options.readme or (README if options.page == PAGE else None):
        report_readme.write(readme, options.results)
        print(readme)


if __name__ == "__main__":
    main()
