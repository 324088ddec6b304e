"""Errors of the rules along the path: python -m benchmarks.attribution_rules [--model NAME].

For each baseline and target: error of the tokens' scores against many Gauss-Legendre nodes, by rule
and number of nodes, and how it compares with the error that the result tells. No time is measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks import attribution_data, harness
from benchmarks.bench_attribution import errors, summary
from simcse_fast import integrated_gradients

RULES = ("mapped", "midpoint", "gausslegendre")
BASELINES = ("pad", "mask", "zero")
TARGETS = {"cosine with itself": "self", "length": "norm", "cosine with another": None}


def curve(model: Any, sentences: list[str], options: dict[str, Any], size: Any) -> dict[str, Any]:
    """One baseline and target: errors by rule and nodes."""

    def run(steps: int, rule: str) -> Any:
        return integrated_gradients(
            model, sentences, steps=steps, rule=rule, unit="token", progress=False, **options
        )

    exact = run(size.reference, "gausslegendre").scores
    found: dict[str, Any] = {}
    for rule in RULES:
        found[rule] = {}
        for steps in size.nodes:
            result = run(steps, rule)
            off = errors(result.scores, exact)
            found[rule][steps] = summary(off)
            if rule == "mapped":
                found[rule][steps]["told"] = summary(result.errors)
                found[rule][steps]["told_enough"] = float(np.mean(result.errors >= off))
    return found


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attribution_rules")
    parser.add_argument("--model", metavar="NAME", help="by default all-MiniLM-L6-v2")
    parser.add_argument("--sentences", type=int, default=16)
    parser.add_argument("--reference", type=int, default=256)
    parser.add_argument("--nodes", type=int, nargs="+", default=[7, 11, 15, 23, 31])
    parser.add_argument("--baselines", nargs="+", default=list(BASELINES))
    options = parser.parse_args()
    torch.set_num_threads(min(torch.get_num_threads(), 2))
    if options.model:
        model = SentenceTransformer(options.model, device="cpu")
    else:
        model = attribution_data.encoder("minilm", "cpu")
    texts = attribution_data.sentences("dev", 2 * options.sentences)
    name = Path(options.model or "all-MiniLM-L6-v2").name
    rows = []
    for baseline in options.baselines:
        for title, target in TARGETS.items():
            given = {"baseline": baseline, "target": target or texts[1::2]}
            found = curve(model, texts[::2], given, options)
            row = {"model": name, "baseline": baseline, "target": title, "errors": found}
            print({k: v for k, v in row.items() if k != "errors"}, found["mapped"], flush=True)
            rows.append(row)
    print(harness.save(f"attribution-rules-{name.lower()}", rows))


if __name__ == "__main__":
    main()
