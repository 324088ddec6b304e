"""The native part of the plan: one pass per panel in C++ (csrc/cpu), float32 on the CPU."""

import ctypes
import math

import torch
from torch import Tensor

from simcse_fast.kernels import native
from simcse_fast.kernels.infonce.panels import SquarePart, softmax_buffers
from simcse_fast.kernels.infonce.terms import Job, Softmax

LOG2E = math.log2(math.e)


def normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, D) -> unit rows and (rows,) inverse lengths."""
    unit, inverse = torch.empty_like(x), x.new_empty(x.shape[0])
    native.load().sf_normalize(
        x.data_ptr(), *x.shape, unit.data_ptr(), inverse.data_ptr(), torch.get_num_threads()
    )
    return unit, inverse


def normalize_backward(
    x: Tensor, inverse: Tensor | None, gradient: Tensor, factor: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Gradient of the unit rows -> gradient of x times factor; (rows,) <unit, gradient>."""
    out, projection = torch.empty_like(x), x.new_empty(x.shape[0])
    native.load().sf_normalize_backward(
        *(x.data_ptr(), _pointer(inverse), gradient.data_ptr(), *x.shape, float(factor)),
        *(out.data_ptr(), projection.data_ptr(), torch.get_num_threads()),
    )
    return out, projection


def rows(panel: Tensor, hard: Tensor | None, job: Job, begin: int, gradient: bool) -> Tensor:
    """One direction: similarities -> weighted gradient of the logits in place; losses."""
    losses = panel.new_empty(panel.shape[0])
    softmax = native.Softmax(loss=losses.data_ptr())
    _rows(panel, hard, job, begin, softmax, write=(gradient, gradient and hard is not None))
    return losses


def square(job: Job, positive: Tensor) -> SquarePart:
    """The state of a symmetric loss, given each pair's similarity."""
    return _Square(job, positive)


class _Square:
    def __init__(self, job: Job, positive: Tensor) -> None:
        n = positive.shape[0]
        self.job, self.positive = job, positive
        self.row, self.column = softmax_buffers(positive, n), softmax_buffers(positive, n)
        torch.mul(positive, float(job.scale) * LOG2E, out=self.column.offset)
        self.sums = positive.new_zeros(2, n, dtype=torch.float64)
        self.count = positive.new_zeros(n, dtype=torch.int64)

    def first(self, panel: Tensor, hard: Tensor | None, begin: int, gradient: bool) -> None:
        softmax = _softmax(self.row, begin)
        _rows(panel, hard, self.job, begin, softmax, (False, gradient and hard is not None))
        native.load().sf_infonce_columns(ctypes.byref(self._square(panel, begin)))

    def end_of_first(self) -> Tensor:
        whole = self.positive.new_empty(1, self.positive.shape[0])
        native.load().sf_infonce_columns_end(ctypes.byref(self._square(whole, 0)))
        return (self.row.loss + self.column.loss) / 2

    def second(self, panel: Tensor, begin: int) -> None:
        native.load().sf_infonce_square(ctypes.byref(self._square(panel, begin)))

    def _square(self, panel: Tensor, begin: int) -> native.Square:
        job, slope = self.job, float(self.job.scale)
        return native.Square(
            similarity=panel.data_ptr(),
            rows=panel.shape[0],
            stride=panel.stride(0),
            first_row=begin,
            columns=panel.shape[1],
            slope=(slope + job.segments[0].hardness) * LOG2E,
            positive_slope=slope * LOG2E,
            positive=self.positive.data_ptr(),
            query_ids=_pointer(job.query_ids),
            key_ids=_pointer(job.key_ids),
            margin=job.terms.margin,
            label_smoothing=job.terms.label_smoothing,
            weight=_pointer(job.weight),
            uniform_weight=job.uniform_weight,
            row=_softmax(self.row, 0),
            column=_softmax(self.column, 0),
            column_sum=self.sums[0].data_ptr(),
            logit_sum=self.sums[1].data_ptr(),
            column_count=self.count.data_ptr(),
            threads=torch.get_num_threads(),
        )


def _rows(
    panel: Tensor,
    hard: Tensor | None,
    job: Job,
    begin: int,
    softmax: native.Softmax,
    write: tuple[bool, bool],
) -> None:
    scale = float(job.scale)
    hard_slope = (scale + job.segments[0].hardness) * LOG2E
    segments = (native.Segment * len(job.segments))()
    for number, s in enumerate(job.segments):
        slopes = (scale + s.hardness) * LOG2E, (scale + s.own_hardness) * LOG2E
        segments[number] = native.Segment(s.begin, s.width, *slopes, int(s.own))
    terms = job.terms
    problem = native.Rows(  # by position, in the order of sf_rows: names cost as much as the call
        *(panel.data_ptr(), panel.shape[0], panel.stride(0), _pointer(job.labels, begin)),
        *(segments, len(segments)),
        *(_pointer(hard), 0 if hard is None else hard.shape[1]),
        *(hard_slope, math.log2(terms.hard_negative_weight)),
        *(_pointer(job.query_ids, begin), _pointer(job.key_ids)),
        *(terms.margin, terms.label_smoothing),
        *(_pointer(job.weight, begin), job.uniform_weight, *write),
        *(softmax, torch.get_num_threads()),
    )
    native.load().sf_infonce_rows(ctypes.byref(problem))


def _pointer(x: Tensor | None, begin: int = 0) -> int | None:
    return None if x is None else x.data_ptr() + begin * x.element_size()


def _softmax(state: Softmax, begin: int) -> native.Softmax:
    return native.Softmax(
        *(
            _pointer(x, begin)
            for x in (state.loss, state.offset, state.inverse_sum, state.miss, state.smoothing)
        )
    )
