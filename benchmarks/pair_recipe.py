"""A recipe for pair_study.sh: python -m benchmarks.pair_recipe MODEL SENTENCES PAIRS OUTPUT.

Unsupervised SimCSE as the paper has it, and with stronger views, from one model with one seed; the
score on the development PAIRS decides. The same command in several shells shares the runs. Options
of `simcse-fast train` for the best go to OUTPUT/best.txt, the best learning rate of those without
further changes to OUTPUT/rate.txt.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from simcse_fast import ablate

PLAIN = {f"lr {rate:g}": {"learning_rate": rate} for rate in (1e-5, 3e-5, 1e-4)}
CHANGES: dict[str, dict[str, Any]] = {
    "dropout 0.2": {"dropout": 0.2},
    "delete 20 %": {"augmentation": "delete", "augmentation_share": 0.2},
    "crop 20 %": {"augmentation": "crop", "augmentation_share": 0.2},
    "temperature 0.1": {"temperature": 0.1},
    "masked words": {"mlm_weight": 0.1},
}
CANDIDATES = PLAIN | {
    f"lr {rate:g}, {name}": {"learning_rate": rate, **change}
    for rate in (3e-5, 1e-4)
    for name, change in CHANGES.items()
}
BATCH, STEPS = 256, 400


def main() -> None:
    """Make the runs, and write down which was best."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "sentences", "pairs", "output"):
        parser.add_argument(name)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    found = ablate(
        options.model,
        options.sentences,
        development=options.pairs,
        output=options.output,
        vary=CANDIDATES,
        seeds=1,
        trajectory_steps=50,
        pooling="avg",
        batch_size=options.batch_size,
        steps=options.steps,
        bf16=options.bf16,
    )
    print(found.table())
    scores = {row["configuration"]: row["development"] for row in found.rows}
    best = CANDIDATES[max(CANDIDATES, key=scores.__getitem__)]
    rate = PLAIN[max(PLAIN, key=scores.__getitem__)]["learning_rate"]
    words = [
        f"--{name.replace('_', '-')} {value:g}"
        for name, value in best.items()
        if isinstance(value, float)
    ]
    words += [f"--augmentation {best['augmentation']}"] if "augmentation" in best else []
    words.append(f"--batch-size {options.batch_size} --steps {options.steps}")
    Path(options.output, "best.txt").write_text(" ".join(words) + "\n", encoding="utf-8")
    Path(options.output, "rate.txt").write_text(f"{rate:g}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
