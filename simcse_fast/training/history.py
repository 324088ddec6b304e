"""What happened during training, kept in every checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NAME = "history.json"


@dataclass
class History:
    """Figures of a run, those before an interruption included."""

    losses: list[float] = field(default_factory=list)  # of every step, mean of all processes
    # Of the masked language model alone, part of `losses`; empty where there is none.
    mlm_losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # step, Spearman x 100
    sentences: int = 0  # rows trained on; a pair or triplet is one
    real_tokens: int = 0
    padded_tokens: int = 0  # that the model computed, padding included
    duplicates: int = 0  # rows that repeated a sentence of their batch and were masked for it
    seconds: float = 0.0  # of training steps

    @property
    def sentences_per_second(self) -> float:
        """Rows trained on in a second."""
        return self.sentences / self.seconds if self.seconds else 0.0

    def best(self) -> tuple[int, float] | None:
        """Step and score of the best evaluation after the first step, the earliest of equals."""
        later = [one for one in self.evaluations if one[0]]
        return max(later, key=lambda one: (one[1], -one[0]), default=None)

    def stale(self) -> int:
        """Evaluations since the best one."""
        best = self.best()
        return 0 if best is None else sum(step > best[0] for step, _ in self.evaluations)

    def save(self, folder: Path) -> None:
        """Write into a checkpoint."""
        (folder / NAME).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> History:
        """Read from a checkpoint."""
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        content["evaluations"] = [tuple(one) for one in content["evaluations"]]
        return cls(**content)
