"""The options of `pretrain_mlm`, and their limits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simcse_fast.errors import InputError
from simcse_fast.training.options import check_range, check_whole

VOCABULARY_SIZE = 16_000
HEAD_WIDTH = 64
# By default. In inverse proportion to the width beyond WIDTH: six layers 384 wide do not learn with
# 1e-3, but stay at guessing the commonest token.
LEARNING_RATE, WIDTH = 1e-3, 192


@dataclass(frozen=True)
class Options:
    """Everything of `pretrain_mlm` that is a number or a switch; None where a default follows."""

    vocabulary_size: int | None
    layers: int
    width: int
    heads: int | None
    max_length: int
    batch_tokens: int
    epochs: float | None
    steps: int | None
    minutes: float | None
    learning_rate: float | None
    warmup: float
    weight_decay: float
    dropout: float
    bf16: bool
    seed: int
    held_out: int | None
    evaluation_steps: int
    save_steps: int
    keep_checkpoints: int

    def __post_init__(self) -> None:
        for name, least in WHOLE.items():
            check_whole(name, getattr(self, name), least)
        for name, (zero, high) in RANGES.items():
            check_range(name, getattr(self, name), zero=zero, high=high)
        given = [n for n in ("epochs", "steps", "minutes") if getattr(self, n) is not None]
        if len(given) > 1:
            raise InputError(
                f"{given[0]}: expected one of epochs, steps and minutes, got {' and '.join(given)}"
            )
        if self.width % self.number_of_heads:
            raise InputError(
                f"heads: expected a divisor of the width {self.width}, got {self.number_of_heads}"
            )
        if self.batch_tokens < self.max_length:
            raise InputError(
                f"batch_tokens: expected at least max_length, {self.max_length}, got "
                f"{self.batch_tokens}"
            )

    @property
    def highest_rate(self) -> float:
        """As given, or what suits the width."""
        return self.learning_rate or LEARNING_RATE * min(1.0, WIDTH / self.width)

    @property
    def number_of_heads(self) -> int:
        """As given, or heads of BERT's width."""
        return self.heads or max(self.width // HEAD_WIDTH, 1)


# Whole numbers and their least; None is always allowed where there is a default.
WHOLE = {
    "vocabulary_size": 32,
    "layers": 1,
    "width": 2,
    "heads": 1,
    "max_length": 3,  # two special tokens and one that says something
    "batch_tokens": 3,
    "steps": 1,
    "seed": 0,
    "held_out": 1,
    "evaluation_steps": 1,
    "save_steps": 1,
    "keep_checkpoints": 1,
}
# Numbers from 0 on: whether 0 is allowed, and the largest that is.
RANGES = {
    "epochs": (False, math.inf),
    "minutes": (False, math.inf),
    "learning_rate": (False, math.inf),
    "warmup": (True, 1.0),
    "weight_decay": (True, math.inf),
    "dropout": (True, 1.0),
}
