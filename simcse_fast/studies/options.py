"""What `study` takes besides encoders and texts, checked once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from simcse_fast.errors import InputError
from simcse_fast.training.options import check_whole

# What a study calls its methods, and what they are for `attribute_file`.
METHODS: dict[str, dict[str, Any]] = {
    "ig": {"method": "integrated_gradients", "target": "self", "unit": "token"},
    "shap": {"method": "shapley", "target": "self", "unit": "word"},
    "norms": {"method": "integrated_gradients", "target": "vector", "unit": "word"},
}
METHOD_TITLES = {
    "ig": "Integrated Gradients",
    "shap": "SHAP",
    "norms": "rows of P",
    "norm": "length of the word vector",
    "norm_squared": "its square",
    "whitened_squared": "square, whitened",
    "weighted_squared": "square, weighted by the covariance",
}
Quantity = Literal["information_gain", "self_information", "corrected"]
QUANTITIES: tuple[Quantity, ...] = ("information_gain", "self_information", "corrected")
QUANTITY_TITLES = {
    "information_gain": "information gain",
    "self_information": "self-information",
    "corrected": "information gain beyond chance",
}
SET_NAME = re.compile(r"[\w.-]+")
COSTLY = "norms"  # a pass for each token: on a sample of the sentences


@dataclass(frozen=True)
class Options:
    """Everything of `study` that is a number, a switch or a name."""

    methods: tuple[str, ...]
    quantities: tuple[Quantity, ...]
    limit: int | None
    norm_limit: int | None
    samples: int | str
    min_count: int
    resamples: int
    seed: int

    def __post_init__(self) -> None:
        check_names("methods", self.methods, tuple(METHODS))
        check_names("quantities", self.quantities, QUANTITIES)
        for name, least in (
            ("limit", 1),
            ("norm_limit", 1),
            ("min_count", 1),
            ("resamples", 2),
            ("seed", 0),
        ):
            check_whole(name, getattr(self, name), least)

    def limit_of(self, method: str) -> int | None:
        """Sentences of a set that a method looks at."""
        return self.norm_limit if method == COSTLY else self.limit

    def arguments(self, method: str) -> dict[str, Any]:
        """Of `attribute_file`."""
        given = dict(METHODS[method])
        if method == "shap":
            given |= {"samples": self.samples, "seed": self.seed}
        return given


def check_names(argument: str, given: Any, known: tuple[str, ...]) -> None:
    """Refuse names that are none, and no names.

    Raises:
        InputError: there is none, or one is unknown or given twice.
    """
    if unknown := [name for name in given if name not in known]:
        raise InputError(f"{argument}: expected some of {', '.join(known)}; got {unknown[0]!r}")
    if not given or len(set(given)) < len(given):
        raise InputError(
            f"{argument}: expected one or more of {', '.join(known)}, each once; got "
            f"{', '.join(given) or 'none'}"
        )


def names_of(given: Any) -> tuple[Any, ...]:
    """One name, or several."""
    return (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)


def named_sets(sentences: Any) -> dict[str, Any]:
    """Sources of sentences by name.

    Raises:
        InputError: there is none, or a name cannot be that of a file.
    """
    sets = dict(sentences) if isinstance(sentences, Mapping) else {"sentences": sentences}
    if not sets:
        raise InputError("sentences: expected at least one set, got none")
    for name in sets:
        if not isinstance(name, str) or not SET_NAME.fullmatch(name):
            raise InputError(
                f"sentences: expected names of letters, numbers, '.', '_' and '-'; got {name!r}"
            )
    return sets
