"""The part of the plan for fp32 on a GPU: torch's products, and Triton's kernels between them.

fp32 has no matrix instruction, so that cuBLAS is far ahead of a product of our own, and a pass over
the panel costs little beside it. Whatever is known on the device alone stays there.
"""

import math

import torch
import triton
from torch import Tensor

from simcse_fast.kernels.infonce import torch_ops, triton_rows
from simcse_fast.kernels.infonce.panels import SquarePart
from simcse_fast.kernels.infonce.similarities import margin_of
from simcse_fast.kernels.infonce.terms import Job, Own
from simcse_fast.kernels.infonce.triton_math import FUSED, scale_arguments
from simcse_fast.kernels.infonce.triton_passes import (
    infonce_both_kernel,
    infonce_fold_kernel,
    infonce_rows_kernel,
)
from simcse_fast.kernels.infonce.triton_rows import Rows

BLOCK = 4096  # columns of a row that are looked at together, at most
TILE = {"BM": 64, "BN": 128, "num_warps": 8}  # of both directions
FOLDED = 32  # rows whose sums over tiles one program adds up

multiply = torch_ops.multiply
small = torch_ops.small


def normalize(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """(rows, D) -> unit rows and (rows,) inverse lengths."""
    rows = triton_rows.unit_rows(x, None, padding=False)
    return rows.unit, rows.inverse


def normalize_backward(
    x: Tensor, inverse: Tensor | None, gradient: Tensor, scale: Tensor | float
) -> Tensor | None:
    """Gradient of the unit rows -> scale * gradient of x, in place.

    Returns the gradient of a tensor scale: the sum of <unit, gradient>, in double.
    """
    rows, learned = Rows(x, x, inverse), isinstance(scale, Tensor)
    return triton_rows.finish(rows, gradient, scale, of_scale=learned, in_place=True)[1]


def rows(panel: Tensor, hard: Tensor | None, job: Job, begin: int, gradient: bool) -> Tensor:
    """One direction: similarities -> weighted gradient of the logits in place; losses."""
    if not _alike(job):
        return torch_ops.rows(panel, hard, job, begin, gradient)
    (count, columns), losses = panel.shape, panel.new_empty(panel.shape[0])
    block = max(32, min(BLOCK, triton.next_power_of_2(columns)))
    together = max(1, 2048 // block)
    infonce_rows_kernel[(triton.cdiv(count, together),)](
        *(panel, job.labels, losses if hard is None else hard, _or(job.weight, losses)),
        *(_or(job.query_ids, losses), _or(job.key_ids, losses)),
        *(*scale_arguments(job.scale, losses), losses, begin, count, columns),
        *(_negatives(hard), job.segments[0].hardness, math.log2(job.terms.hard_negative_weight)),
        *(margin_of(job.terms) or 0.0, job.terms.label_smoothing, job.uniform_weight),
        **_tile_switches(job),
        **_row_switches(job, hard, gradient=gradient),
        BR=together,
        BN=block,
        num_warps=8,
        **FUSED,
    )
    return losses


def square(job: Job, positive: Tensor) -> SquarePart:
    """The state of a symmetric loss, given each pair's similarity."""
    return _Square(job, positive)


class _Square:
    def __init__(self, job: Job, positive: Tensor) -> None:
        n = len(positive)
        self.job, self.positive = job, positive
        self.planes = 4 if job.terms.label_smoothing else 2
        self.losses = positive.new_empty(2, n)
        self.state = positive.new_empty(2, 4, n)
        self.running: Tensor | None = None  # of columns, where there are several panels

    def first(self, panel: Tensor, hard: Tensor | None, begin: int, gradient: bool) -> None:
        (count, n), last = panel.shape, begin + len(panel) == len(self.positive)
        by_row = panel.new_empty(self.planes, triton.cdiv(n, TILE["BN"]), count)
        by_column = panel.new_empty(self.planes, triton.cdiv(count, TILE["BM"]), n)
        self._tiles(panel, begin, by_row, by_column, gradient=False)
        self._fold(0, by_row, hard, begin, first=True, last=True, gradient=gradient)
        if self.running is None and not last:
            self.running = panel.new_empty(4, n, dtype=torch.float64)
        self._fold(1, by_column, None, 0, first=begin == 0, last=last, gradient=gradient)

    def end_of_first(self) -> Tensor:
        return self.losses.mean(0)

    def second(self, panel: Tensor, begin: int) -> None:
        self._tiles(panel, begin, self.state[0], self.state[1], gradient=True)

    def _tiles(
        self, panel: Tensor, begin: int, by_row: Tensor, by_column: Tensor, *, gradient: bool
    ) -> None:
        job, (count, n) = self.job, panel.shape
        infonce_both_kernel[(triton.cdiv(n, TILE["BN"]), triton.cdiv(count, TILE["BM"]))](
            *(panel, self.positive, _or(job.query_ids, panel), _or(job.key_ids, panel)),
            *(*scale_arguments(job.scale, panel), by_row, by_column, begin, count, n),
            *(job.segments[0].hardness, margin_of(job.terms) or 0.0),
            **_tile_switches(job),
            GRADIENT=gradient,
            **TILE,
            **FUSED,
        )

    def _fold(
        self,
        direction: int,  # 0: rows, 1: columns
        parts: Tensor,  # (planes, tiles, C)
        hard: Tensor | None,
        begin: int,
        *,
        first: bool,
        last: bool,
        gradient: bool,
    ) -> None:
        job, (_, tiles, count) = self.job, parts.shape
        infonce_fold_kernel[(triton.cdiv(count, FOLDED),)](
            *(parts, _or(self.running, parts), self.positive, parts if hard is None else hard),
            *(_or(job.weight, parts), *scale_arguments(job.scale, parts)),
            *(self.losses[direction], self.state[direction], begin, count, len(self.positive)),
            *(tiles, _negatives(hard), job.segments[0].hardness),
            *(math.log2(job.terms.hard_negative_weight), job.terms.label_smoothing),
            job.uniform_weight,
            FIRST=first,
            LAST=last,
            SMOOTHING=bool(job.terms.label_smoothing),
            LEARNED=isinstance(job.scale, Tensor),
            **_row_switches(job, hard, gradient=gradient),
            BR=FOLDED,
            **FUSED,
        )


def _alike(job: Job) -> bool:
    """Whether all columns but the positive are negatives under the same hardness."""
    one = job.segments[0].hardness
    return job.segments[0].own == Own.POSITIVE and all(
        s.hardness == one and s.own == Own.KEPT and s.own_hardness == one for s in job.segments[1:]
    )


def _tile_switches(job: Job) -> dict[str, bool]:
    return {
        "LEARNED": isinstance(job.scale, Tensor),
        "IDS": job.query_ids is not None,
        "MARGIN": margin_of(job.terms) is not None,
        "SMOOTHING": bool(job.terms.label_smoothing),
    }


def _row_switches(job: Job, hard: Tensor | None, *, gradient: bool) -> dict[str, bool]:
    return {"WEIGHTED": job.weight is not None, "HARD": hard is not None, "GRADIENT": gradient}


def _negatives(hard: Tensor | None) -> int:
    return 0 if hard is None else hard.shape[1]


def _or(x: Tensor | None, other: Tensor) -> Tensor:
    """A tensor, or another one as a pointer that is not followed."""
    return other if x is None else x
