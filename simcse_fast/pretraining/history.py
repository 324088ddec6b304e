"""What happened during pre-training, kept in every checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

NAME = "history.json"


class Evaluation(NamedTuple):
    """How well hidden tokens of held-out sentences were guessed after a step."""

    step: int
    seconds: float  # since training began
    loss: float  # mean over hidden tokens, natural logarithm
    accuracy: float  # share of them that was guessed


@dataclass
class History:
    """Figures of a run, those before an interruption included."""

    losses: list[float] = field(default_factory=list)  # of every step, on what it trained on
    evaluations: list[Evaluation] = field(default_factory=list)
    sentences: int = 0  # trained on, each time counted
    real_tokens: int = 0
    padded_tokens: int = 0  # that the model computed, padding included
    guessed_tokens: int = 0  # that the loss was computed of
    seconds: float = 0.0  # of training, its evaluations and checkpoints included

    @property
    def tokens_per_second(self) -> float:
        """Real tokens trained on in a second."""
        return self.real_tokens / self.seconds if self.seconds else 0.0

    def save(self, folder: Path) -> None:
        """Write into a checkpoint."""
        (folder / NAME).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> History:
        """Read from a checkpoint."""
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        content["evaluations"] = [Evaluation(*one) for one in content["evaluations"]]
        return cls(**content)
