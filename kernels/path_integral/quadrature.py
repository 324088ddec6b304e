"""Where to look along the path from a baseline to a sentence, and what each look weighs.

Nodes and weights on [0, 1], computed once in fp64. docs/attribution.md compares the rules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# The map of `mapped`: a strip of width STRETCH around the path, and the density of nodes
# FLOOR + (1 - FLOOR) Beta(*SHAPE), since embeddings change most early on the path.
STRETCH, FLOOR, SHAPE = 0.95, 0.1, (1.2, 2.5)
TABLE = 1 << 15


@dataclass(frozen=True)
class Rule:
    """sum(weight * f(alpha)) is about the integral of f over [0, 1]."""

    alpha: Array  # (K,) ascending
    weight: Array  # (K,)


@cache
def midpoint(nodes: int) -> Rule:
    """Equal steps, looked at in their middle; no assumption about the path."""
    return Rule((np.arange(nodes) + 0.5) / nodes, np.full(nodes, 1 / nodes))


@cache
def gauss_legendre(nodes: int) -> Rule:
    """Exact for polynomials up to degree 2 nodes - 1."""
    t, weight = np.polynomial.legendre.leggauss(nodes)
    return Rule((t + 1) / 2, weight / 2)


@cache
def mapped(nodes: int) -> Rule:
    """Fejer's second rule under a map that puts the nodes where encoders change.

    With 2 nodes + 1 the nodes of this rule are every other of that one's: `nested`.
    """
    angle = np.arange(nodes, 0, -1) * np.pi / (nodes + 1)
    odd = np.arange(1, nodes + 1, 2)
    sums = (np.sin(np.outer(angle, odd)) / odd).sum(1)
    weight = 4 * np.sin(angle) * sums / (nodes + 1)
    t, bound = np.cos(angle), math.asin(STRETCH)
    place = (np.arcsin(STRETCH * t) / bound + 1) / 2
    weight = weight * STRETCH / (2 * bound * np.sqrt(1 - (STRETCH * t) ** 2))
    alpha = _quantile(place)
    return Rule(alpha, weight / _density(alpha))


RULES = {"mapped": mapped, "midpoint": midpoint, "gausslegendre": gauss_legendre}


def nested(nodes: int) -> NDArray[np.bool_]:
    """Which nodes of mapped(2 nodes + 1) are those of mapped(nodes)."""
    every_other: NDArray[np.bool_] = np.arange(2 * nodes + 1) % 2 == 1
    return every_other


def calibrated(weight: Array, slope: Array, change: Array) -> Array:
    """The least change of a rule's weights that makes it exact for the target itself.

    The contributions of all tokens at a node add up to the target's slope along the path, whose
    integral is known: the change of the target between both ends. So completeness holds.

    Args:
        weight: (K,) of a rule.
        slope: (K, ...) derivative of each target at its nodes.
        change: (...) each target at the end less that at the beginning.

    Returns:
        (K, ...); the rule's own weights where a slope is 0 everywhere.
    """
    steep = np.abs(slope).max(axis=0, initial=0.0)
    flat = (steep == 0) | ~np.isfinite(steep)
    scaled = slope / np.where(flat, 1, steep)  # whose squares neither overflow nor vanish
    missing = change / np.where(flat, 1, steep) - np.tensordot(weight, scaled, 1)
    share = missing / np.where(flat, 1, np.tensordot(weight, scaled**2, 1))
    weight = weight.reshape(-1, *[1] * (slope.ndim - 1))
    found: Array = weight * (1 + np.where(flat, 0, share * scaled))
    return found


def _density(alpha: Array) -> Array:
    a, b = SHAPE
    constant = math.gamma(a + b) / (math.gamma(a) * math.gamma(b))
    beta: Array = constant * alpha ** (a - 1) * (1 - alpha) ** (b - 1)
    return FLOOR + (1 - FLOOR) * beta


def _quantile(place: Array) -> Array:
    """Where the integral of the density reaches these values."""
    alpha, reached = _integral_of_density()
    return np.interp(place, reached, alpha)


@cache
def _integral_of_density() -> tuple[Array, Array]:
    """(TABLE + 1,) places and the integral up to them, which ends at 1."""
    alpha = np.linspace(0, 1, TABLE + 1)
    density = _density(alpha)
    steps = (density[1:] + density[:-1]) / (2 * TABLE)
    reached = np.concatenate([[0.0], steps.cumsum()])
    return alpha, reached / reached[-1]
