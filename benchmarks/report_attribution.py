"""Tables and plots of the attribution results, for benchmarks/report.py."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.bench_attribution import CAPTUM, OURS

if TYPE_CHECKING:
    from pathlib import Path

COLOURS = {OURS: "#0072B2", CAPTUM: "#D55E00"}
SCALAR = """Integrated Gradients of the cosine of a sentence with itself, pad baseline. Errors are
of a sentence's scores over their length, against 512 nodes of Gauss-Legendre on the same sentences.
Milliseconds a sentence are medians of interleaved rounds; "x" is a method's time over ours in the
same round, the median of the rounds. Nodes are the fewest of those in the plot from which on the
95th percentile of the errors stays below 1 %: under a random BERT-base, whose path is nearly
straight, the fewest that were tried."""
VECTOR = """P, the Integrated Gradients of all dimensions, of one sentence at 15 midpoint nodes."""
SHAPLEY = """Shapley values of real sentences of 5 to 10 words, each one token, the cosine with
itself as target, against all coalitions. shap's Partition explainer is called on strings, as its
users do; ours takes as many coalitions as give its median error, or its 95th percentile."""
ATTENTION = """Forward and backward of a chunk of about 1,024 tokens, 12 heads, in fp32: what word
weights call instead of torch's `scaled_dot_product_attention` on a CPU. Errors are the largest of
the output and the three gradients, over their largest number, against fp64."""
RULES = """Median / 95th percentile of the errors in %, by number of nodes. The weights of all three
rules are calibrated to completeness; captum's are not."""


def percent(value: float) -> str:
    """A share."""
    return f"{100 * value:.2f} %"


def pick(result: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The rows of a kind."""
    return [row for row in result["rows"] if row["kind"] == kind]


def scalar(row: dict[str, Any]) -> list[str]:
    """One encoder: every method's time."""
    size = f"{row['sentences']} sentences, {row['tokens']:.1f} tokens on average"
    lines = [f"### {row['encoder']}: {size}", ""]
    lines += ["| | nodes | ms a sentence | x |", "|---|---:|---:|---:|"]
    nodes = row["nodes"] | {
        f"{OURS}, auto": f"{row['auto']['nodes']:.1f}",
        f"{CAPTUM}, default": 50,
        "captum, batched": row["nodes"][CAPTUM],
        f"{CAPTUM}, our nodes": row["nodes"][OURS],
    }
    for name, times in row["s"].items():
        took = 1e3 * statistics.median(times) / row["sentences"]
        lines.append(f"| {name} | {nodes[name]} | {took:.1f} | {row['speed_up'][name]:.2f} |")
    auto = row["auto"]
    told = auto["estimated"]
    text = (
        f'"auto" to 1 %: errors {percent(auto["median"])} (median), {percent(auto["p95"])} (95th '
        f"percentile); told {percent(told['median'])} and {percent(told['p95'])}. captum's default "
        f"takes {row['default_over_median']:.2f} x the time of our nodes with a median of 1 %. A "
        f"sentence alone and among others: {row['batch_against_single']:.0e} apart."
    )
    return [*lines, "", text, ""]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Error against time, one panel an encoder."""
    figure, axes = plt.subplots(1, len(rows), figsize=(4.6 * len(rows), 3.8), squeeze=False)
    for axis, row in zip(axes[0], rows, strict=True):
        for method, colour in COLOURS.items():
            points = [point for point in row["curve"] if point["method"] == method]
            x = [point["ms_per_sentence"] for point in points]
            median, high = ([100 * point[key] for point in points] for key in ("median", "p95"))
            axis.loglog(x, median, "o-", color=colour, markersize=3.5, label=f"{method}, median")
            axis.loglog(x, high, "--", color=colour, linewidth=1, label="95th percentile")
            for point, ms, error in zip(points, x, median, strict=True):
                axis.annotate(str(point["nodes"]), (ms, error), fontsize=6, color=colour)
        axis.axhline(1, color="#999999", linewidth=0.8)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set(title=row["encoder"], xlabel="ms a sentence (by the number of nodes)")
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("error of the scores [%]")
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def lengths(rows: list[dict[str, Any]]) -> list[str]:
    """Equal nodes, by length."""
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    lines = ["| tokens | " + " | ".join(encoders) + " |", "|---:|" + "---:|" * len(encoders)]
    for tokens in dict.fromkeys(row["tokens"] for row in rows):
        ratios = [f"{row['speed_up']:.2f}" for row in rows if row["tokens"] == tokens]
        lines.append(f"| {tokens} | {' | '.join(ratios)} |")
    return ["Time of captum, a call a sentence, over ours, both with 12 nodes:", "", *lines]


def vectors(rows: list[dict[str, Any]]) -> list[str]:
    """P by length."""
    lines = [
        "| tokens | ours, ms | torch.func / ours | D backward passes / ours |",
        "|---:|---:|---:|---:|",
    ]
    for row in rows:
        ms = 1e3 * statistics.median(row["s"][OURS])
        ratio = row["speed_up"]
        lines.append(
            f"| {row['tokens']} | {ms:,.0f} | {ratio['torch.func']:.1f} | "
            f"{ratio['D backward passes']:.1f} |"
        )
    memory = next((row["mib"] for row in rows if "mib" in row), None)
    if memory:
        text = f"At {rows[-1]['tokens']} tokens P takes {memory['ours']:.0f} MiB beyond the model; "
        lines += ["", f"{text}torch.func {memory['vmap']:.0f} MiB."]
    return lines


def shapley(row: dict[str, Any]) -> list[str]:
    """Errors by coalitions, and times."""
    lines = ["| method | coalitions | median error | 95th percentile | told (median) |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for point in row["curve"]:
        shares = map(percent, (point["median"], point["p95"], point["told"]["median"]))
        lines.append(f"| {OURS} | {point['samples']} | {' | '.join(shares)} |")
    for samples, error in row["kernel_shap"].items():
        lines.append(
            f"| shap KernelExplainer | {samples} | {percent(error['median'])} | "
            f"{percent(error['p95'])} | |"
        )
    theirs = row["partition"]
    lines.append(f"| shap Partition | | {percent(theirs['median'])} | {percent(theirs['p95'])} | |")
    each = {name: 1e3 * statistics.median(s) / row["sentences"] for name, s in row["s"].items()}
    told = "; ".join(
        f"{name} {ms:.0f} ms ({row['speed_up'][name]:.1f} x)" for name, ms in each.items()
    )
    count = row["samples"]
    text = (
        f"A sentence, ours with {count['median']} coalitions, or {count['p95']} for the 95th "
        f"percentile: {told}. Partition takes {row['partition_over_p95']:.1f} x the time of the "
        "latter."
    )
    return [*lines, "", text]


def corpus(row: dict[str, Any]) -> str:
    """Many sentences."""
    return (
        f"{row['sentences']:,} sentences of STS-B to 1 % in {row['s']:.0f} s "
        f"({row['sentences'] / row['s']:.0f} a second, {row['nodes']:.1f} nodes on average); with "
        f"12 nodes in {row['fixed_s']:.0f} s. Matrix products take {100 * row['gemm_share']:.0f} % "
        f"of that, attention's own kernels {100 * row['attention_share']:.0f} %."
    )


def section(result: dict[str, Any], picture: Path, machine: str) -> list[str]:
    """What docs/benchmarks.md says of one machine."""
    lines = [f"## Word weights on {machine}", "", SCALAR, ""]
    if rows := pick(result, "scalar"):
        plot(rows, picture)
        lines += [f"![error against time]({picture.name})", ""]
        for row in rows:
            lines += scalar(row)
    if rows := pick(result, "length"):
        lines += ["### By length", "", *lengths(rows), ""]
    if rows := pick(result, "vector"):
        lines += ["### Every dimension", "", VECTOR, "", *vectors(rows), ""]
    for row in pick(result, "shapley"):
        lines += ["### Shapley values", "", SHAPLEY, "", *shapley(row), ""]
    for row in pick(result, "corpus"):
        lines += ["### A corpus", "", corpus(row), ""]
    return lines


def attention(result: dict[str, Any], machine: str) -> list[str]:
    """Ours beside torch's, by length."""
    lines = [f"## Attention of short sequences on {machine}", "", ATTENTION, ""]
    lines += ["| head | tokens | ours, ms | torch, ms | torch / ours | error, ours | torch |"]
    lines += ["|---:|" + "---:|" * 6]
    for row in result["rows"]:
        ms = [f"{value['median']:.2f}" for value in row["ms"].values()]
        off = [f"{value:.0e}" for value in row["error"].values()]
        cells = [str(row["depth"]), str(row["length"]), *ms, f"{row['speed_up']:.1f}", *off]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def rules(results: list[dict[str, Any]]) -> list[str]:
    """Errors of the rules by number of nodes."""
    lines = ["## Rules along the path", "", RULES, ""]
    for result in results:
        rows = result["rows"]
        nodes = list(rows[0]["errors"]["mapped"])
        lines += [f"### {rows[0]['model']}", "", f"`{result['provenance']['command']}`", ""]
        lines += ["| baseline, target | rule | " + " | ".join(nodes) + " |"]
        lines += ["|---|---|" + "---:|" * len(nodes)]
        for row in rows:
            for rule, found in row["errors"].items():
                cells = [f"{100 * v['median']:.2f} / {100 * v['p95']:.2f}" for v in found.values()]
                lines.append(
                    f"| {row['baseline']}, {row['target']} | {rule} | {' | '.join(cells)} |"
                )
        lines.append("")
    return lines
