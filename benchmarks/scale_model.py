"""From measured rates to batches and corpora that were not run: pure functions, all of them models.

A batch of M pairs, D numbers a row, W ranks, n = M / W rows each. Bytes, seconds and FLOP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# Vendors' figures, a direction.
NVLINK = 450e9  # bytes/s of a GPU: NVLink 4, 900 GB/s both ways (NVIDIA H100 and H200 data sheets)
INFINIBAND = 50e9  # bytes/s of a port: NDR, 400 Gb/s (NVIDIA Quantum-2)
ETHERNET = 12.5e9  # bytes/s of a node: 100 Gb/s
HBM = 4.8e12  # bytes/s of an H200's memory (NVIDIA H200 data sheet)
NODE = 8  # GPUs, each with a port of its own where there is InfiniBand
# Assumptions.
ENCODER_SHARE = 0.5  # of the measured rate of a square product, that a whole encoder reaches
LAYER_WEIGHTS = 85e6  # BERT-base without its embeddings
TOKENS = 32  # of a sentence
PASSES = 8  # FLOP a weight and token: embedded twice without a graph kept (2 + 2), backward (4)
BESIDE = 10e9  # bytes of a GPU that the encoder, its optimizer and a mini-batch take

PANEL = 1536 << 20  # bytes: simcse_fast.backend.DEFAULT_LIMIT
KEY, WIDE = 2, 4  # bytes of a bf16 and an fp32 number


@dataclass(frozen=True)
class Rates:
    """FLOP/s of an H200, from benchmarks/results."""

    one_pass: float  # the loss in one direction, three products
    two_passes: float  # the symmetric loss, four products
    square: float  # a bare product

    @property
    def encoder(self) -> float:
        """An assumption on top of a measurement."""
        return ENCODER_SHARE * self.square


def rates_of(rows: list[dict[str, Any]]) -> Rates:
    """From the rows of info_nce-nvidia-h200.json."""

    def rate(method: str, *, symmetric: bool, count: int, width: int) -> float:
        wanted = {"method": method, "symmetric": symmetric, "rows": count, "width": width}
        wanted["dtype"] = "bfloat16"
        (row,) = (row for row in rows if wanted.items() <= row.items())
        return float(row["tflops"]) * 1e12

    ours = {"count": 65_536, "width": 768}
    return Rates(
        rate("simcse_fast triton", symmetric=False, **ours),
        rate("simcse_fast triton", symmetric=True, **ours),
        rate("square product", symmetric=False, count=8_192, width=8_192),
    )


def panel_rows(columns: int, limit: int = PANEL) -> int:
    """Rows of a GPU's panel of bf16 exponentials, as kernels/infonce/fused.py cuts it."""
    fit = limit // (KEY * columns + 12 * columns // 256)
    wave = 128 * 132 // 3  # of an H200's multiprocessors, D = 768
    return fit // wave * wave if fit >= wave else max(fit // 128 * 128, 1)


@dataclass(frozen=True)
class Batch:
    """One step of the loss over W ranks."""

    pairs: int
    width: int
    ranks: int

    @property
    def own(self) -> int:
        """Numbers of a rank's own keys."""
        return self.pairs // self.ranks * self.width

    def flop(self, products: int) -> float:
        """Of one rank."""
        return 2.0 * products * self.pairs * self.pairs / self.ranks * self.width

    def sent(self, design: str) -> tuple[int, int]:
        """Bytes that a rank sends forward and backward, bf16 keys and fp32 gradients."""
        hops = (self.ranks - 1) * self.own
        return hops * KEY, hops * (WIDE if design == "gather" else KEY + WIDE)

    def held(self, design: str) -> float:
        """Bytes of the loss on one rank at its peak, bf16, Triton."""
        if design == "ring":
            # Queries, keys and unit queries; two blocks of keys; two of fp32 gradients beside own.
            return self.own * (3 * KEY + 2 * KEY + 4 * WIDE) + PANEL
        everything = self.pairs * self.width
        own = self.own * (3 * KEY + WIDE)
        # Gathered keys, unit keys and fp32 sums, with a panel; then the gradients instead of it.
        return own + everything * (2 * KEY + WIDE) + max(PANEL, everything * KEY)

    def link(self) -> float:
        """Bytes/s at which a rank takes in what all ranks send, by NCCL's rings over all ports."""
        return NVLINK if self.ranks <= NODE else min(NVLINK, NODE * INFINIBAND)

    def gathering(self, link: float | None = None) -> float:
        """Seconds of the all-gather and the reduce-scatter: nothing hides them."""
        return sum(self.sent("gather")) / (link or self.link())

    def passing(self, link: float | None = None) -> float:
        """Seconds of a ring's hops, which the products hide if they take longer."""
        between = NVLINK if self.ranks <= NODE else INFINIBAND
        return sum(self.sent("ring")) / (link or between)

    def sums_again(self) -> float:
        """Seconds to read and write the keys' fp32 gradients once a panel, if nothing hides it."""
        panels = -(-self.pairs // self.ranks // panel_rows(self.pairs))
        return 2.0 * WIDE * panels * self.pairs * self.width / HBM

    def encoding(self, rates: Rates) -> float:
        """Seconds of the encoder on one rank's queries and keys."""
        tokens = 2 * self.pairs / self.ranks * TOKENS
        return PASSES * LAYER_WEIGHTS * tokens / rates.encoder


def gather_seconds(batch: Batch, rates: Rates) -> float:
    """The package's design: three products, then everything that travels."""
    return batch.flop(3) / rates.one_pass + batch.gathering()


def ring_seconds(batch: Batch, rates: Rates) -> float:
    """Four products, since a row's softmax comes too late for one pass; hops beneath them."""
    return max(batch.flop(4) / rates.two_passes, batch.passing())


def most_pairs(memory: float, width: int) -> float:
    """Where the gathered keys, sums and gradients fill what the encoder leaves."""
    return (memory - BESIDE) / (3 * KEY + WIDE) / width


def pairs_like_encoder(width: int, rates: Rates) -> float:
    """Where the loss takes as long as the encoder: 6 M D = 2 x PASSES x weights x tokens."""
    return 2 * PASSES * LAYER_WEIGHTS * TOKENS / rates.encoder / (6 * width / rates.one_pass)


def ranks_like_traffic(pairs: int, link: float, rate: float) -> float:
    """Where traffic takes as long as the products, whatever D: 6 M^2 D / W R = 6 M D / B.

    Of a ring with its 8 M^2 D and 8 M D the same.
    """
    return pairs * link / rate


# Counting on Spark.

CORES_OF_NODE, NODES, MEMORY_OF_CORE = 16, 64, 8e9  # an assumed cluster
NETWORK = 1.25e9  # bytes/s of a node: 10 Gb/s
SPLIT = 128 << 20  # bytes of text in a task: spark.sql.files.maxPartitionBytes, Spark's default
LETTERS = 6  # bytes of text a token
RESULT_SIZE = 1 << 30  # spark.driver.maxResultSize, Spark's default
DRIVER_WORD, WORKER_WORD = 40, 150  # bytes a word: simcse_fast/information/spark.py
ROW = 44  # bytes of a row of Spark around two binaries: bits, three fields, size, padding
BUCKET = 128 << 20
WORD_NUMBERS = 1 << 31  # Spark's int


@dataclass(frozen=True)
class Growth:
    """Words of a corpus as it grows: Heaps' law through measured lengths."""

    exponent: float
    factor: float

    def words(self, tokens: float) -> float:
        """Distinct words."""
        return float(self.factor * tokens**self.exponent)

    def tokens(self, words: float) -> float:
        """Where so many words are reached."""
        return float((words / self.factor) ** (1 / self.exponent))


def growth_of(rows: list[dict[str, Any]]) -> Growth:
    """Fitted through rows with tokens and words."""
    tokens, words = (np.log([row[name] for row in rows]) for name in ("tokens", "words"))
    slope, start = np.polyfit(tokens, words, 1)
    return Growth(float(slope), float(np.exp(start)))


@dataclass(frozen=True)
class Counting:
    """What was measured on small corpora, a token."""

    pairs_bytes: (
        float  # into the shuffle with more buckets than a sentence has words, 8-byte entries
    )
    rare: float  # share of tokens that are a row's
    beside: float  # tokens beside one
    squeezed: float  # of the bytes, what Spark writes
    row_share: float  # of the most frequent word that has a row
    row_bytes: float  # an occurrence of it
    core_rate: float  # tokens a second of a processor
    table_seconds: float  # a word, to build a task's table

    def shuffle(self, tokens: float) -> float:
        """Bytes of the pairs' shuffle, a row of Spark for every record."""
        return tokens * (self.pairs_bytes + ROW * self.rare)

    def buckets(self, tokens: float, size: float = BUCKET) -> float:
        """As plan_of bounds them: whole sentences of 8-byte entries, and 12 bytes."""
        return tokens * self.rare * (8 * (self.beside + 1) + 12) / size

    def largest_row(self, tokens: float) -> float:
        """Bytes of the row of the 1,025th word."""
        return tokens * self.row_share * self.row_bytes

    def tasks(self, tokens: float, split: float = SPLIT) -> float:
        """That read."""
        return tokens * LETTERS / split

    def core_hours(self, tokens: float) -> float:
        """Of reading, counting and shuffling, at the measured rate."""
        return tokens / self.core_rate / 3600

    def table_hours(self, tokens: float, words: float, split: float = SPLIT) -> float:
        """Of building the table of all words in every task."""
        return self.tasks(tokens, split) * words * self.table_seconds / 3600


def counting_of(rows: list[dict[str, Any]]) -> Counting:
    """From the rows of scale-cpu-*.json."""
    many = [row for row in rows if row["kind"] == "shuffle" and row["entry_bytes"] == 8]
    most = max(many, key=lambda row: (row["tokens"], row["buckets"]))
    each = next(row for row in many if row["bucket_bytes"] == 1)
    first, last = sorted(
        (row for row in rows if row["kind"] == "spark"), key=lambda row: row["tokens"]
    )[-2:]
    (table,) = (row for row in rows if row["kind"] == "vocabulary")
    occurrences = each["largest_row_share"] * each["tokens"]
    return Counting(
        pairs_bytes=most["bytes"] / most["tokens"],
        rare=most["rare_share"],
        beside=most["beside"],
        squeezed=last["pairs_written"] / last["pairs_bytes"],
        row_share=most["largest_row_share"],
        row_bytes=each["largest_bucket"] / occurrences,
        core_rate=(last["tokens"] - first["tokens"]) / (last["s"] - first["s"]),
        table_seconds=table["s"] / table["words"],
    )
