"""Tables and plots of metrics, evaluation and SparseCSE, for benchmarks/report.py."""

from __future__ import annotations

from statistics import fmean, median, stdev
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from benchmarks.bench_uniformity import FLOOR, MATRIX, OURS, PDIST
from simcse_fast.sparsity.plots import plot_curve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UNIFORMITY = """Forward and backward in fp32, milliseconds, medians of interleaved rounds; beside
`torch.pdist` as Wang and Isola use it, and one N x N product. "products" are the one and a half
square products that no exact method avoids, in the same tiles. Memory is what a step adds to a
fresh process: of three, the largest of ours and the least of the others. Errors are relative, of
the gradient against fp64, at the same N up to 2,048."""
EVALUATION = """Scores of all-MiniLM-L6-v2 from the shared data, and seconds of encoding and of all
that follows; each task by itself, each distinct sentence once."""
SWEEP = """Units of all-MiniLM-L6-v2 scored on STS-B's training part; Spearman x 100, alignment and
uniformity on its development part, by which nothing was trained, and Spearman on its test part.
Random orders: mean and deviation of five seeds."""


def uniformity(result: dict[str, Any], about: str) -> list[str]:
    """What docs/benchmarks.md says of uniformity on a machine."""
    rows = [row for row in result["rows"] if "ms" in row]
    lines = [f"## Uniformity on {about}", "", UNIFORMITY, ""]
    lines += [
        f"| N x {rows[0]['width']} | {OURS} | {PDIST} | {MATRIX} | {FLOOR} | {PDIST} / ours |"
    ]
    lines[-1] += " floor / ours | MiB | pdist's MiB | error | pdist's error |"
    lines += ["|---:|" + "---:|" * 10]
    for row in rows:
        times = [f"{row['ms'][name]['median']:,.2f}" for name in (OURS, PDIST, MATRIX, FLOOR)]
        ratios = f"{row['speed_up'][PDIST]:.2f}", f"{row['share_of_floor']:.2f}"
        memory = [f"{row['mib'][name]:,.0f}" for name in (OURS, PDIST)]
        errors = [f"{row['error'][name]['gradient']:.1e}" for name in (OURS, PDIST)]
        lines.append(f"| {row['rows']:,} | {' | '.join([*times, *ratios, *memory, *errors])} |")
    large = next((row for row in result["rows"] if "seconds" in row), None)
    if large is not None:
        seconds = ", ".join(f"{name} {value:.0f} s" for name, value in large["seconds"].items())
        off = abs(large["value"] - large["exact"])
        lines += [
            "",
            (
                f"{large['rows']:,} rows: {seconds}, {large['mib'][OURS]:,.0f} MiB; the value is "
                f"{off:.1e} from that of blocks in fp64."
            ),
        ]
    return [*lines, ""]


def evaluation(result: dict[str, Any], about: str) -> list[str]:
    """What it says of known scores."""
    lines = [f"## Evaluation on {about}", "", EVALUATION, ""]
    lines += ["| task | score | mean of sub-sets | rows | encoding, s | scoring, s |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for row in result["rows"]:
        if "task" not in row:
            continue
        mean = f"{row['mean']:.2f}" if "mean" in row else ""
        cells = [mean, f"{row['count']:,}", f"{row['encoding_s']:.1f}", f"{row['scoring_s']:.1f}"]
        digits = 2 if row["score"] > 1 else 3
        lines.append(f"| {row['task']} | {row['score']:.{digits}f} | {' | '.join(cells)} |")
    for row in result["rows"]:
        if "beside" in row:
            told = ", ".join(
                f"{name} {median(times):.1f} s ({row['scores'][name]:.2f})"
                for name, times in row["s"].items()
            )
            lines += ["", f"{row['beside']} by both, medians of rounds in turn: {told}."]
    seeds = [row for row in result["rows"] if "seeds" in row]
    if seeds:
        told = ", ".join(f"{row['seeds']} {row['deviation']:.2f}" for row in seeds)
        lines += ["", f"Deviation of accuracy over five seeds of the folds: {told}."]
    return [*lines, ""]


def sparsity(part: dict[str, Any], picture: Path, about: str) -> list[str]:
    """What it says of one part of bench_sparsity."""
    written: dict[str, Callable[[], list[str]]] = {
        "scoring": lambda: _scoring(part),
        "ablation": lambda: _ablation(part),
        "sweep": lambda: _sweep(part, picture),
        "encoding": lambda: _encoding(part),
        "retraining": lambda: _retraining(part),
    }
    return [f"## SparseCSE on {about}: {part['part']}", "", *written[part["part"]](), ""]


def _scoring(part: dict[str, Any]) -> list[str]:
    told = ", ".join(
        f"{name} {value['median'] / 1e3:.1f} s ({part['speed_up'][name]:.2f} x)"
        for name, value in part["ms"].items()
    )
    return [
        (
            f"All units of MiniLM on {part['sentences']:,} sentences of STS-B's development part: "
            f"{told}. The plain loop takes 64 pairs at a time as "
            "they come, the losses of the batch, and gradients of everything."
        )
    ]


def _ablation(part: dict[str, Any]) -> list[str]:
    heads, neurons = part["units"]["heads"], part["units"]["neurons"]
    lines = [
        (
            f"Spearman's correlation of the prediction -dL/dxi with what removing the unit alone "
            f"does to the loss, over {heads} heads (all) and {neurons} neurons drawn at random, on "
            f"{part['sentences']:,} sentences of 500 pairs drawn from STS-B's development part."
        ),
        "",
        "| | all units | heads | neurons | all, sizes only |",
        "|---|---:|---:|---:|---:|",
    ]
    for loss, found in part["spearman"].items():
        cells = [f"{found[name]:.3f}" for name in ("all", "heads", "neurons", "all, sizes")]
        lines.append(f"| {loss} | {' | '.join(cells)} |")
    return lines


def _sweep(part: dict[str, Any], picture: Path) -> list[str]:
    chosen = part["chosen"]["sparsity"]
    shown = SimpleNamespace(curve=part["curve"], sparsity=chosen, retrained_scores=None)
    plot_curve(shown).savefig(picture, metadata={"Date": None})  # type: ignore[arg-type]
    lines = [SWEEP, "", f"![curves against sparsity]({picture.name})", ""]
    lines += ["| removed | STS | alignment | uniformity | test | magnitude, STS | random, STS |"]
    lines += ["|---:|" + "---:|" * 6]
    for sparsity in sorted({row["sparsity"] for row in part["curve"]}):
        rows = [row for row in part["curve"] if row["sparsity"] == sparsity]
        ours = next(row for row in rows if row["criterion"] == "SparseCSE")
        others = [row["spearman"] for row in rows if row["criterion"] == "magnitude"]
        chance = [row["spearman"] for row in rows if row["criterion"] == "random"]
        cells = [
            f"{ours['spearman']:.2f}",
            f"{ours['alignment']:.4f}",
            f"{ours['uniformity']:.3f}",
            f"{ours['test_spearman']:.2f}",
            f"{others[0]:.2f}" if others else "",
            f"{fmean(chance):.2f} ± {stdev(chance):.2f}" if chance else "",
        ]
        lines.append(f"| {100 * sparsity:g} % | {' | '.join(cells)} |")
    dense, best = part["dense"], part["chosen"]
    lines += [
        "",
        (
            f"The best small sparsity on the development part is {100 * chosen:g} %: "
            f"{best['spearman']:.2f} (dense {dense['spearman']:.2f}), on the test part "
            f"{best['test_spearman']:.2f} (dense {dense['test_spearman']:.2f})."
        ),
        "",
        "Variants, STS of development / test part:",
        "",
    ]
    levels = [row["sparsity"] for row in next(iter(part["variants"].values()))]
    lines += ["| | " + " | ".join(f"{100 * level:g} %" for level in levels) + " |"]
    lines += ["|---|" + "---:|" * len(levels)]
    for name, rows in part["variants"].items():
        cells = [f"{row['spearman']:.2f} / {row['test_spearman']:.2f}" for row in rows]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _encoding(part: dict[str, Any]) -> list[str]:
    worst = max(row["difference"] for row in part["reloaded"])
    lines = [
        (
            f'Encoding {part["sentences"]:,} sentences with neurons removed, allocation="layer"; '
            "models saved and loaded by sentence-transformers alone, whose embeddings are at most "
            f"{worst:.0e} from those before saving."
        ),
        "",
        "| neurons removed | numbers in matrices | sentences/s | x |",
        "|---:|---:|---:|---:|",
    ]
    for name, value in part["ms"].items():
        rate = part["sentences"] / value["median"] * 1e3
        share, ratio = part["share_of_products"][name], part["speed_up"][name]
        shown = "none" if name == "dense" else f"{100 * float(name):g} %"
        lines.append(f"| {shown} | {100 * share:.0f} % | {rate:,.0f} | {ratio:.2f} |")
    return lines


def _retraining(part: dict[str, Any]) -> list[str]:
    recipe = ", ".join(f"{name} {value}" for name, value in part["recipe"].items())
    lines = [
        f"Trained after removal ({recipe}). STS, development / test part.",
        "",
        "| removed | before | after |",
        "|---:|---:|---:|",
    ]
    for row in part["rows"]:
        cells = [
            f"{row[when]['spearman']:.2f} / {row[when]['test_spearman']:.2f}"
            for when in ("before", "after")
        ]
        lines.append(f"| {100 * row['sparsity']:g} % | {' | '.join(cells)} |")
    return lines
