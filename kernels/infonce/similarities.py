"""What the GPU's plan hands to a product: unit rows, and what the product's epilogue must know."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from simcse_fast.kernels.infonce.terms import Job, Segment, Terms
from simcse_fast.kernels.infonce.triton_math import LOWEST, ROUNDING
from simcse_fast.kernels.infonce.triton_rows import Rows

if TYPE_CHECKING:
    from simcse_fast.kernels.infonce.panels import Result


@dataclass(frozen=True)
class Similarities:
    """A panel's unit rows against a segment's, and what the epilogue of their product must know."""

    query: Tensor  # (C, depth)
    key: Tensor  # (W, depth)
    labels: Tensor  # (C,) each row's own column of the segment
    numbers: Tensor  # (2,) fp64: scale, offset
    segment: Segment
    margin: float = 0.0
    positive: Tensor | None = None  # (C,) similarity with the positive, where a margin is given
    opposite: Tensor | None = None  # (W,) the same of the columns, where they are summed too
    query_ids: Tensor | None = None  # (C,)
    key_ids: Tensor | None = None  # (W,)


class Products(Protocol):
    """Products of unit rows with the softmax in their epilogue; triton_kernels.py says more."""

    def sums(
        self,
        s: Similarities,
        panel: Tensor | None,
        *,
        columns: bool,
        online: bool,
        smoothing: bool,
        flag: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """What each tile adds to its rows and, if asked, its columns; fills a panel.

        Planes (sum of exponentials, largest logit, sum of logits, number) x tiles x C (or W). The
        panel gets exponentials, 0 at the positive and beyond the last column. Exponentials are
        taken above the offset; `online` above the tile's largest logit. With a flag, runs if it
        is set.
        """

    def gradients(
        self,
        s: Similarities,
        panel: Tensor,
        row_state: Tensor,
        column_state: Tensor | None,
        own: Tensor,
        *,
        gain: Tensor | None,
        online: bool,
        smoothing: bool,
        flag: Tensor | None,
        expected: int,
    ) -> None:
        """Fill the panel with gradients of the logits; with a flag, runs if that is `expected`."""

    def narrow(self, problem: "Problem", needs: Sequence[bool]) -> "Result | None":
        """A narrow or small problem without panels, or None."""


@dataclass(frozen=True)
class Problem:
    """The rows on the device, and what the plan derives from them before the first product."""

    job: Job
    rows: list[Rows]  # like tensors
    hard: Rows | None  # (M K, D)
    numbers: Tensor  # (2,) fp64: scale, offset
    flag: Tensor | None  # () int32 where the offset may lie too far above a row's logits


def margin_of(terms: Terms) -> float | None:
    """The margin as the kernels take it; None where nothing is left out.

    Sums of the same numbers in different orders differ in their last bits, so keys equal to the
    positive stay; two floats make no product of minus infinity, so it is a large number.
    """
    if terms.margin == math.inf:
        return None
    return max(terms.margin, float(LOWEST.value)) + float(ROUNDING.value) * terms.normalize
