"""Unsupervised SimCSE from random weights: python -m benchmarks.train_small [--minutes 20].

Sentences of Wikipedia, a small BERT, and STS-B's development set before, during and after.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from benchmarks import harness, training_data
from simcse_fast import train

LAYERS, WIDTH = 2, 256
BATCH, RATE, TRIAL = 512, 5e-4, 6
STS = training_data.WIKIPEDIA.parent / "sts" / "stsb_dev.tsv"


def encoder(folder: Path) -> Path:
    """A small BERT with random weights under MiniLM's tokenizer."""
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=LAYERS,
        hidden_size=WIDTH,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
    )
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(training_data.minilm_folder()).save_pretrained(folder)
    return folder


def main() -> None:
    """Time some steps, then train for as many as fill the minutes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_small")
    parser.add_argument("--minutes", type=float, default=20.0)
    options = parser.parse_args()
    harness.provenance()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(encoder(folder / "random"))
        arguments = {
            "unsupervised": training_data.WIKIPEDIA,
            "pooling": "avg",
            "batch_size": BATCH,
            "learning_rate": RATE,
            "cache": folder / "cache",
        }
        train(model, output=folder / "first", steps=1, **arguments)  # tokenizes
        begin = time.perf_counter()
        train(model, output=folder / "trial", steps=TRIAL, **arguments)
        each = (time.perf_counter() - begin) / TRIAL
        steps = max(int(60 * options.minutes / each), 10)
        print(f"{each:.2f} s a step: {steps} steps", flush=True)
        begin = time.perf_counter()
        result = train(
            model,
            output=folder / "run",
            steps=steps,
            evaluate=STS,
            evaluation_steps=max(steps // 10, 1),
            say=print,
            **arguments,
        )
        seconds = time.perf_counter() - begin
        row = {
            "train_small": f"BERT, {LAYERS} layers of {WIDTH}, random weights",
            "batch": BATCH,
            "steps": steps,
            "seconds": round(seconds),
            "evaluations": [list(one) for one in result.history.evaluations],
            "losses": [round(loss, 4) for loss in result.history.losses],
        }
    print(row["evaluations"])
    print(harness.save("train-small-cpu", [row]))


if __name__ == "__main__":
    main()
