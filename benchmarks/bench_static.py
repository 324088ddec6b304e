"""Steps of a static encoder beside the original: python -m benchmarks.bench_static [N ...].

A step embeds both columns, computes the loss, its gradients, and lets Adam move the vectors. "ids":
the tokens are ready on both sides. "text": sentence-transformers tokenizes as its trainer does, and
so does the drop-in; `simcse_fast.train` takes the ids that it tokenized once.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.sentence_transformer import losses as originals

from benchmarks import harness, training_data
from benchmarks.peak_memory import resident
from simcse_fast import losses
from simcse_fast.training.batches import Batch, Collator
from simcse_fast.training.text_encoder import TextEncoder
from simcse_fast.training.tokens import token_data

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = (2048, 8192, 16384, 65536)
WIDTHS = (256, 1024)
LARGEST_STOCK = 16384  # its matrices of 65,536 rows squared take 100 GB
LARGEST_WIDE = 16384  # rows at the larger width: beyond, a step takes minutes
TEXT = 8192
SCALE = 20.0


def texts(rows: int) -> list[list[str]]:
    """Two columns: a sentence, and the next one of its article."""
    found = training_data.sentences(200_000)
    if found is None:
        raise SystemExit("bench_static: needs ../shared/data/wiki_sentences.parquet")
    return [found[first : 2 * rows : 2] for first in (0, 1)]


def step_of(model: Any, loss: Any, features: Callable[[], list[Any]]) -> Callable[[], None]:
    """One step of training."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss([dict(column) for column in features()], None).backward()
        optimizer.step()

    return step


def both(model: Any) -> dict[str, Any]:
    """Ours and the original, each with the same model."""
    return {
        "simcse_fast": losses.MultipleNegativesRankingLoss(model, scale=SCALE),
        "simcse_fast cached": losses.CachedMultipleNegativesRankingLoss(model, scale=SCALE),
        "sentence-transformers": originals.MultipleNegativesRankingLoss(model, scale=SCALE),
    }


def ready(rows: int, width: int) -> dict[str, Any]:
    """Steps whose tokens are there."""
    model = training_data.static_model(width)
    columns = [model.preprocess(column) for column in texts(rows)]
    chosen = both(model)
    if rows > LARGEST_STOCK:
        del chosen["sentence-transformers"], chosen["simcse_fast cached"]
    steps = {name: step_of(model, loss, lambda: columns) for name, loss in chosen.items()}
    times = harness.interleaved(steps, seconds=5, least=1 if rows > LARGEST_STOCK else 3)
    result = {
        name: harness.summary(values if len(values) > 1 else values * 2)
        for name, values in times.items()
    }
    print(f"{rows:6} x {width}: ms", {k: v["median"] for k, v in result.items()}, flush=True)
    return {"static": "ids", "rows": rows, "width": width, "ms": result}


def with_text(rows: int, width: int) -> dict[str, Any]:
    """Steps that begin with text, or with the ids that `train` has cached."""
    model = training_data.static_model(width)
    columns = texts(rows)
    chosen = both(model)
    with tempfile.TemporaryDirectory() as folder:
        pairs = list(zip(*columns, strict=True))
        tokens = TextEncoder(model.tokenizer, None)
        collate = Collator(
            token_data(pairs, "triplets", tokens, Path(folder)), static=True, twins=False
        )
        batch = Batch(np.arange(rows), 0)
        steps = {
            name: step_of(model, chosen[name], lambda: [model.preprocess(c) for c in columns])
            for name in ("simcse_fast", "sentence-transformers")
        }
        steps["simcse_fast, ids of train"] = step_of(
            model, chosen["simcse_fast"], lambda: collate(batch)["columns"]
        )
        times = harness.interleaved(steps, seconds=10, least=3)
    result = {name: harness.summary(values) for name, values in times.items()}
    print(f"{rows:6} x {width}, text: ms", {k: v["median"] for k, v in result.items()}, flush=True)
    return {"static": "text", "rows": rows, "width": width, "ms": result}


def memory(rows: int, width: int) -> dict[str, Any]:
    """MiB that a step of ours adds to a fresh process with model and tokens."""
    command = [sys.executable, "-m", "benchmarks.bench_static", "--memory", str(rows), str(width)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    found = re.search(r"MiB ([\d.]+)", run.stdout)
    mib = float(found[1]) if found else None
    print(f"{rows:6} x {width}: MiB", mib, flush=True)
    return {"static": "memory", "rows": rows, "width": width, "mib": mib}


def measure_memory(rows: int, width: int) -> None:
    """In the fresh process."""
    model = training_data.static_model(width)
    columns = [model.preprocess(column) for column in texts(rows)]
    step = step_of(model, both(model)["simcse_fast"], lambda: columns)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    step()
    print("MiB", round(resident("VmHWM") - before, 1), "of", round(resident("VmHWM"), 1))


def main() -> None:
    """Measure, print, save."""
    if sys.argv[1:2] == ["--memory"]:
        measure_memory(*map(int, sys.argv[2:]))
        return
    harness.provenance()  # of the code that is measured, whatever is committed meanwhile
    sizes = [int(x) for x in sys.argv[1:]] or SIZES
    rows = [
        ready(count, width)
        for width in WIDTHS
        for count in sizes
        if width == WIDTHS[0] or count <= LARGEST_WIDE
    ]
    rows += [with_text(TEXT, WIDTHS[0])] if TEXT in sizes else []
    rows += [memory(count, WIDTHS[0]) for count in sizes if count >= LARGEST_STOCK]
    if not sys.argv[1:]:
        print(harness.save(f"static-cpu-{harness.machine()}", rows))


if __name__ == "__main__":
    main()
