"""From numbers a sentence to the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_fast.attribution.attributions import Attributions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from simcse_fast.attribution.tokens import Units


def assemble(
    units: Sequence[Units],
    scores: Sequence[NDArray[np.float64]],  # (units,), or (units, D) of every dimension
    totals: Sequence[NDArray[np.float64]],  # () or (D,): all scores, also of what has no unit
    ends: tuple[NDArray[np.float64], NDArray[np.float64]],  # (B,) or (B, D): target and baseline's
    **rest: Any,  # of Attributions
) -> Attributions:
    """Scores with their completeness errors; of vectors the lengths."""
    off = np.array(totals).reshape(ends[0].shape) - (ends[0] - ends[1])
    vectors = None
    if ends[0].ndim > 1:
        vectors = [one.astype(np.float32) for one in scores]
        scores = [np.linalg.norm(one, axis=1) for one in scores]
        values, baseline_values, residual = (np.linalg.norm(x, axis=1) for x in (*ends, off))
    else:
        (values, baseline_values), residual = ends, off
    return Attributions(
        tokens=[own.names for own in units],
        spans=[own.spans for own in units],
        scores=list(scores),
        values=values,
        baseline_values=baseline_values,
        residual=residual,
        vectors=vectors,
        **rest,
    )
