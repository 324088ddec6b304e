"""The plain part of the plan: torch operations, for every device and floating-point type."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from simcse_fast.kernels.infonce.panels import SquarePart
from simcse_fast.kernels.infonce.terms import Job, Own, Softmax

INFINITY = float("inf")
SHORTEST = 1e-12  # rows below are divided by it instead of their length, as in torch


def normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, D) -> unit rows and (rows,) inverse lengths."""
    # In double: an error in a row's length moves all its logits alike.
    norm = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)
    inverse = norm.clamp_min(SHORTEST).reciprocal().masked_fill(norm == 0, 0)
    return (x * inverse[:, None]).to(x.dtype), inverse.to(x.dtype)


def normalize_backward(
    x: Tensor, inverse: Tensor | None, gradient: Tensor, scale: Tensor | float
) -> Tensor | None:
    """Gradient of the unit rows -> scale * gradient of x, in place.

    Returns the gradient of a tensor scale: the sum of <unit, gradient>, in double.
    """
    along = (x * gradient).sum(-1, dtype=torch.float64)
    if inverse is None:
        gradient.mul_(scale)
    else:
        # What is left after the projection may be small, so it is summed in double.
        along *= inverse
        # The shortest rows were multiplied by a constant, so nothing is projected out.
        back = (along * inverse).masked_fill(inverse >= 1 / SHORTEST, 0).to(x.dtype)
        gradient.addcmul_(x, back[:, None], value=-1).mul_((inverse * scale)[:, None])
    return along.sum() if isinstance(scale, Tensor) else None


def multiply(left: Tensor, right: Tensor, out: Tensor, add: bool) -> None:
    """Write or add the product of left and right into out."""
    if add:
        out.addmm_(left, right)
    else:
        torch.mm(left, right, out=out)


def rows(panel: Tensor, hard: Tensor | None, job: Job, begin: int, gradient: bool) -> Tensor:
    """One direction: similarities -> weighted gradient of the logits in place; losses."""
    softmax, remains = _row_softmax(panel, hard, job, begin)
    if gradient:
        weight = _weight(job, begin, panel)
        _weigh(panel, weight, softmax, job, remains)
        own = weight * (job.terms.label_smoothing - softmax.smoothing - softmax.miss)
        panel[_own(job, begin, panel)] = own
        if hard is not None:
            _weigh(hard, weight, softmax, job)
    return softmax.loss


def small(_query: Tensor, _key: Tensor, _job: Job, _needs: Sequence[bool]) -> None:
    """No quicker way for small batches."""


def square(job: Job, positive: Tensor) -> SquarePart:
    """The state of a symmetric loss, given each pair's similarity."""
    return _Square(job, positive)


class _Square:
    def __init__(self, job: Job, positive: Tensor) -> None:
        n = positive.shape[0]
        self.job, self.positive = job, positive
        self.row = Softmax(*positive.new_empty(5, n))
        self.column = Softmax(*positive.new_empty(5, n))
        self.column.offset.copy_(positive * job.scale)
        self.sum, self.logit_sum = positive.new_zeros(2, n)
        self.count = positive.new_zeros(n)

    def first(self, panel: Tensor, hard: Tensor | None, begin: int, gradient: bool) -> None:
        softmax, _ = _row_softmax(panel.clone(), hard, self.job, begin)
        for whole, piece in zip(vars(self.row).values(), vars(softmax).values(), strict=True):
            whole[begin : begin + panel.shape[0]] = piece
        if gradient and hard is not None:
            _weigh(hard, _weight(self.job, begin, panel), softmax, self.job)
        logits = self._column_logits(panel, begin)
        offset = torch.maximum(self.column.offset, logits.amax(0))
        if self.job.terms.label_smoothing:
            remains = logits > -INFINITY
            self.count += remains.sum(0)
            self.logit_sum += logits.masked_fill(~remains, 0).sum(0)
        self.sum *= (self.column.offset - offset).exp_()
        self.sum += logits.sub_(offset).exp_().sum(0)
        self.column.offset.copy_(offset)

    def end_of_first(self) -> Tensor:
        behind = self.positive * self.job.scale - self.column.offset
        ended = _finish(self.sum, behind, self.column.offset, self.logit_sum, self.count, self.job)
        self.column = ended
        return (self.row.loss + ended.loss) / 2

    def second(self, panel: Tensor, begin: int) -> None:
        row = Softmax(*(x[begin : begin + panel.shape[0]] for x in vars(self.row).values()))
        by_column = self._column_logits(panel, begin)
        column_remains = by_column > -INFINITY if self.job.terms.label_smoothing else None
        by_column.sub_(self.column.offset).exp_()
        _negative_logits(panel, self.job, begin)
        remains = panel > -INFINITY if self.job.terms.label_smoothing else None
        panel.sub_(row.offset[:, None]).exp_()
        weight = _weight(self.job, begin, panel)
        _weigh(panel, weight, row, self.job, remains)
        everything = _weight(self.job, 0, self.positive)
        turned = None if column_remains is None else column_remains.T
        _weigh(by_column.T, everything, self.column, self.job, turned)
        panel += by_column
        own = _own(self.job, begin, panel)
        panel[own] = weight * (
            2 * self.job.terms.label_smoothing
            - (row.smoothing + self.column.smoothing[own[1]])
            - (row.miss + self.column.miss[own[1]])
        )

    def _column_logits(self, panel: Tensor, begin: int) -> Tensor:
        logits = panel * (self.job.scale + self.job.segments[0].hardness)
        out = _left_out(panel, self.positive, self.job, begin)
        if out is not None:
            logits.masked_fill_(out, -INFINITY)
        logits[_own(self.job, begin, panel)] = -INFINITY
        return logits


def _own(job: Job, begin: int, panel: Tensor) -> tuple[Tensor, Tensor]:
    count = panel.shape[0]
    return torch.arange(count, device=panel.device), job.labels[begin : begin + count]


def _weight(job: Job, begin: int, panel: Tensor) -> Tensor | float:
    return job.uniform_weight if job.weight is None else job.weight[begin : begin + len(panel)]


def _left_out(panel: Tensor, positive: Tensor, job: Job, begin: int) -> Tensor | None:
    """(C, N) columns that the margin (against `positive`, broadcast) or the ids leave out."""
    out = panel > positive + job.terms.margin if job.terms.margin < INFINITY else None
    if job.query_ids is not None and job.key_ids is not None:
        same = job.query_ids[begin : begin + panel.shape[0], None] == job.key_ids
        out = same if out is None else out | same
    return out


def _negative_logits(panel: Tensor, job: Job, begin: int) -> Tensor:
    """Similarities -> logits in place, -inf where left out and at the positive; its similarity."""
    row, label = _own(job, begin, panel)
    positive = panel[row, label]
    out = _left_out(panel, positive[:, None], job, begin)
    for segment in job.segments:
        columns = panel[:, segment.begin : segment.begin + segment.width]
        own = columns[row, label] * (job.scale + segment.own_hardness)
        columns *= job.scale + segment.hardness
        columns[row, label] = own if segment.own == Own.KEPT else -INFINITY
    if out is not None:
        panel.masked_fill_(out, -INFINITY)
    panel[row, label] = -INFINITY
    return positive


def _row_softmax(
    panel: Tensor, hard: Tensor | None, job: Job, begin: int
) -> tuple[Softmax, Tensor | None]:
    """Turns similarities into exponentials in place; with smoothing also what remains."""
    positive = _negative_logits(panel, job, begin) * job.scale
    offset = torch.maximum(positive, panel.amax(1))
    if hard is not None:
        hard *= job.scale + job.segments[0].hardness
        hard += math.log(job.terms.hard_negative_weight)
        offset = torch.maximum(offset, hard.amax(1))
    logit_sum = count = remains = None
    if job.terms.label_smoothing:
        remains = panel > -INFINITY
        count = remains.sum(1)
        logit_sum = panel.masked_fill(~remains, 0).sum(1)
        if hard is not None:
            count = count + hard.shape[1]
            logit_sum += hard.sum(1)
    total = panel.sub_(offset[:, None]).exp_().sum(1)
    if hard is not None:
        total += hard.sub_(offset[:, None]).exp_().sum(1)
    return _finish(total, positive - offset, offset, logit_sum, count, job), remains


def _finish(
    negatives: Tensor,  # sum of exponentials above the offset
    behind: Tensor,  # the positive's logit less the offset, <= 0
    offset: Tensor,
    logit_sum: Tensor | None,
    count: Tensor | None,
    job: Job,
) -> Softmax:
    positive = behind.exp()
    total = positive + negatives
    # Two forms: the first keeps the digits of a converged loss, the second cannot overflow.
    loss = torch.where(negatives <= positive, (negatives / positive).log1p(), total.log() - behind)
    smoothing = torch.zeros_like(loss)
    if job.terms.label_smoothing and logit_sum is not None and count is not None:
        logit = offset + behind
        smoothing = job.terms.label_smoothing / (count + 1).to(loss.dtype)
        loss = loss + job.terms.label_smoothing * logit - smoothing * (logit_sum + logit)
    return Softmax(loss, offset, total.reciprocal(), negatives / total, smoothing)


def _weigh(
    exponentials: Tensor,  # (C, N), becomes weight * (p - smoothing), 0 where nothing remains
    weight: Tensor | float,
    softmax: Softmax,
    job: Job,
    remains: Tensor | None = None,
) -> None:
    exponentials *= (weight * softmax.inverse_sum)[:, None]
    if job.terms.label_smoothing:
        shift = (weight * softmax.smoothing)[:, None]
        exponentials -= shift if remains is None else shift * remains
