"""How many looks a sentence's path gets, and what they add up to."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_fast.kernels.path_integral.quadrature import RULES, calibrated, nested

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]
    # Numbers of sentences with (K,) places -> for each what its tokens add to the slope (K, S, ...)
    Evaluate = Callable[[list[tuple[int, Array]]], Sequence[Array]]

FIRST = {"self": 23}  # nodes that "auto" begins with
FIRST_OTHERWISE = 31
MOST = 511  # with so many or more "auto" has taken its last level: 511, or 767 for "self"
# Of the distance between a rule and its nested rule of half the nodes, the error of the former is
# less than this: for paths that are nearly straight (0.36 to 0.41), and in 95 of 100 sentences of
# trained encoders (0.2 to 0.35): python -m benchmarks.attribution_rules.
PART = 0.45
# Of all that tokens add and take away: from 23 nodes on, what smooth paths lack of completeness
# before the calibration is less.
PEAK = 0.02


@dataclass(frozen=True)
class Steps:
    """As the caller wants them: so many nodes, or as many as a tolerance needs."""

    nodes: int | None
    tolerance: float
    rule: str

    @classmethod
    def read(cls, steps: int | str, tolerance: float, rule: str) -> Steps:
        """Check the arguments of `integrated_gradients`.

        Raises:
            TypeError: steps is neither a number nor a string, or tolerance is no number.
            ValueError: a value that makes no sense.
        """
        if rule not in RULES:
            raise ValueError(f"rule: expected one of {', '.join(RULES)}, got {rule!r}.")
        if isinstance(steps, bool) or not isinstance(steps, int | str):
            raise TypeError(f'steps: expected a number or "auto", got {type(steps).__name__}.')
        if isinstance(steps, str) and steps != "auto":
            raise ValueError(f'steps: expected a number or "auto", got {steps!r}.')
        if isinstance(steps, int) and steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}.")
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
            raise TypeError(f"tolerance: expected a number, got {type(tolerance).__name__}.")
        if not tolerance > 0:
            raise ValueError(f"tolerance: expected more than 0, got {tolerance}.")
        if steps == "auto" and rule != "mapped":
            raise ValueError(f'rule: steps="auto" needs "mapped", got {rule!r}.')
        return cls(None if steps == "auto" else int(steps), tolerance, rule)

    def first(self, target: str) -> int:
        """Nodes to begin with."""
        return self.nodes or FIRST.get(target, FIRST_OTHERWISE)


@dataclass(frozen=True)
class Integral:
    """Scores of one sentence's tokens, with the nodes they took and their estimated error."""

    scores: Array  # (S, ...)
    nodes: int
    error: float  # over the length of the scores; NaN where no second rule is at hand


def integrate(
    steps: Steps,
    target: str,
    changes: Sequence[Array],  # (...) a sentence: the target at its end less that at its beginning
    evaluate: Evaluate,
    done: Callable[[int], object],  # is told how many sentences are finished
) -> list[Integral]:
    """Integrals for all sentences; those whose error is too large go on with twice the nodes."""
    found: dict[int, Integral] = {}
    nodes, waiting = steps.first(target), list(range(len(changes)))
    seen: dict[int, Array] = {}
    while waiting:
        alpha = RULES[steps.rule](nodes).alpha
        fresh = ~nested(nodes // 2) if seen else np.ones(nodes, bool)
        looks = evaluate([(n, alpha[fresh]) for n in waiting])
        unsure = []
        for n, new in zip(waiting, looks, strict=True):
            values = np.empty((nodes, *new.shape[1:]), new.dtype)
            values[fresh] = new
            if n in seen:
                values[~fresh] = seen[n]
            found[n] = _combined(steps.rule, values, changes[n])
            if steps.nodes is None and found[n].error > steps.tolerance and nodes < MOST:
                unsure.append(n)
                seen[n] = values
        done(len(waiting) - len(unsure))
        nodes, waiting = 2 * nodes + 1, unsure
    return [found[n] for n in range(len(changes))]


def _combined(rule: str, values: Array, change: Array) -> Integral:
    nodes = len(values)
    scores = _weighed(rule, values, change)
    if rule != "mapped" or nodes < 3 or nodes % 2 == 0:  # noqa: PLR2004 - no rule is nested in it
        return Integral(scores, nodes, float("nan"))
    half = _weighed(rule, values[nested(nodes // 2)], change)
    length, apart = np.linalg.norm(scores), np.linalg.norm(scores - half)
    off = PART * apart
    # A peak between the nodes is missed by both; only the known change tells of it.
    weight = RULES[rule](nodes).weight
    missed = np.linalg.norm(np.tensordot(weight, values.sum(1), 1) - change)
    if missed > PEAK * np.linalg.norm(np.tensordot(weight, np.abs(values).sum(1), 1)):
        off = max(off, missed)
    return Integral(scores, nodes, float(off / length) if off else 0.0)


def _weighed(rule: str, values: Array, change: Array) -> Array:
    weight = calibrated(RULES[rule](len(values)).weight, values.sum(1), change)
    total: Array = (weight[:, None] * values).sum(0)
    return total


def warn_unconverged(found: Sequence[Integral], steps: Steps) -> None:
    """Say how many sentences "auto" could not bring below its tolerance."""
    bad = [one for one in found if steps.nodes is None and one.error > steps.tolerance]
    if bad:
        warnings.warn(
            f"{len(bad):,} of {len(found):,} sentences have an estimated error above "
            f"{steps.tolerance:g} after {bad[0].nodes} nodes, at most "
            f"{max(one.error for one in bad):.2g}; all errors are in `errors`.",
            stacklevel=3,
        )
