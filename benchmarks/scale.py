"""What large batches and corpora would cost: python -m benchmarks.scale.

Counts bytes and memory of many ranks on gloo, and of Spark on invented corpora, compares them with
the formulas of benchmarks/scale_model.py, and writes the tables of docs/scale.md. --draw writes
them from the committed results.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import harness, report_scale, scale_model, scale_ranks, scale_spark

OVERHEAD = 1.03  # of messages about the blocks themselves
GPU_MEMORY = 0.05  # of what was measured, that the formula may be away
PARTS = {
    "ranks": scale_ranks.measure,
    "shuffle": scale_spark.shuffles,
    "table": scale_spark.tables,
    "spark": scale_spark.on_spark,
}
FP32, COPIES = 4, 4  # bytes; of all keys, on a CPU: gathered, unit, gradient, and it upstream


def check_ranks(rows: list[dict[str, Any]]) -> None:
    """Counted bytes are the formulas', and so is the growth of memory."""
    for row in rows:
        block = row["rows"] * row["width"]
        hops = (row["world"] - 1) * block
        key = FP32 if row["dtype"] == "float32" else scale_model.KEY
        columns = 2 if row["symmetric"] else 1
        if row["design"] == "ring":
            forward, backward = hops * key, hops * (key + FP32)
        else:  # gloo's reduce-scatter is an all-reduce: twice the bytes
            forward, backward = columns * hops * key, columns * 2 * hops * FP32
        for name, expected in (("forward", forward), ("backward", backward)):
            if not 1 <= row[name] / expected < OVERHEAD:
                raise AssertionError(f"{name}: expected {expected:,} bytes, counted {row}")
    plain = [
        row
        for row in rows
        if (row["design"], row["dtype"], row["symmetric"]) == ("gather", "float32", False)
    ]
    first, last = plain[0], plain[-1]
    block = FP32 * first["rows"] * first["width"]
    found = (last["peak"] - first["peak"]) / (last["world"] - first["world"]) / block
    expected = COPIES + first["rows"] / first["width"]  # and a panel of the own rows
    if abs(found / expected - 1) > OVERHEAD - 1:
        raise AssertionError(f"copies of all keys: expected {expected:.3f}, found {found:.3f}")


def check_gpu(rows: list[dict[str, Any]]) -> None:
    """The formula of memory, for one rank, is what an H200 took; inputs are not counted there."""
    batch = scale_model.Batch(65_536, 768, 1)
    wanted = {"method": "simcse_fast triton", "rows": batch.pairs, "width": batch.width}
    (row,) = (row for row in rows if (wanted | {"symmetric": False}).items() <= row.items())
    inputs = 3 * scale_model.KEY * batch.own  # queries, keys, and keys that nobody gathered
    expected, found = batch.held("gather") - inputs, row["peak_mib"] * 2**20
    if abs(found / expected - 1) > GPU_MEMORY:
        raise AssertionError(f"expected {expected:,} bytes on the GPU, measured {found:,}")


def check_spark(rows: list[dict[str, Any]]) -> None:
    """Spark's own count of the pairs' shuffle is that of the package's tasks."""
    for row in (row for row in rows if row["kind"] == "spark"):
        counted = next(
            one
            for one in rows
            if one["kind"] == "shuffle"
            and (one["tokens"], one["entry_bytes"]) == (row["tokens"], 4)
        )
        pairs = counted["bytes"] + scale_model.ROW * counted["rows"]
        # Every task that reads sends a triangle and the terms of its words.
        least, most = pairs + counted["totals_bytes"], pairs + 2.5 * counted["totals_bytes"]
        if not 0.98 * least < row["pairs_bytes"] < most:
            raise AssertionError(f"expected {least:,} to {most:,} bytes, Spark counted {row}")


def measured(only: str | None) -> Path:
    """The file of the rows of all parts, one or all of them new."""
    harness.provenance()
    name = f"scale-cpu-{harness.machine()}"
    path = harness.RESULTS / f"{name}.json"
    kept = json.loads(path.read_text())["rows"] if only and path.exists() else []
    rows = [row for row in kept if row["part"] != only]
    for part, measure in PARTS.items():
        if only in (None, part):
            rows += [row | {"part": part} for row in measure()]
    return harness.save(name, rows)


def main() -> None:
    """Measure, compare, save, draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--draw", action="store_true", help="from committed results")
    parser.add_argument("--part", choices=PARTS, help="measure this one, keep the others' rows")
    parser.add_argument("--page", type=Path, default=report_scale.PAGE, metavar="FILE")
    options = parser.parse_args()
    if options.draw:
        (path,) = harness.RESULTS.glob("scale-cpu-*.json")
    else:
        path = measured(options.part)
    result = json.loads(path.read_text())
    if missing := PARTS.keys() - {row["part"] for row in result["rows"]}:
        parser.exit(message=f"{path}: still without {', '.join(sorted(missing))}\n")
    check_ranks([row for row in result["rows"] if row["kind"] == "ranks"])
    check_spark(result["rows"])
    check_gpu(json.loads((harness.RESULTS / report_scale.ON_GPU).read_text())["rows"])
    report_scale.write(result, options.page)
    print(options.page)


if __name__ == "__main__":
    main()
