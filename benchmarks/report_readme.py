"""README's table of measurements, for benchmarks/report.py: one row a claim."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.harness import RESULTS, speed_up
from benchmarks.report_gpu import best

if TYPE_CHECKING:
    from pathlib import Path

BEGIN, END = "<!-- measured: written by python -m benchmarks.report -->\n", "<!-- /measured -->\n"
HEAD = (
    "| | ours | time of others over ours | by |",
    "|---|---:|---|---|",
)
TYPES = {"bfloat16": "bf16", "float32": "fp32"}
TEN = 10  # from here on ratios have one decimal
EPYC = "cpu-amd-epyc-zen-4-avx512"


def read(name: str, folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Rows of a result, and what stands in the last column."""
    result = json.loads((folder / f"{name}.json").read_text())
    program = result["provenance"]["command"].split()[2].removeprefix("benchmarks.")
    return result["rows"], f"[`{program}`](benchmarks/results/{name}.json)"


def only(rows: list[dict[str, Any]], /, **fields: Any) -> dict[str, Any]:
    """The row with these fields."""
    (found,) = (row for row in rows if all(row.get(k) == v for k, v in fields.items()))
    return found


def row(what: str, ours: str, peers: dict[str, float], by: str) -> str:
    """A line of the table."""
    ratios = "; ".join(f"{name} {x:.{2 if x < TEN else 1}f} x" for name, x in peers.items())
    return f"| {what} | {ours} | {ratios} | {by} |"


def milliseconds(seconds: list[float], count: int) -> str:
    """The median for each of a count of sentences."""
    return f"{1e3 * statistics.median(seconds) / count:,.0f} ms"


def loss_on_cpu(folder: Path) -> list[str]:
    """InfoNCE in fp32."""
    rows, by = read("info_nce-cpu-intel-xeon-amx", folder)
    rows, lines = [one for one in rows if "ms" in one], []
    for count in (1024, 8192):
        ms = {k: v["median"] for k, v in only(rows, rows=count, width=768)["ms"].items()}
        ours = ms["simcse_fast"]
        beside = {
            "eager": ms["eager"] / ours,
            "torch.compile": ms["torch.compile"] / ours,
            "sentence-transformers cached": ms["sentence-transformers cached"] / ours,
        }
        lines.append(row(f"InfoNCE, {count:,} x 768, fp32", f"{ours:,.1f} ms", beside, by))
    return lines


def loss_on_gpu(folder: Path) -> list[str]:
    """InfoNCE on an H200, also where it is not the quicker one."""
    rows, by = read("info_nce-nvidia-h200", folder)
    lines = []
    for count, dtype, symmetric in (
        (65_536, "bfloat16", False),
        (65_536, "bfloat16", True),
        (2_048, "bfloat16", True),
        (4_096, "float32", False),
    ):
        problem = {"rows": count, "width": 768, "dtype": dtype, "symmetric": symmetric}
        chosen = [r for r in rows if r["backward"] and all(r[k] == v for k, v in problem.items())]
        ms = {
            name: best(chosen, name)["ms"]["median"]
            for name in ("simcse_fast triton", "eager", "torch.compile")
        }
        ours = ms.pop("simcse_fast triton")
        form = "symmetric" if symmetric else "row-only"
        what = f"InfoNCE on an H200, {count:,} x 768, {TYPES[dtype]}, {form}"
        beside = {name: value / ours for name, value in ms.items()}
        lines.append(row(what, f"{ours:.1f} ms", beside, by))
    return lines


def training(folder: Path) -> list[str]:
    """Whole steps of MiniLM."""
    rows, by = read(f"training-{EPYC}", folder)
    lines = []
    for longest in (32, 128):
        found = only(rows, encoder=f"MiniLM, {longest} tokens", rows=1024)["methods"]
        ours, stock = found["simcse_fast, graphs kept"]["s"], found["stock cached 32"]["s"]
        what = f"a step of MiniLM, 1,024 pairs, {longest} tokens at most"
        beside = {"sentence-transformers cached": speed_up(stock, ours)}
        lines.append(row(what, f"{statistics.median(ours):.1f} s", beside, by))
    return lines


def attribution(folder: Path) -> list[str]:
    """Word weights of MiniLM: at equal error, and every dimension by equal rules."""
    rows, by = read(f"attribution-{EPYC}", folder)
    scalar, shapley = only(rows, kind="scalar", encoder="minilm"), only(rows, kind="shapley")
    vector = only(rows, kind="vector", tokens=16)
    names = {
        "captum, one at a time": "captum, a call a sentence",
        "captum, batched": "captum, batched",
    }
    return [
        row(
            "Integrated Gradients, a sentence, errors to 1 %",
            milliseconds(scalar["s"]["simcse_fast"], scalar["sentences"]),
            {shown: scalar["speed_up"][name] for name, shown in names.items()},
            by,
        ),
        row(
            "the same for every dimension, 16 tokens, 15 nodes",
            milliseconds(vector["s"]["simcse_fast"], 1),
            {"a backward pass for each dimension": vector["speed_up"]["D backward passes"]},
            by,
        ),
        row(
            "Shapley values, a sentence of 5 to 10 words, equal 95th percentile",
            milliseconds(shapley["s"]["simcse_fast, equal 95th percentile"], shapley["sentences"]),
            {"shap's Partition": shapley["partition_over_p95"]},
            by,
        ),
    ]


def information(folder: Path) -> list[str]:
    """Counting, one thread."""
    rows, by = read(f"information-{EPYC}", folder)
    lines = []
    for part, count, what, peer in (
        ("counting", 1_200_000, "information gain from ids", "scipy X^T X + KL"),
        ("parquet", 99_423, "information gain from Parquet", "ours behind Hugging Face WordLevel"),
    ):
        found = only(rows, part=part, sentences=count)
        ours = found["rate"]["ours, 1 thread"]
        beside = {peer.removesuffix(" + KL"): found["time_over_first"][peer]}
        size = f"{found['tokens'] / 1e6:.1f} M tokens, one thread each"
        lines.append(row(f"{what}, {size}", f"{ours:.1f} M tokens/s", beside, by))
    return lines


def uniformity(folder: Path) -> list[str]:
    """Of ten thousand rows."""
    rows, by = read(f"uniformity-{EPYC}", folder)
    found = only(rows, rows=10_000)
    ms = found["ms"]["simcse_fast"]["median"]
    beside = {name: found["speed_up"][name] for name in ("torch.pdist", "N x N matrix")}
    return [row("uniformity, 10,000 x 384", f"{ms:.0f} ms", beside, by)]


def table(folder: Path = RESULTS) -> str:
    """All rows."""
    parts = (loss_on_cpu, loss_on_gpu, training, attribution, information, uniformity)
    return "\n".join([*HEAD, *(line for part in parts for line in part(folder))]) + "\n"


def write(path: Path, folder: Path) -> None:
    """Put the table between its marks."""
    before, mark, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise SystemExit(f"{path}: expected the marks {BEGIN.strip()} and {END.strip()}")
    path.write_text(before + BEGIN + table(folder) + END + after, encoding="utf-8")
