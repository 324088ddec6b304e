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

from simcse_fast.kernels.infonce import workspace
from simcse_fast.kernels.infonce.terms import Job

DIAGONAL = 128  # rows of the blocks in which the pairs of a symmetric loss are compared first


class Part(Protocol):
    """What happens between the products; see torch_ops.py for the plain form of each function."""

    def normalize(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(rows, D) -> unit rows and (rows,) inverse lengths."""

    def normalize_backward(
        self, x: Tensor, inverse: Tensor | None, gradient: Tensor, scale: Tensor | float
    ) -> Tensor | None:
        """Gradient of the unit rows -> scale * gradient of x, in place.

        Returns the gradient of a tensor scale: the sum of <unit, gradient>, in double.
        """

    def multiply(self, left: Tensor, right: Tensor, out: Tensor, add: bool) -> None:
        """Write or add the product of left and right, of any strides, into rows of out."""

    def rows(
        self, panel: Tensor, hard: Tensor | None, job: Job, begin: int, gradient: bool
    ) -> Tensor:
        """One direction: similarities -> weighted gradient of the logits in place; losses."""

    def small(self, query: Tensor, key: Tensor, job: Job, needs: Sequence[bool]) -> "Result | None":
        """A small batch without own hard negatives in one go, or None."""

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
    """Row losses and, where asked for, the gradients of their weighted sum."""

    losses: Tensor  # (M,), not weighted
    gradients: list[Tensor | None]  # like tensors + [hard as (M K, D)]
    of_scale: Tensor | None = None  # 0-d, of a tensor scale whose queries' gradient is wanted
    total: Tensor | None = None  # 0-d, the weighted sum, where the part has it already


def panel_rows(rows: int, columns: int, item: int, limit: int) -> int:
    """Rows of a panel: as many as fit the limit, at least one, in panels of equal size."""
    fit = max(1, limit // max(1, columns * item))
    panels = math.ceil(rows / fit)
    return math.ceil(rows / panels)


def run(
    part: Part,
    tensors: list[Tensor],  # (rows, D) each, contiguous, fp32 or fp64
    hard: Tensor | None,  # (M, K, D)
    job: Job,
    needs: Sequence[bool],  # gradients wanted, like tensors + [hard]
    limit: int,  # bytes of the workspace
) -> Result:
    """Losses of all rows and their gradients."""
    fits = job.labels.numel() * tensors[-1].nbytes <= limit * tensors[-1].shape[1]
    if hard is None and fits and (result := part.small(tensors[0], tensors[-1], job, needs)):
        return result
    everything = [*tensors, *([] if hard is None else [hard.flatten(0, 1)])]
    pairs = [part.normalize(x) if job.terms.normalize else (x, None) for x in everything]
    units = [unit for unit, _ in pairs]
    columns = job.segments[-1].begin + job.segments[-1].width
    step = panel_rows(len(job.labels), columns, units[0].element_size(), limit)
    with workspace.borrowed("panel", units[0], step * columns) as memory:
        panel = memory.as_strided((step, columns), (columns, 1))
        products = _Products(part, units, needs, job, panel)
        own = None
        if hard is not None:
            own = _Hard(units[job.terms.blocks[0].anchor], units[-1].view(hard.shape), products)
        losses = (_square if job.terms.symmetric else _rows)(part, products, own, job)
    of_scale: list[Tensor | None] = []
    for x, (_, inverse), gradient in zip(everything, pairs, products.sums, strict=True):
        if gradient is None:
            of_scale.append(None)
        else:
            of_scale.append(part.normalize_backward(x, inverse, gradient, job.scale))
    return Result(losses, products.sums, of_scale[0])


class _Products:
    """The matrix products of a problem: panels of similarities in one workspace, and back."""

    def __init__(
        self, part: Part, units: list[Tensor], needs: Sequence[bool], job: Job, panel: Tensor
    ) -> None:
        self.part, self.units, self.needs, self.blocks = part, units, needs, job.terms.blocks
        self.sums: list[Tensor | None] = [None] * len(units)
        self.rows = job.labels.shape[0]
        self.step, self.panel = len(panel), panel
        self.whole = self.step == self.rows
        self.wanted = any(needs)

    def panels(self) -> Iterator[tuple[int, Tensor]]:
        """First row and similarities (C, columns) of each panel, in turn in the same memory."""
        for begin in range(0, self.rows, self.step):
            panel = self.panel if self.whole else self.panel[: self.rows - begin]
            for anchor, key, part in self._parts(panel):
                mine = _rows_of(self.units[anchor], begin, len(panel))
                self.part.multiply(mine, self.units[key].T, part, add=False)
            yield begin, panel

    def diagonal(self) -> Tensor:
        """Each pair's similarity, by products like the panels': equal keys are equally similar."""
        query, key = self.units[:2]
        size = min(self.step, DIAGONAL)
        block = self.panel.view(-1)[: size * size].view(size, size)
        found = query.new_empty(self.rows)
        for begin in range(0, self.rows, size):
            mine, theirs = query[begin : begin + size], key[begin : begin + size]
            corner = block[: len(mine), : len(mine)]
            self.part.multiply(mine, theirs.T, corner, add=False)
            found[begin : begin + size] = corner.diagonal()
        return found

    def place(self, positive: Tensor, panel: Tensor, begin: int) -> None:
        """Have rows, columns and both passes see one number for each pair, as a margin must."""
        if not self.whole:
            panel.diagonal(begin).copy_(positive[begin : begin + len(panel)])

    def backward(self, panel: Tensor, begin: int) -> None:
        """Add a panel's two products per block, G K and G^T Q, to the tensors that want them."""
        for anchor, key, part in self._parts(panel):
            self._add(anchor, begin, part, self.units[key])
            self._add(key, 0, part.T, _rows_of(self.units[anchor], begin, len(panel)))

    def _parts(self, panel: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """Anchor, key and the columns of the panel of each block."""
        column = 0
        for block in self.blocks:
            width = len(self.units[block.key])
            whole = width == panel.shape[1]
            yield block.anchor, block.key, panel if whole else panel[:, column : column + width]
            column += width

    def _add(self, index: int, begin: int, left: Tensor, right: Tensor) -> None:
        if self.sums[index] is None and self.needs[index] and len(left) == len(self.units[index]):
            whole = torch.empty_like(self.units[index])
            self.part.multiply(left, right, whole, add=False)  # the first writes everything
            self.sums[index] = whole
        elif (total := self.sum_of(index)) is not None:
            self.part.multiply(left, right, _rows_of(total, begin, len(left)), add=True)

    def sum_of(self, index: int) -> Tensor | None:
        """The gradient of a tensor's unit rows so far, if it is wanted."""
        if self.sums[index] is None and self.needs[index]:
            self.sums[index] = torch.zeros_like(self.units[index])
        return self.sums[index]


def _rows_of(x: Tensor, begin: int, count: int) -> Tensor:
    """Rows of a matrix; all of them cost no view, which shows in small batches."""
    return x if count == len(x) else x[begin : begin + count]


class _Hard:
    """Similarities with each row's own hard negatives, and what flows back through them."""

    def __init__(self, query: Tensor, unit: Tensor, products: _Products) -> None:
        self.query, self.unit, self.products = query, unit, products  # (M, D), (M, K, D)

    def similarities(self, begin: int, end: int) -> Tensor:
        """(C, K)."""
        return torch.bmm(self.unit[begin:end], self.query[begin:end, :, None])[..., 0]

    def backward(self, gradient: Tensor, begin: int) -> None:
        """Take in the gradient (C, K) of the logits."""
        end = begin + gradient.shape[0]
        if (total := self.products.sum_of(0)) is not None:
            total[begin:end] += torch.bmm(gradient[:, None], self.unit[begin:end])[:, 0]
        if (total := self.products.sum_of(-1)) is not None:
            mine = total.view(self.unit.shape)[begin:end]
            torch.mul(gradient[..., None], self.query[begin:end, None], out=mine)


def _rows(part: Part, products: _Products, own: _Hard | None, job: Job) -> Tensor:
    losses = []
    for begin, panel in products.panels():
        hard = None if own is None else own.similarities(begin, begin + panel.shape[0])
        losses.append(part.rows(panel, hard, job, begin, products.wanted))
        if products.wanted:
            products.backward(panel, begin)
            if own is not None and hard is not None:
                own.backward(hard, begin)
    return losses[0] if len(losses) == 1 else torch.cat(losses)


def _square(part: Part, products: _Products, own: _Hard | None, job: Job) -> Tensor:
    panels = products.panels()
    if products.whole:
        panels = iter([next(panels)])  # it stays where it is formed
        positive = products.panel.diagonal().clone()
    else:
        positive = products.diagonal()
    state = part.square(job, positive)
    for begin, panel in panels:
        products.place(positive, panel, begin)
        hard = None if own is None else own.similarities(begin, begin + panel.shape[0])
        state.first(panel, hard, begin, products.wanted)
        if own is not None and hard is not None and products.wanted:
            own.backward(hard, begin)
    losses = state.end_of_first()
    if products.wanted:
        # A matrix that fits the workspace is still in it; otherwise its panels are formed again.
        again = iter([(0, products.panel)]) if products.whole else products.panels()
        for begin, similarities in again:
            products.place(positive, similarities, begin)
            state.second(similarities, begin)
            products.backward(similarities, begin)
    return losses
