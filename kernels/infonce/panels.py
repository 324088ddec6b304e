"""The plan: panels of rows, three matrix products each, and a part that does all between them.

A panel of C rows holds its (C, N) similarities; a row's softmax is complete inside it, so the
gradient is formed in the forward pass and nothing is computed twice. docs/loss.md derives it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from simcse_fast.kernels.infonce.terms import Job, Softmax, Terms, segments_of


class Part(Protocol):
    """What happens between the products; see torch_ops.py for the plain form of each function."""

    def normalize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, D) -> unit rows and (rows,) inverse lengths."""

    def normalize_backward(
        self, x: Tensor, inverse: Tensor | None, gradient: Tensor, factor: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Gradient of the unit rows -> gradient of x times factor; (rows,) <unit, gradient>."""

    def rows(
        self, panel: Tensor, hard: Tensor | None, job: Job, begin: int, gradient: bool
    ) -> Tensor:
        """One direction: similarities -> weighted gradient of the logits in place; losses."""

    def square(self, job: Job, positive: Tensor) -> "SquarePart":
        """The state of a symmetric loss, given each pair's similarity."""


class SquarePart(Protocol):
    """Both directions of a square problem."""

    def first(self, panel: Tensor, hard: Tensor | None, begin: int, gradient: bool) -> None:
        """Take in a panel's similarities; leaves them as they are, hard becomes its gradient."""

    def end_of_first(self) -> Tensor:
        """Close the columns; the mean of both directions' losses, (M,)."""

    def second(self, panel: Tensor, begin: int) -> None:
        """Similarities -> weighted gradient of the logits, in place."""


@dataclass(frozen=True)
class Result:
    """Row losses and, where asked for, gradients of the unit rows (without the scale)."""

    losses: Tensor  # (M,)
    gradients: list[Tensor | None]  # like tensors + [hard]
    inverses: list[Tensor | None]  # (rows,) inverse lengths; None when not normalized


def panel_rows(rows: int, columns: int, item: int, limit: int) -> int:
    """Rows of a panel: as many as fit the limit, at least one, in panels of equal size."""
    fit = max(1, limit // max(1, columns * item))
    panels = math.ceil(rows / fit)
    return math.ceil(rows / panels)


def gradients_of_panel(
    panel: Tensor, units: list[Tensor], sums: list[Tensor | None], terms: Terms, begin: int
) -> None:
    """Add a panel's two products per block, G K and G^T Q, to the tensors that want them."""
    column = 0
    for block in terms.blocks:
        anchor, key = units[block.anchor], units[block.key]
        rows = slice(begin, begin + panel.shape[0])
        part = panel[:, column : column + key.shape[0]]  # (C, columns of this block)
        column += key.shape[0]
        if (total := sums[block.anchor]) is not None:
            total[rows].addmm_(part, key)
        if (total := sums[block.key]) is not None:
            total.addmm_(part.T, anchor[rows])


class Hard:
    """Similarities with each row's own hard negatives, and what flows back through them."""

    def __init__(self, query: Tensor, unit: Tensor, sums: list[Tensor | None]) -> None:
        self.query, self.unit, self.sums = query, unit, sums  # (M, D), (M, K, D)

    def similarities(self, begin: int, end: int) -> Tensor:
        """(C, K)."""
        return torch.bmm(self.unit[begin:end], self.query[begin:end, :, None])[..., 0]

    def backward(self, gradient: Tensor, begin: int) -> None:
        """gradient (C, K) of the logits."""
        end = begin + gradient.shape[0]
        if (total := self.sums[0]) is not None:
            total[begin:end] += torch.bmm(gradient[:, None], self.unit[begin:end])[:, 0]
        if (total := self.sums[-1]) is not None:
            torch.mul(gradient[..., None], self.query[begin:end, None], out=total[begin:end])


def run(
    part: Part,
    tensors: list[Tensor],  # (rows, D) each, contiguous, fp32 or fp64
    hard: Tensor | None,  # (M, K, D)
    job: Job,
    needs: Sequence[bool],  # gradients wanted, like tensors + [hard]
    limit: int,  # bytes of the workspace
) -> Result:
    """Losses of all rows and the gradients of the unit rows."""
    everything = [*tensors, *([] if hard is None else [hard.flatten(0, 1)])]
    pairs = [part.normalize(x) if job.terms.normalize else (x, None) for x in everything]
    units = [unit for unit, _ in pairs]
    sums = [torch.zeros_like(u) if need else None for u, need in zip(units, needs, strict=True)]
    own = None
    if hard is not None:
        last = sums[-1]
        shaped = [*sums[:-1], None if last is None else last.view(hard.shape)]
        own = Hard(units[job.terms.blocks[0].anchor], units[-1].view(hard.shape), shaped)
    products = _Products(units[: len(tensors)], sums, job, limit)
    losses = (_square if job.terms.symmetric else _rows)(part, products, own, job)
    return Result(losses, list(sums), [inverse for _, inverse in pairs])


class _Products:
    """The panels of a problem in one workspace."""

    def __init__(
        self, units: list[Tensor], sums: list[Tensor | None], job: Job, limit: int
    ) -> None:
        self.units, self.sums, self.terms = units, sums, job.terms
        self.rows = job.labels.shape[0]
        columns = job.segments[-1].begin + job.segments[-1].width
        self.step = panel_rows(self.rows, columns, units[0].element_size(), limit)
        self.workspace = units[0].new_empty(min(self.step, self.rows), columns)
        self.whole = self.step >= self.rows
        self.wanted = any(total is not None for total in sums)

    def panels(self) -> Iterator[tuple[int, Tensor]]:
        """First row and similarities (C, columns) of each panel, in turn in the same memory."""
        for begin in range(0, self.rows, self.step):
            panel = self.workspace[: min(self.step, self.rows - begin)]
            column = 0
            for block in self.terms.blocks:
                key = self.units[block.key]
                anchor = self.units[block.anchor][begin : begin + panel.shape[0]]
                torch.mm(anchor, key.T, out=panel[:, column : column + key.shape[0]])
                column += key.shape[0]
            yield begin, panel

    def backward(self, panel: Tensor, begin: int) -> None:
        gradients_of_panel(panel, self.units, self.sums, self.terms, begin)


def _rows(part: Part, products: _Products, own: Hard | None, job: Job) -> Tensor:
    losses = []
    for begin, panel in products.panels():
        hard = None if own is None else own.similarities(begin, begin + panel.shape[0])
        losses.append(part.rows(panel, hard, job, begin, products.wanted))
        if products.wanted:
            products.backward(panel, begin)
            if own is not None and hard is not None:
                own.backward(hard, begin)
    return losses[0] if len(losses) == 1 else torch.cat(losses)


def _square(part: Part, products: _Products, own: Hard | None, job: Job) -> Tensor:
    query, key = (products.units[i] for i in (0, 1))
    state = part.square(job, torch.linalg.vecdot(query, key))
    panel = products.workspace
    for begin, panel in products.panels():
        hard = None if own is None else own.similarities(begin, begin + panel.shape[0])
        state.first(panel, hard, begin, products.wanted)
        if own is not None and hard is not None and products.wanted:
            own.backward(hard, begin)
    losses = state.end_of_first()
    if products.wanted:
        # A matrix that fits the workspace is still in it; otherwise its panels are formed again.
        again = iter([(0, panel)]) if products.whole else products.panels()
        for begin, similarities in again:
            state.second(similarities, begin)
            products.backward(similarities, begin)
    return losses


def softmax_buffers(like: Tensor, rows: int) -> Softmax:
    """Uninitialised (rows,) buffers on the device and in the dtype of `like`."""
    return Softmax(*like.new_empty(5, rows).unbind(0))
