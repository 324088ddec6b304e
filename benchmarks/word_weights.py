"""Weights of the words of one sentence by both methods: python -m benchmarks.word_weights.

What docs/word-weights.svg shows; `benchmarks.report` draws it. No time is measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib import pyplot as plt

from benchmarks import attribution_data, harness
from simcse_fast import integrated_gradients, shapley_values

if TYPE_CHECKING:
    from pathlib import Path

SENTENCE = "The kitten dozed off beneath the desk while rain fell on the old harbour."
BLUE, ORANGE = "#0072B2", "#E69F00"


def plot(row: dict[str, Any], path: Path) -> None:
    """Bars of each word, the two methods side by side."""
    words, methods = row["words"], row["scores"]
    figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
    for shift, colour, (name, scores) in zip(
        (-0.2, 0.2), (BLUE, ORANGE), methods.items(), strict=True
    ):
        axis.bar([n + shift for n in range(len(words))], scores, 0.38, color=colour, label=name)
    axis.set_xticks(range(len(words)), words)
    axis.axhline(0, color="0.5", linewidth=0.8)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.tick_params(axis="x", length=0)
    axis.set_ylabel("share of the cosine")
    axis.legend(frameon=False, title=row["model"])
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Weigh and save."""
    model = attribution_data.encoder("minilm", "cpu")
    results = {
        "Integrated Gradients": integrated_gradients(model, SENTENCE),
        "Shapley values": shapley_values(model, SENTENCE),
    }
    scores = {name: [round(float(x), 5) for x in r.scores[0]] for name, r in results.items()}
    told = {name: round(float(r.errors[0]), 5) for name, r in results.items()}
    words = results["Shapley values"].tokens[0]
    row = {"model": "all-MiniLM-L6-v2", "words": words, "scores": scores, "told_errors": told}
    print(row)
    print(harness.save("word-weights-all-minilm-l6-v2", [row]))


if __name__ == "__main__":
    main()
