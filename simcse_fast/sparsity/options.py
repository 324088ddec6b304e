"""The options of `sparsify`, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simcse_fast.errors import InputError
from simcse_fast.sparsity.selection import KINDS
from simcse_fast.sparsity.sweep import MAGNITUDE, RANDOM
from simcse_fast.training.options import check_range, check_whole

WEIGHTS = "weights"
CHOICES = {"allocation": ("global", "layer"), "aggregate": ("absolute", "total")}
MEASURED = (MAGNITUDE, RANDOM)


@dataclass(frozen=True)
class Options:
    """Everything of `sparsify` that is a number or a name."""

    sparsity: float | Sequence[float]
    units: str | Sequence[str]
    balance: float
    allocation: str
    aggregate: str
    compare: str | Sequence[str]
    seeds: int
    positive_above: float
    retrain: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        if not self.sparsities:
            raise InputError("sparsity: expected a number or several, got none")
        for value in self.sparsities:
            check_range("sparsity", value, zero=True, high=1)
            if value == 1:
                raise InputError("sparsity: expected in [0, 1), got 1, which leaves nothing")
        check_range("balance", self.balance, zero=True, high=1)
        check_whole("seeds", self.seeds, 1)
        if isinstance(self.positive_above, bool) or not isinstance(
            self.positive_above, int | float
        ):
            raise TypeError(f"positive_above: expected a number, got {self.positive_above!r}")
        wanted = self.kinds
        if wanted != (WEIGHTS,) and (not wanted or not set(wanted) <= set(KINDS)):
            raise InputError(
                f"units: expected some of {', '.join(KINDS)}, or 'weights'; got {self.units!r}"
            )
        if unknown := sorted(set(self.comparisons) - set(MEASURED)):
            raise InputError(f"compare: expected some of {', '.join(MEASURED)}; got {unknown[0]!r}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"{name}: expected {' or '.join(known)}, got {getattr(self, name)!r}"
                )
        if self.retrain is not None and not isinstance(self.retrain, Mapping):
            raise TypeError(
                "retrain: expected the arguments of simcse_fast.train as a mapping, got "
                f"{type(self.retrain).__name__}"
            )

    @property
    def sparsities(self) -> list[Any]:
        """Each once, in rising order where they are numbers."""
        several = isinstance(self.sparsity, list | tuple)
        given = list(self.sparsity) if several else [self.sparsity]  # type: ignore[arg-type]
        numbers = all(isinstance(value, int | float) for value in given)
        return sorted(set(given)) if numbers else given

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of units."""
        return (self.units,) if isinstance(self.units, str) else tuple(self.units)

    @property
    def comparisons(self) -> tuple[str, ...]:
        """Other criteria."""
        return (self.compare,) if isinstance(self.compare, str) else tuple(self.compare)
