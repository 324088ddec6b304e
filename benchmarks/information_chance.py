"""How much information gain chance alone gives: python -m benchmarks.information_chance.

A corpus and a copy of it in which all tokens have changed places. No time is measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import harness, training_data
from simcse_fast import information_gain

COUNTS = 100_000, 1_200_000


def measured(sentences: list[str]) -> dict[str, Any]:
    """What the median word has of chance, and how chance goes with frequency."""
    table = information_gain(sentences, correction="shuffle", rounds=1).to_pandas()
    table = table.dropna()
    chance, gain = table["null"].to_numpy(), table["information_gain"].to_numpy()
    return {
        "sentences": len(sentences),
        "words": len(table),
        "share_of_median_word": round(float(np.median(chance / gain)), 4),
        "correlation_with_self_information": round(
            float(np.corrcoef(chance, table["self_information"])[0, 1]), 4
        ),
    }


def main() -> None:
    """Count and save."""
    texts = training_data.sentences(max(COUNTS))
    if texts is None or len(texts) < max(COUNTS):
        raise SystemExit("information_chance: needs ../shared/data/wiki_sentences.parquet")
    rows = [measured(texts[:count]) for count in COUNTS]
    print(*rows, sep="\n")
    print(harness.save("information-chance", rows))


if __name__ == "__main__":
    main()
