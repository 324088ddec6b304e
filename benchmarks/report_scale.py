"""Tables and a plot of docs/scale.md, for benchmarks/scale.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import pyplot as plt

from benchmarks import scale_model as model
from benchmarks.harness import RESULTS

if TYPE_CHECKING:
    from collections.abc import Iterable

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
PLOT, ON_GPU = "scale.svg", "info_nce-nvidia-h200.json"
PAIRS, WIDTHS, RANKS = 1 << 20, (768, 1024), (8, 64)
MEMORIES = {"80 GB": 80e9, "141 GB": 141e9}  # of an H100 and an H200
TOKENS = 10**9, 10**10, 10**11, 10**12
LARGE_SPLIT = 4 << 30  # bytes of text a task
GATHER, RING, GREY = "#0072B2", "#D55E00", "#999999"


def table(head: str, align: str, rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of Markdown."""
    return [f"| {head} |", align, *(f"| {' | '.join(row)} |" for row in rows)]


def loss(rates: model.Rates) -> list[str]:
    """One step at a million pairs."""
    rows = []
    for width in WIDTHS:
        for ranks in RANKS:
            batch = model.Batch(PAIRS, width, ranks)
            products = batch.flop(3) / rates.one_pass
            gather, ring = (sum(batch.sent(design)) / 1e9 for design in ("gather", "ring"))
            rows.append(
                [
                    *(f"{width}", f"{ranks}", f"{batch.encoding(rates):.2f}"),
                    f"{products:.3f} to {products + batch.sums_again():.3f}",
                    f"{batch.flop(4) / rates.two_passes:.3f}",
                    f"{gather:.1f}, {1e3 * batch.gathering():.0f} ms",
                    f"{ring:.1f}, {1e3 * batch.passing():.0f} ms",
                    f"{batch.held('gather') / 1e9:.1f}",
                    f"{batch.held('ring') / 1e9:.1f}",
                ]
            )
    head = (
        "D | GPUs | encoder, s | gather: products, s | ring: products, s | gather: sends GB, in | "
        "ring: sends GB, in | gather: holds GB | ring: holds GB"
    )
    return table(head, "|---:|---:|---:|---|---:|---|---|---:|---:|", rows)


def loss_limits(rates: model.Rates) -> list[str]:
    """Where gather stops being the right design."""
    width = WIDTHS[0]
    memory = ", ".join(
        f"{model.most_pairs(size, width) / 1e6:.0f} M pairs on {name}"
        for name, size in MEMORIES.items()
    )
    like = model.pairs_like_encoder(width, rates)
    infiniband = model.ranks_like_traffic(PAIRS, model.NODE * model.INFINIBAND, rates.one_pass)
    ring = model.ranks_like_traffic(PAIRS, model.INFINIBAND, rates.two_passes)
    ethernet = model.ranks_like_traffic(PAIRS, model.ETHERNET, rates.one_pass)
    wave = 128 * 132 // 3
    fits = max(n for n in range(1 << 16, 1 << 19, 64) if model.panel_rows(n) >= wave)
    rows = [
        ["the default panel", "no longer holds a wave of tiles", f"{fits:,} keys in all"],
        [
            "gather's memory",
            f"10 M D bytes on every GPU, {model.BESIDE / 1e9:.0f} GB beside",
            memory,
        ],
        ["the loss", "takes as long as the encoder, on any number", f"{like / 1e6:.0f} M pairs"],
        [
            "a plain ring's traffic",
            "takes as long as its products, through one port, at a million pairs and any D",
            f"{ring:,.0f} GPUs",
        ],
        [
            "gather's traffic",
            "takes as long as the products, at a million pairs and any D",
            f"{infiniband:,.0f} GPUs with a port each; {ethernet:,.0f} where a node has 100 Gb/s",
        ],
    ]
    return table("what | breaks how | at", "|---|---|---|", rows)


def ranks(rows: list[dict[str, Any]]) -> list[str]:
    """What was counted, in blocks of a rank's keys in fp32."""
    mine = [row for row in rows if row["kind"] == "ranks"]
    kinds = (
        ("gather", "float32", False),
        ("gather", "bfloat16", False),
        ("gather", "float32", True),
        ("ring", "float32", False),
    )
    lines = []
    for world in sorted({row["world"] for row in mine}):
        cells = [f"{world}"]
        for kind in kinds:
            (row,) = (
                row
                for row in mine
                if row["world"] == world and (row["design"], row["dtype"], row["symmetric"]) == kind
            )
            block = 4 * row["rows"] * row["width"]
            moved = (row[name] / block / (world - 1) for name in ("forward", "backward"))
            cells.append(", ".join(f"{value:.2f}" for value in moved))
            if kind in (kinds[0], kinds[3]):
                cells.append(f"{row['peak'] / block:.1f}")
        lines.append([*cells, ", ".join(apart(mine, world, of) for of in ("float32", "bfloat16"))])
    head = (
        "ranks | gather, fp32 | holds | gather, bf16 | symmetric, fp32 | ring, fp32 | holds | "
        "apart in fp32, bf16"
    )
    return table(head, "|---:|---|---:|---|---|---|---:|---:|", lines)


def apart(rows: list[dict[str, Any]], world: int, dtype: str) -> str:
    """The furthest that losses and gradients of a type are from one process's."""
    mine = [row["apart"] for row in rows if (row["world"], row["dtype"]) == (world, dtype)]
    return f"{max(mine):.0e}"


def short(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def growth(rows: list[dict[str, Any]]) -> list[str]:
    """What a token costs as the corpus grows."""
    lines = []
    for spark in (row for row in rows if row["kind"] == "spark"):
        tokens = spark["tokens"]
        mine = [row for row in rows if row.get("tokens") == tokens]
        shuffles = [row for row in mine if row["kind"] == "shuffle" and row["bucket_bytes"] > 1]
        few = min(shuffles, key=lambda row: (row["entry_bytes"], row["buckets"]))
        many = max(shuffles, key=lambda row: (row["entry_bytes"], row["buckets"]))
        pairs = [row["distinct"] / tokens for row in mine if row["kind"] == "pairs"]
        lines.append(
            [
                *(f"{tokens:,}", f"{few['words']:,}"),
                f"{pairs[0]:.2f}" if pairs else "",
                f"{few['bytes'] / tokens:.1f} ({few['buckets']})",
                f"{many['bytes'] / tokens:.1f} ({many['buckets']:,})",
                f"{spark['pairs_bytes'] / tokens:.1f}",
                f"{spark['pairs_written'] / tokens:.1f}",
                f"{1e6 * spark['s'] / tokens:.2f}",
            ]
        )
    head = (
        "tokens | words | distinct pairs a token | 4-byte entries (buckets) | 8-byte entries "
        "(buckets) | Spark's own count | written | processor, us a token"
    )
    return table(head, "|---:|" + "---:|" * 7, lines)


def corpus(counting: model.Counting, heaps: model.Growth) -> list[str]:
    """What large corpora would take."""
    lines = []
    for tokens in TOKENS:
        words, sent = heaps.words(tokens), counting.shuffle(tokens) / 1e12
        hours = (counting.table_hours(tokens, words, split) for split in (model.SPLIT, LARGE_SPLIT))
        lines.append(
            [
                f"10^{len(str(tokens)) - 1}",
                f"{short(words / 1e6)} M",
                short(counting.core_hours(tokens)),
                " / ".join(map(short, hours)),
                f"{short(sent)} / {short(counting.squeezed * sent)}",
                f"{counting.buckets(tokens):,.0f}",
                short(words * model.DRIVER_WORD / 1e9),
                short(words * model.WORKER_WORD / 1e9),
                short(2 * counting.largest_row(tokens) / 1e9),
            ]
        )
    head = (
        "tokens | words | core-hours | and for tables, splits of 128 MiB / 4 GiB | shuffle, TB / "
        "compressed | buckets | driver collects, GB | a worker's words, GB | its largest row, GB"
    )
    return table(head, "|---:|" + "---:|" * 8, lines)


def corpus_limits(counting: model.Counting, heaps: model.Growth) -> list[str]:
    """What stops counting, the first first."""
    result = model.RESULT_SIZE / model.DRIVER_WORD
    worker = model.MEMORY_OF_CORE / model.WORKER_WORD
    row = model.MEMORY_OF_CORE / 2 / counting.largest_row(1)
    limits = [
        (heaps.tokens(result), "driver", f"{result / 1e6:.0f} M words pass 1 GiB of results"),
        (row, "a worker", "the row of the 1,025th word, held twice, passes 8 GB"),
        (heaps.tokens(worker), "a worker", f"{worker / 1e6:.0f} M words pass 8 GB"),
        (heaps.tokens(model.WORD_NUMBERS), "Spark's int", "2^31 words"),
    ]
    return table(
        "breaks | how | at tokens",
        "|---|---|---:|",
        ([who, how, f"{tokens:.0e}".replace("e+", "e")] for tokens, who, how in sorted(limits)),
    )


def plot(rates: model.Rates, path: Path) -> None:
    """Seconds by GPUs, and memory by pairs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9))
    counts = [1 << power for power in range(1, 12)]
    batches = [model.Batch(PAIRS, WIDTHS[0], count) for count in counts]
    lines = (
        ("encoder", GREY, "-", [b.encoding(rates) for b in batches]),
        ("gather: products", GATHER, "-", [b.flop(3) / rates.one_pass for b in batches]),
        ("gather: traffic", GATHER, "--", [b.gathering() for b in batches]),
        (
            "gather: traffic, 100 Gb/s a node",
            GATHER,
            ":",
            [
                b.gathering(min(b.link(), model.ETHERNET) if b.ranks > model.NODE else None)
                for b in batches
            ],
        ),
        ("ring: products", RING, "-", [b.flop(4) / rates.two_passes for b in batches]),
        ("ring: traffic", RING, "--", [b.passing() for b in batches]),
    )
    for name, colour, style, seconds in lines:
        left.loglog(counts, seconds, style, color=colour, label=name)
    left.set(xlabel="GPUs", ylabel="seconds a step", title="1,048,576 pairs, D = 768 (model)")
    left.legend(frameon=False, fontsize=8)
    pairs = [1 << power for power in range(16, 26)]
    for name, colour, design, count in (
        ("gather, any number of GPUs", GATHER, "gather", 64),
        ("ring, 8 GPUs", RING, "ring", 8),
        ("ring, 64 GPUs", "#E69F00", "ring", 64),
    ):
        held = [model.Batch(n, WIDTHS[0], count).held(design) / 1e9 for n in pairs]
        right.loglog(pairs, held, color=colour, label=name)
    for name, size in MEMORIES.items():
        right.axhline(size / 1e9, color=GREY, linewidth=0.8)
        right.annotate(name, (pairs[0], size / 1e9), fontsize=8, va="bottom")
    right.set(xlabel="pairs", ylabel="GB of the loss on a GPU", title="D = 768 (model)")
    right.legend(frameon=False, fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def filled(text: str, name: str, lines: list[str]) -> str:
    """The page with what stands between two marks replaced."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{PAGE.name}: expected {begin} and {end}")
    return "\n".join([before + begin, *lines, end + after])


def write(result: dict[str, Any], page: Path) -> None:
    """Draw the tables between their marks, and the plot beside the page."""
    plt.rcParams["svg.hashsalt"] = "simcse_fast"  # the same file from the same figures
    on_gpu = json.loads((RESULTS / ON_GPU).read_text())
    (path,) = RESULTS.glob("information-cpu-*.json")
    lengths = [row for row in json.loads(path.read_text())["rows"] if row["kind"] == "scaling"]
    rates, heaps = model.rates_of(on_gpu["rows"]), model.growth_of(lengths)
    counting = model.counting_of(result["rows"])
    text = page.read_text()
    for name, lines in {
        "loss": loss(rates),
        "limits of the loss": loss_limits(rates),
        "ranks": ranks(result["rows"]),
        "growth": growth(result["rows"]),
        "corpus": corpus(counting, heaps),
        "limits of the corpus": corpus_limits(counting, heaps),
    }.items():
        text = filled(text, name, lines)
    page.write_text(text)
    plot(rates, page.with_name(PLOT))
