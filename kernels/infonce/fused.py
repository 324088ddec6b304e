"""The GPU's plan for bf16 and fp16: a product leaves as exponentials, and no pass is left.

Similarities are never stored: a product's epilogue turns them into exponentials above an offset
that is known beforehand, or into gradients where the softmaxes are known. docs/loss.md derives it.
The products are a part (triton_kernels.py); all else is here and in the other files triton_*.py.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from simcse_fast.kernels.infonce import tiles, triton_rows, triton_softmax, workspace
from simcse_fast.kernels.infonce.panels import Result
from simcse_fast.kernels.infonce.partial_sums import folded, joined
from simcse_fast.kernels.infonce.similarities import Problem, Products, Similarities, margin_of
from simcse_fast.kernels.infonce.terms import Job, Segment
from simcse_fast.kernels.infonce.triton_math import LOG2E
from simcse_fast.kernels.infonce.triton_rows import HEADROOM, Numbers, Rows
from simcse_fast.kernels.infonce.triton_softmax import Softmaxes

LOWEST_EXPONENT = -100  # of a logit whose exponential still divides a weight
WAVE = 128  # rows of the tiles in which torch's products are counted when panels are cut


def run(
    products: Products,
    tensors: list[Tensor],  # (rows, D) each, bf16 or fp16, any strides
    hard: Tensor | None,  # (M, K, D)
    job: Job,
    needs: Sequence[bool],  # gradients wanted, like tensors + [hard]
    limit: int,  # bytes of a panel
) -> Result:
    """Losses of all rows and their gradients, which lack the upstream one alone."""
    device = tensors[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        problem = _prepare(tensors, hard, job)
        if narrow := products.narrow(problem, needs):
            return narrow
        plan = _Plan(products, problem, needs, limit)
        single = len(job.terms.blocks) == 1 and not job.terms.symmetric
        # A panel of exponentials needs bf16's range.
        wide = tensors[0].dtype != torch.float16
        if any(needs) and single and wide and not job.terms.label_smoothing:
            return plan.in_one_pass()
        return plan.in_two_passes()


def _prepare(tensors: list[Tensor], hard: Tensor | None, job: Job) -> Problem:
    everything = [*tensors, *([] if hard is None else [hard.flatten(0, 1)])]
    hardest = max(max(s.hardness, s.own_hardness, 0.0) for s in job.segments)
    more = math.log2(job.terms.hard_negative_weight)
    values = torch.empty(2, dtype=torch.float64, device=tensors[0].device)
    numbers = Numbers(values, job.scale, hardest, max(more, 0.0))
    known = False
    if job.terms.normalize:
        rows = [triton_rows.unit_rows(x, None if n else numbers) for n, x in enumerate(everything)]
        if not isinstance(job.scale, Tensor):
            reach = (job.scale + hardest) * LOG2E.value
            offset = max(0.0, math.ceil(reach + numbers.above - HEADROOM))
            known = -reach + min(more, 0.0) - offset > LOWEST_EXPONENT
    else:
        rows = [triton_rows.rows_as_they_are(x) for x in everything]
        _bound(rows, numbers, job)
    flag = None if known else torch.zeros((), dtype=torch.int32, device=values.device)
    return Problem(job, rows[: len(tensors)], rows[-1] if hard is not None else None, values, flag)


def _bound(rows: list[Rows], numbers: Numbers, job: Job) -> None:
    """Scale and offset where rows have any length: no logit exceeds the product of the longest."""
    # Rows that are not finite are for their own results to show, not for everybody's.
    longest = [
        torch.linalg.vector_norm(x.raw, dim=-1, dtype=torch.float64)
        .nan_to_num(0.0, 0.0, 0.0)
        .amax()
        for x in rows
    ]
    anchors = torch.stack([longest[b.anchor] for b in job.terms.blocks]).amax()
    keys = torch.stack(longest).amax()
    reach = (job.scale + numbers.hardest) * (LOG2E.value * 1.001) * anchors * keys
    numbers.values[0] = job.scale
    numbers.values[1] = (reach + (numbers.above - HEADROOM)).ceil().clamp_min(0)


@dataclass(frozen=True)
class _Piece:
    """A segment of the panel: which rows it multiplies, and where its columns stand."""

    anchor: int
    key: int
    first: int  # row of the key tensor
    begin: int  # column of the panel
    width: int  # columns of the panel, with padding behind the block's last segment
    segment: Segment

    def of(self, panel: Tensor) -> Tensor:
        """Its columns of a panel."""
        return panel[:, self.begin : self.begin + self.width]


class _Plan:
    """Panels of one problem, their sums, and what flows back to the tensors."""

    def __init__(
        self, products: Products, problem: Problem, needs: Sequence[bool], limit: int
    ) -> None:
        self.products, self.problem, self.needs, self.limit = products, problem, needs, limit
        self.job, self.rows = problem.job, len(problem.job.labels)
        self.pieces, self.columns = _layout(problem)
        self.smoothing = bool(self.job.terms.label_smoothing)
        self.sums: list[Tensor | None] = [None] * len(problem.rows)
        uses = [i for block in self.job.terms.blocks for i in (block.anchor, block.key)]
        self.shared = {i for i in uses if uses.count(i) > 1}
        first = self.job.terms.blocks[0]
        query, key = problem.rows[first.anchor].unit, problem.rows[first.key].unit
        self.positive = triton_rows.pairs(query, key, self.rows, self.job.labels)
        unit = problem.rows[0].unit
        hard = problem.hard
        self.negatives = 0 if hard is None else len(hard.raw) // self.rows
        self.hard = self.of_hard = None
        if hard is not None:
            count = len(hard.raw)
            self.hard = triton_rows.pairs(query, hard.unit, count, None, group=self.negatives)
            self.of_hard = self.hard.new_empty(self.rows, self.negatives)
        self.softmax = triton_softmax.new_softmaxes(unit, self.rows)

    def in_one_pass(self) -> Result:
        """One direction: exponentials, their sums, and two products of each panel."""
        unit = self.problem.rows[0].unit
        # Beside the panel stand the sums over tiles, in fp32 and as they are folded in fp64.
        step = self._step(self.columns * unit.element_size() + 12 * self.columns // 256)
        with workspace.borrowed("panel", unit, step * self.columns) as memory:
            whole = memory[: step * self.columns].view(step, self.columns)
            (block,) = self.job.terms.blocks
            for begin, count in self._panels(step):
                panel = whole[:count]
                weighed = self._exponentials(panel, begin, online=False)
                if self.problem.flag is not None:
                    weighed = self._exponentials(panel, begin, online=True, weighed=weighed)
                self._add(block.anchor, begin, panel, self.problem.rows[block.key].unit)
                self._add(block.key, 0, panel.T, weighed, first=begin == 0)
        return self._result(self.softmax.losses, after=self.softmax.after, gain=None)

    def in_two_passes(self) -> Result:
        """Sums of all rows (and columns) first; then the logits' gradients, if they are wanted."""
        column = self._softmaxes(online=False)
        if self.problem.flag is not None:
            column = self._softmaxes(online=True, column=column)
        losses = self.softmax.losses
        own = self.softmax.state[3]
        if column is not None:
            losses, own = (losses + column.losses) / 2, own + column.state[3]
        gain = None
        if any(self.needs):
            unit = self.problem.rows[0].unit
            if unit.dtype == torch.float16:
                smoothing = self.job.terms.label_smoothing
                weight = 1.0 if self.job.weight is None else self.job.weight.abs()
                # The positive's is the largest of a row, but for what smoothing takes from it.
                gain = triton_softmax.gain_of(own.abs() + 2 * smoothing * weight)
            step = self._step(self.columns * unit.element_size())
            with workspace.borrowed("panel", unit, step * self.columns) as memory:
                whole = memory[: step * self.columns].view(step, self.columns)
                for begin, count in self._panels(step):
                    panel = whole[:count]
                    flag = self.problem.flag
                    for online in (False,) if flag is None else (False, True):
                        self._gradients(panel, begin, column, own, gain, online=online)
                    self._backward(panel, begin)
        return self._result(losses, after=None, gain=gain)

    def _exponentials(
        self, panel: Tensor, begin: int, *, online: bool, weighed: Tensor | None = None
    ) -> Tensor:
        """Fill a panel; online, once more with gradients if an offset did not suit.

        Returns the queries as the keys' gradient needs them, (C, depth).
        """
        sums, _ = self._fold(panel, begin, len(panel), online=online)
        if weighed is None:  # the sums over tiles are gone by now
            unit = self.problem.rows[0].unit
            weighed = unit.new_empty(len(panel), unit.shape[1])
        triton_softmax.softmax(
            *(self.problem, self.positive, sums, self.softmax, begin, self.hard, self.of_hard),
            online=online,
            panel=(panel, weighed),
        )
        if online:
            self._gradients(panel, begin, None, self.softmax.state[3], None, online=True)
        return weighed

    def _softmaxes(self, *, online: bool, column: Softmaxes | None = None) -> Softmaxes | None:
        """Softmaxes of all rows, and those of the columns where the loss is symmetric."""
        by_column = None
        # fp32 sums of rows and columns over tiles of 64 and more; folding them needs a few copies.
        planes = 4 if self.smoothing else 1 if self.problem.flag is None else 2
        directions = 2 if self.job.terms.symmetric else 1
        step = self._step(4 * 4 * planes * directions * self.columns // triton_rows.PAD)
        for begin, count in self._panels(step):
            by_row, more = self._fold(None, begin, count, online=online)
            triton_softmax.softmax(
                *(self.problem, self.positive, by_row, self.softmax, begin),
                *(self.hard, self.of_hard),
                online=online,
            )
            if more is not None:
                by_column = more if by_column is None else joined(by_column, more, online)
        if by_column is None:
            return None
        if column is None:
            column = triton_softmax.new_softmaxes(by_column, self.rows)
        triton_softmax.softmax(
            *(self.problem, self.positive, by_column, column, 0, None, None), online=online
        )
        return column

    def _fold(
        self, panel: Tensor | None, begin: int, count: int, *, online: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Sums over a panel's rows, (4, count), and columns, (4, N), in fp64 and in order."""
        parts, by_column = [], None
        for piece in self.pieces:
            by_row, by_column = self.products.sums(
                self._similarities(piece, begin, count),
                None if panel is None or online else piece.of(panel),
                columns=self.job.terms.symmetric,
                online=online,
                smoothing=self.smoothing,
                flag=self.problem.flag if online else None,
            )
            parts.append(by_row)
        return folded(parts, online), None if by_column is None else folded([by_column], online)

    def _gradients(
        self,
        panel: Tensor,
        begin: int,
        column: Softmaxes | None,
        own: Tensor,  # (M,)
        gain: Tensor | None,
        *,
        online: bool,
    ) -> None:
        for piece in self.pieces:
            self.products.gradients(
                self._similarities(piece, begin, len(panel)),
                piece.of(panel),
                self.softmax.state[:, begin:],
                None if column is None else column.state,
                own[begin:],
                gain=gain,
                online=online,
                smoothing=self.smoothing,
                flag=self.problem.flag,
                expected=int(online),
            )

    def _similarities(self, piece: _Piece, begin: int, count: int) -> Similarities:
        job, rows = self.job, slice(begin, begin + count)
        margin = margin_of(job.terms)
        return Similarities(
            query=self.problem.rows[piece.anchor].unit[rows],
            key=self.problem.rows[piece.key].unit[piece.first : piece.first + piece.segment.width],
            labels=job.labels[rows],
            numbers=self.problem.numbers,
            segment=piece.segment,
            margin=0.0 if margin is None else margin,
            positive=None if margin is None else self.positive[rows],
            opposite=None if margin is None or not job.terms.symmetric else self.positive,
            query_ids=None if job.query_ids is None else job.query_ids[rows],
            key_ids=job.key_ids,
        )

    def _panels(self, step: int) -> Iterator[tuple[int, int]]:
        """First row and number of rows of each panel."""
        for begin in range(0, self.rows, step):
            yield begin, min(step, self.rows - begin)

    def _step(self, row_bytes: int) -> int:
        """Rows of a panel: all, or as many as fit the limit, in whole waves of the processors."""
        fit = max(1, self.limit // row_bytes)
        if fit >= self.rows:
            return self.rows
        unit = self.problem.rows[0].unit
        wave = WAVE * tiles.processors(unit.device) // -(-unit.shape[1] // 256)
        for whole in (wave, WAVE):
            if fit >= whole:
                return fit // whole * whole
        return fit

    def _backward(self, panel: Tensor, begin: int) -> None:
        """Take a panel of gradients back to both tensors of each block."""
        column = 0
        for block in self.job.terms.blocks:
            anchor, key = self.problem.rows[block.anchor].unit, self.problem.rows[block.key].unit
            part = panel[:, column : column + len(key)]
            self._add(block.anchor, begin, part, key)
            self._add(block.key, 0, part.T, anchor[begin : begin + len(panel)], first=begin == 0)
            column += len(key)

    def _add(
        self, index: int, begin: int, left: Tensor, right: Tensor, *, first: bool = True
    ) -> None:
        """Add a product to a tensor's rows from `begin` on, of which it is the first or not."""
        if not self.needs[index]:
            return
        if (total := self.sums[index]) is None:
            make = torch.zeros if index in self.shared else torch.empty
            unit = self.problem.rows[index].unit
            total = self.sums[index] = make(unit.shape, dtype=torch.float32, device=unit.device)
        add = index in self.shared or not first
        multiply(left, right, total[begin : begin + len(left)], add=add)

    def _result(self, losses: Tensor, *, after: Tensor | None, gain: Tensor | None) -> Result:
        problem, job = self.problem, self.job
        first = job.terms.blocks[0].anchor
        everything, sums = [*problem.rows], [*self.sums]
        if problem.hard is not None and self.of_hard is not None:
            everything.append(problem.hard)
            of_hard = None
            if self.needs[-1]:
                of_hard = torch.empty_like(problem.hard.unit, dtype=torch.float32)
            if any(self.needs):
                query = problem.rows[first].unit
                triton_softmax.hard_backward(
                    *(self.of_hard, query, problem.hard.unit, self.sums[first], of_hard),
                    *(after, gain),
                )
            sums.append(of_hard)
            after = None
        gradients: list[Tensor | None] = []
        of_scale = None
        for index, (rows, total) in enumerate(zip(everything, sums, strict=True)):
            if total is None:
                gradients.append(None)
                continue
            gradient, along = triton_rows.finish(
                rows,
                total,
                problem.numbers,
                uniform=job.uniform_weight if job.weight is None else 1.0,
                after=after if index == first else None,
                gain=gain,
                of_scale=index == 0 and isinstance(job.scale, Tensor),
            )
            gradients.append(gradient)
            of_scale = along if along is not None else of_scale
        return Result(losses, gradients, of_scale)


def _layout(problem: Problem) -> tuple[list[_Piece], int]:
    """The segments side by side in a panel, each block padded; and the panel's columns."""
    pieces, begin, segments = [], 0, iter(problem.job.segments)
    for block in problem.job.terms.blocks:
        keys, space = len(problem.rows[block.key].raw), len(problem.rows[block.key].unit)
        for first in range(0, keys, block.period):
            last = first + block.period >= keys
            width = space - first if last else block.period
            pieces.append(
                _Piece(block.anchor, block.key, first, begin + first, width, next(segments))
            )
        begin += space
    return pieces, begin


def multiply(left: Tensor, right: Tensor, out: Tensor, *, add: bool) -> None:
    """Write or add left @ right into fp32 rows of out, accumulated in fp32."""
    if left.is_cuda and add:
        torch.addmm(out, left, right, out_dtype=out.dtype, out=out)
    elif left.is_cuda:
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:  # interpreted: torch has no product of mixed types on a CPU
        found = left.float() @ right.float()
        out.copy_(out + found if add else found)
