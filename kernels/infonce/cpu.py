"""The native part of the plan: one pass per panel in C++ (csrc/cpu), float32 on the CPU."""

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from simcse_fast.kernels import native
from simcse_fast.kernels.infonce import torch_ops, workspace
from simcse_fast.kernels.infonce.panels import Result, SquarePart
from simcse_fast.kernels.infonce.terms import Job

LOG2E = math.log2(math.e)
# Multiplications of a product up to which one native call is quickest: with torch's products in the
# panels, and with ours.
SMALL = 1 << 24, 1 << 27


def normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, D) -> unit rows and (rows,) inverse lengths."""
    unit, inverse = torch.empty_like(x), x.new_empty(x.shape[0])
    native.load().sf_normalize(
        x.data_ptr(), *x.shape, unit.data_ptr(), inverse.data_ptr(), torch.get_num_threads()
    )
    return unit, inverse


def normalize_backward(
    x: Tensor, inverse: Tensor | None, gradient: Tensor, scale: Tensor | float
) -> Tensor | None:
    """Gradient of the unit rows -> scale * gradient of x, in place.

    Returns the gradient of a tensor scale: the sum of <unit, gradient>, in double.
    """
    projection = x.new_empty(x.shape[0]) if isinstance(scale, Tensor) else None
    native.load().sf_normalize_backward(
        *(x.data_ptr(), _pointer(inverse), gradient.data_ptr(), *x.shape, float(scale)),
        *(gradient.data_ptr(), _pointer(projection), torch.get_num_threads()),
    )
    return None if projection is None else projection.sum(dtype=torch.float64)


def multiply(left: Tensor, right: Tensor, out: Tensor, add: bool) -> None:
    """Write or add the product of left and right into out."""
    library = native.load()
    if not library.sf_outruns_blas():
        torch_ops.multiply(left, right, out, add)
        return
    line = out.stride(0) if len(out) > 1 else out.shape[1]  # of a single row it may be anything
    product = native.Product(  # by position, in the order of sf_product
        *(left.data_ptr(), *left.stride(), right.data_ptr(), *right.stride()),
        *(out.data_ptr(), line, *out.shape, left.shape[1], add, None),
        torch.get_num_threads(),
    )
    at = ctypes.byref(product)
    with workspace.borrowed("product", out, library.sf_product_scratch(at)) as scratch:
        product.scratch = scratch.data_ptr()
        library.sf_multiply(at)


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
        # Of each row and each column: loss, offset, inverse sum, miss, smoothing.
        self.softmax = positive.new_empty(10, n)
        self.sums = positive.new_empty(3, n, dtype=torch.float64)  # the last row holds integers
        scale, terms = float(job.scale), job.terms
        hardness, sums = job.segments[0].hardness, self.sums.data_ptr()
        self.panel = native.Square(  # by position, in the order of sf_square
            *(None, 0, 0, 0, n, (scale + hardness) * LOG2E, scale * LOG2E, positive.data_ptr()),
            *(_pointer(job.query_ids), _pointer(job.key_ids), terms.margin, terms.label_smoothing),
            *(_pointer(job.weight), job.uniform_weight, self._softmax(0), self._softmax(5)),
            *(sums, sums + 8 * n, sums + 16 * n, torch.get_num_threads()),
        )

    def first(self, panel: Tensor, hard: Tensor | None, begin: int, gradient: bool) -> None:
        write = (False, gradient and hard is not None)
        _rows(panel, hard, self.job, begin, self._softmax(0, begin), write)
        native.load().sf_infonce_columns(self._at(panel, begin))

    def end_of_first(self) -> Tensor:
        native.load().sf_infonce_columns_end(ctypes.byref(self.panel))
        return self.mean_losses()

    def mean_losses(self) -> Tensor:
        """Of both directions."""
        return (self.softmax[0] + self.softmax[5]) / 2

    def second(self, panel: Tensor, begin: int) -> None:
        native.load().sf_infonce_square(self._at(panel, begin))

    def _at(self, panel: Tensor, begin: int) -> object:
        self.panel.similarity, self.panel.rows = panel.data_ptr(), panel.shape[0]
        self.panel.stride, self.panel.first_row = panel.stride(0), begin
        return ctypes.byref(self.panel)

    def _softmax(self, first: int, begin: int = 0) -> native.Softmax:
        n = self.softmax.shape[1]
        base = self.softmax.data_ptr() + 4 * (first * n + begin)
        return native.Softmax(*range(base, base + 20 * n, 4 * n))


def small(query: Tensor, key: Tensor, job: Job, needs: Sequence[bool]) -> Result | None:
    """A batch of normalized pairs, whole in one native call; None for what is not small."""
    terms, (rows, width), columns = job.terms, query.shape, len(key)
    plain = terms.normalize and len(job.segments) == 1
    library = native.load()
    if not plain or rows * columns * max(width, 32) > SMALL[library.sf_outruns_blas()]:
        return None
    panel = query.new_empty(rows, columns)
    total = query.new_empty(())
    of_query = torch.empty_like(query) if needs[0] else None
    of_key = torch.empty_like(key) if needs[1] else None
    learned = needs[0] and isinstance(job.scale, Tensor)
    projection = query.new_empty(rows) if learned else None
    both = _Square(job, query.new_empty(rows)) if terms.symmetric else None
    losses = query.new_empty(rows) if both is None else both.softmax[0]
    softmax = native.Softmax(losses.data_ptr()) if both is None else both.panel.row
    write = needs[0] or needs[1], False
    batch = native.Small(  # by position, in the order of sf_small
        _panel(panel.data_ptr(), rows, columns, None, job, 0, softmax, write),
        None if both is None else ctypes.pointer(both.panel),
        *(query.data_ptr(), key.data_ptr(), width, float(job.scale), None, total.data_ptr()),
        *(_pointer(of_query), _pointer(of_key), _pointer(projection)),
    )
    at = ctypes.byref(batch)
    scratch = query.new_empty(library.sf_small_scratch(at))
    batch.scratch = scratch.data_ptr()
    library.sf_infonce_small(at)
    of_scale = None if projection is None else projection.sum(dtype=torch.float64)
    if both is not None:
        losses = both.mean_losses()
    return Result(losses, [of_query, of_key], of_scale, total)


def _rows(
    panel: Tensor,
    hard: Tensor | None,
    job: Job,
    begin: int,
    softmax: native.Softmax,
    write: tuple[bool, bool],
) -> None:
    pointer, (rows, _), stride = panel.data_ptr(), panel.shape, panel.stride(0)
    problem = _panel(pointer, rows, stride, hard, job, begin, softmax, write)
    native.load().sf_infonce_rows(ctypes.byref(problem))


def _panel(
    similarity: int,
    rows: int,
    stride: int,
    hard: Tensor | None,
    job: Job,
    begin: int,
    softmax: native.Softmax,
    write: tuple[bool, bool],
) -> native.Rows:
    scale, terms = float(job.scale), job.terms
    segments = (native.Segment * len(job.segments))()
    for number, s in enumerate(job.segments):
        slopes = (scale + s.hardness) * LOG2E, (scale + s.own_hardness) * LOG2E
        segments[number] = native.Segment(s.begin, s.width, *slopes, int(s.own))
    return native.Rows(  # by position, in the order of sf_rows: names cost as much as the call
        *(similarity, rows, stride, _pointer(job.labels, begin), segments, len(segments)),
        *(_pointer(hard), 0 if hard is None else hard.shape[1]),
        *((scale + job.segments[0].hardness) * LOG2E, math.log2(terms.hard_negative_weight)),
        *(_pointer(job.query_ids, begin), _pointer(job.key_ids)),
        *(terms.margin, terms.label_smoothing),
        *(_pointer(job.weight, begin), job.uniform_weight, *write),
        *(softmax, torch.get_num_threads()),
    )


def _pointer(x: Tensor | None, begin: int = 0) -> int | None:
    return None if x is None else x.data_ptr() + begin * x.element_size()
