"""The options of `sparsify`, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
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
        self._check_sparsities()
        check_range("balance", self.balance, zero=True, high=1)
        check_whole("seeds", self.seeds, 1)
        if isinstance(self.positive_above, bool) or not isinstance(self.positive_above, Real):
            raise TypeError(f"positive_above: expected a number, got {self.positive_above!r}")
        wanted = self.kinds
        if wanted != (WEIGHTS,) and (not wanted or any(kind not in KINDS for kind in wanted)):
            raise InputError(
                f"units: expected some of {', '.join(KINDS)}, or 'weights'; got {self.units!r}"
            )
        for name in self.comparisons:
            if name not in MEASURED:
                raise InputError(f"compare: expected some of {', '.join(MEASURED)}; got {name!r}")
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

    def _check_sparsities(self) -> None:
        if not self.sparsities:
            raise InputError("sparsity: expected a number or several, got none")
        for value in self.sparsities:
            if value is None:
                raise TypeError("sparsity: expected a number or several, got None")
            check_range("sparsity", value, zero=True, high=1)
            if value == 1:
                raise InputError("sparsity: expected in [0, 1), got 1, which leaves nothing")

    @property
    def sparsities(self) -> list[Any]:
        """Each once, in rising order where they are numbers."""
        given = _several(self.sparsity)
        numbers = [isinstance(value, Real) and not isinstance(value, bool) for value in given]
        return sorted({float(value) for value in given}) if all(numbers) else given

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of units."""
        return tuple(_several(self.units))

    @property
    def comparisons(self) -> tuple[str, ...]:
        """Other criteria."""
        return tuple(_several(self.compare))


def _several(value: Any) -> list[Any]:
    """A list of what was given: one or several."""
    single = not isinstance(value, Iterable) or isinstance(value, str)
    return [value] if single or getattr(value, "ndim", None) == 0 else list(value)
