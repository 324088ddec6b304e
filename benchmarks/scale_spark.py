"""What the shuffle of information gain moves as an invented corpus grows: counted, not timed.

Word frequencies fall in two regimes, as in large corpora (Gerlach and Altmann 2013, Phys. Rev. X 3,
021006): rank^-1 up to rank 7,873, rank^-1.77 beyond, without an end, so that the vocabulary grows
as the text to the power of 1 / 1.77. Sentences hold 5 to 40 words.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from simcse_fast import information_gain
from simcse_fast.information import spark_tasks
from simcse_fast.information.lower_case import Numbering
from simcse_fast.information.numbering import by_frequency
from simcse_fast.information.spark import Known, count_on_spark, plan_of
from simcse_fast.kernels.cooccurrence import engine

if TYPE_CHECKING:
    from numpy.typing import NDArray

KNEE, STEEP = 7_873, 1.77
SHORTEST, LONGEST = 5, 40
LENGTHS = 100_000, 1_000_000, 10_000_000  # tokens
PAIRED = LENGTHS[:2]  # of which the pairs fit the memory
VOCABULARY = 4_000_000  # words, of which a task's table is built
BATCH = 10_000  # sentences of an Arrow batch, as Spark gives them
LONG_SENTENCE = 1 << 20  # pretended, so that entries take 64 bits as in a large corpus
DEFAULT_BUCKET = 128 << 20
SMALL_BUCKETS = 1 << 16
CORES = 2
SPARK = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.sql.shuffle.partitions": "8",
    "spark.eventLog.enabled": "true",
    "spark.eventLog.compress": "false",
    "spark.network.timeout": "1800s",  # nobody waits for a machine that others load
    "spark.executor.heartbeatInterval": "600s",
}

WRITTEN = "internal.metrics.shuffle.write.bytesWritten"
SIZES = WRITTEN, "data size"  # of a stage, in Spark's log


def ranks(count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draws from the two regimes, numbered from 1."""
    head = np.cumsum(1 / np.arange(1, KNEE + 1))
    tail = 1 / (STEEP - 1)  # the integral of KNEE^0.77 r^-1.77 from the knee on
    total = head[-1] + tail
    draw = generator.random(count) * total
    found = np.searchsorted(head, draw).astype(np.int64) + 1
    beyond = draw > head[-1]
    left = (total - draw[beyond]) / tail  # uniform in (0, 1]
    most = float(1 << 60)
    found[beyond] = np.minimum(KNEE * left ** (-1 / (STEEP - 1)), most).astype(np.int64) + 1
    return found


def corpus(tokens: int) -> pa.Array:
    """Sentences of "w1", "w2", ...: about so many tokens."""
    generator = np.random.default_rng(tokens)
    sizes = generator.integers(SHORTEST, LONGEST + 1, int(2 * tokens / (SHORTEST + LONGEST)))
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    numbers = pa.array(ranks(int(offsets[-1]), generator)).cast(pa.string())
    words = pc.binary_join_element_wise("w", numbers, "")
    return pc.binary_join(pa.ListArray.from_arrays(offsets, words), " ")


def batches(texts: pa.Array) -> list[pa.RecordBatch]:
    """As Spark hands them to a task."""
    return pa.table({"text": texts}).to_batches(max_chunksize=BATCH)


def known_of(texts: pa.Array) -> Known:
    """The first reading, by one task."""
    rest, words = spark_tasks.count(iter(batches(texts)), presence=False)
    totals = rest.to_pylist()[0]
    spelled = words["word"].cast(pa.large_string())
    vocabulary, counts, rank = by_frequency(spelled, words["count"].to_numpy())
    company = np.empty_like(counts)
    company[rank] = words["company"].to_numpy()
    sizes = totals["longest"], totals["count"], totals["squares"]
    return Known(vocabulary, counts, company, *sizes)


def shuffled(texts: pa.Array, known: Known, bucket_bytes: int) -> dict[str, Any]:
    """Bytes and rows of the shuffle of the pairs, from the package's own tasks."""
    plan = plan_of(known, engine.log_shares(known.counts), False, bucket_bytes, CORES)
    size, rows, sums, of_bucket = 0, 0, 0, np.zeros(len(plan.bounds), np.int64)
    for batch in spark_tasks.send(iter(batches(texts)), plan):
        numbers = batch.column(0).to_numpy()
        keys, values = (pc.binary_length(batch.column(k)).to_numpy() for k in (1, 2))
        both, pairs = keys.astype(np.int64) + values, numbers >= 0
        size, sums = size + int(both[pairs].sum()), sums + int(both[~pairs].sum())
        rows += int(pairs.sum())
        np.add.at(of_bucket, numbers[pairs], both[pairs])
    tokens, entry = int(known.counts.sum()), np.dtype(plan.corpus.entry).itemsize
    rare = slice(plan.corpus.dense, None)
    return {
        "kind": "shuffle",
        "tokens": tokens,
        "words": len(known.counts),
        "bucket_bytes": bucket_bytes,
        "buckets": len(plan.bounds) - 1,
        "entry_bytes": entry,
        "bytes": size,
        "rows": rows,
        "totals_bytes": sums,
        "largest_bucket": int(of_bucket.max(initial=0)),
        "rare_share": float(known.counts[rare].sum() / tokens),
        "beside": float(known.company.sum() / tokens),
        "largest_row_share": float(known.counts[plan.corpus.dense] / tokens),
    }


def shuffles() -> list[dict[str, Any]]:
    """The same sentences with few buckets and with many, in entries of 4 and of 8 bytes."""
    rows = []
    for length in LENGTHS:
        texts = corpus(length)
        known = known_of(texts)
        for longest in (known.longest, LONG_SENTENCE):
            for size in (DEFAULT_BUCKET, SMALL_BUCKETS):
                rows.append(shuffled(texts, known._replace(longest=longest), size))
                print(rows[-1], flush=True)
        # A bucket for each word: what the largest of them takes no plan can divide.
        if length == LENGTHS[1]:
            rows.append(shuffled(texts, known._replace(longest=LONG_SENTENCE), 1))
        if length in PAIRED:
            _, pairs = information_gain(texts, min_count=1, return_counts=True)
            distinct = (pairs.nnz + np.count_nonzero(pairs.diagonal())) // 2
            tokens = int(known.counts.sum())
            rows.append({"kind": "pairs", "tokens": tokens, "distinct": int(distinct)})
            print(rows[-1], flush=True)
    return rows


def tables() -> list[dict[str, Any]]:
    """What a task of the second reading makes before it reads: the table of all words."""
    words = pa.array([f"w{k}" for k in range(VOCABULARY)], pa.large_string())
    Numbering(words[:10])
    begin = time.process_time()
    table = Numbering(words).words.table
    seconds = time.process_time() - begin
    held = sum(part.nbytes for part in table) / VOCABULARY
    print(row := {"kind": "vocabulary", "words": VOCABULARY, "s": seconds, "table_bytes": held})
    return [row]


def on_spark() -> list[dict[str, Any]]:
    """The whole count on Spark, two workers: processor seconds, and what its stages wrote."""
    from pyspark.sql import SparkSession  # noqa: PLC0415 - optional

    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["JAVA_TOOL_OPTIONS"] = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    rows = []
    with tempfile.TemporaryDirectory() as name:
        builder = SparkSession.builder.master(f"local[{CORES}]").config(map=SPARK)
        session = builder.config("spark.eventLog.dir", name).getOrCreate()
        session.sparkContext.setLogLevel("OFF")
        for length in (LENGTHS[0], *LENGTHS):  # the first starts workers and compiles
            path = Path(name) / f"{length}.parquet"
            pq.write_table(pa.table({"text": corpus(length)}), path, row_group_size=2 * BATCH)
            begin = processor_seconds()
            counted = count_on_spark(path, session=session)
            seconds = processor_seconds() - begin
            rows.append({"kind": "spark", "tokens": counted.tokens, "s": seconds})
        session.stop()
        found = [row | stages for row, stages in zip(rows, written(Path(name)), strict=True)][1:]
    for row in found:
        print(row, flush=True)
    return found


def processor_seconds() -> float:
    """Of this process and all that it started: Java and its Python workers."""
    times, parents = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # has ended
            continue
        pid = int(path.parent.name)
        parents[pid] = int(fields[1])
        times[pid] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(times[pid] for pid in family)


def written(folder: Path) -> list[dict[str, int]]:
    """Of each count: bytes of its pairs before and after compression, and of all stages after."""
    (log,) = (path for path in folder.rglob("*") if path.name.startswith("events_"))
    stages = []
    for event in map(json.loads, log.read_text().splitlines()):
        if event["Event"] == "SparkListenerStageCompleted":
            parts = event["Stage Info"]["Accumulables"]
            found = {part["Name"]: int(part["Value"]) for part in parts if part["Name"] in SIZES}
            stages += [found] * (WRITTEN in found)
    counts = []
    for of_words, of_pairs, of_sums in zip(stages[::3], stages[1::3], stages[2::3], strict=True):
        total = sum(stage[WRITTEN] for stage in (of_words, of_pairs, of_sums))
        pairs = {"pairs_bytes": of_pairs["data size"], "pairs_written": of_pairs[WRITTEN]}
        counts.append(pairs | {"written": total})
    return counts
