"""The options of `train`: their limits, and the defaults that depend on model and data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from simcse_fast.errors import InputError

POOLINGS = ("cls", "cls_before_pooler", "avg", "avg_top2", "avg_first_last")
DUPLICATES = ("mask", "keep")
SHORTENED = ("crop", "delete", "delete_one")  # ways to take words out of the second view
AUGMENTATIONS = ("none", "fixed_mask", *SHORTENED)
LOSSES = ("info_nce", "textbook")
# Unsupervised and supervised SimCSE (Gao et al. 2021, appendix A), and what a static model, whose
# words all start at random, learns with.
RECIPES = {
    ("transformer", False): {"epochs": 1.0, "learning_rate": 3e-5, "batch_size": 64},
    ("transformer", True): {"epochs": 3.0, "learning_rate": 5e-5, "batch_size": 512},
    ("static", False): {"epochs": 1.0, "learning_rate": 5e-3, "batch_size": 4096},
    ("static", True): {"epochs": 3.0, "learning_rate": 5e-3, "batch_size": 4096},
}
MAX_LENGTH = 32  # of transformers
EVALUATION_STEPS = 125


@dataclass(frozen=True)
class Options:
    """Everything of `train` that is a number, a switch or a name; None where a default follows."""

    pooling: str | None
    temperature: float
    symmetric: bool
    max_length: int | None
    batch_size: int | None
    epochs: float | None
    steps: int | None
    learning_rate: float | None
    warmup: float
    weight_decay: float
    seed: int
    bf16: bool
    fp16: bool
    evaluation_steps: int | None
    patience: int | None
    save_steps: int
    keep_checkpoints: int
    duplicates: str
    mini_batch_tokens: int | None
    memory_share: float
    mlm_weight: float
    dropout: float | None
    augmentation: str
    augmentation_share: float
    loss: str

    def __post_init__(self) -> None:
        for name, least in WHOLE.items():
            check_whole(name, getattr(self, name), least)
        for name, (zero, high) in RANGES.items():
            check_range(name, getattr(self, name), zero=zero, high=high)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                listed = f"{', '.join(known[:-1])} or {known[-1]}"
                raise InputError(f"{name}: expected {listed}, got {getattr(self, name)!r}")
        if self.bf16 and self.fp16:
            raise InputError("fp16: expected bf16 or fp16, got both")
        if self.epochs is not None and self.steps is not None:
            raise InputError("steps: expected steps or epochs, got both")

    def recipe(self, name: str, *, static: bool, supervised: bool) -> Any:
        """The option as given, or the default for this kind of model and data."""
        given = getattr(self, name)
        kind = "static" if static else "transformer"
        return RECIPES[kind, supervised][name] if given is None else given


# Whole numbers and their least; None is always allowed where there is a default.
WHOLE = {
    "max_length": 3,  # two special tokens and one that says something
    "batch_size": 2,
    "steps": 1,
    "seed": 0,
    "evaluation_steps": 1,
    "patience": 1,
    "save_steps": 1,
    "keep_checkpoints": 1,
    "mini_batch_tokens": 1,
}
# Numbers from 0 on: whether 0 is allowed, and the largest that is.
RANGES = {
    "temperature": (False, math.inf),
    "epochs": (False, math.inf),
    "learning_rate": (False, math.inf),
    "warmup": (True, 1.0),
    "weight_decay": (True, math.inf),
    "mlm_weight": (True, math.inf),
    "memory_share": (True, 1.0),
    "dropout": (True, 1.0),
    "augmentation_share": (False, 1.0),
}
CHOICES = {"duplicates": DUPLICATES, "augmentation": AUGMENTATIONS, "loss": LOSSES}


def check_whole(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number, or too small."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < least:
        raise InputError(f"{name}: expected a whole number >= {least}, got {value}")


def check_range(name: str, value: Any, *, zero: bool, high: float) -> None:
    """Refuse what is no number, or not between 0 and `high`."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    enough = value >= 0 if zero else value > 0
    if not (enough and value <= high) or value == math.inf:
        limits = (
            f"in {'[' if zero else '('}0, {high:g}]" if high == 1 else (">= 0" if zero else "> 0")
        )
        raise InputError(f"{name}: expected a finite number {limits}, got {value}")
