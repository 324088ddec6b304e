"""Gradient caching: the exact gradient of a batch too large to embed at once.

The loss needs the embeddings of all rows, but only one mini-batch's activations at a time: embed
without graphs, let the loss give the embeddings their gradients, embed again with graphs and push
these gradients through. Graphs that fit the memory at hand are kept and save the second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from simcse_fast.batch_run import BatchRun, Embedded, Statistics
from simcse_fast.memory import free_memory
from simcse_fast.minibatches import device_of, pools, requires_grad, rows_of
from simcse_fast.saved_tensors import Slabs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from simcse_fast.minibatches import Features

__all__ = ["Embedded", "GradientCache", "Statistics"]

Encode = Callable[[Any], Tensor]
STATES = 3  # gradients and what Adam keeps, a byte of parameters: not there before the first step


class GradientCache:
    """Embeds batches of any size in bounded memory, with the gradient of the whole batch.

    Rows are sorted by length across the batch and embedded in mini-batches of like length; columns
    with like features share mini-batches. The graphs of as many mini-batches as memory allows are
    kept, the rest are embedded again in the backward pass, with the same random numbers.

    Args:
        encode: takes the features of some rows, returns their (rows, D) embeddings; or one such
            callable a column, for several towers.
        model: the module whose DistributedDataParallel synchronisation is minded and whose
            gradients need room, and on whose device it runs; by default `encode`, where that is a
            module.
        mini_batch_tokens: padded tokens of a mini-batch; by default 1,024 on a CPU, 16,384
            elsewhere. Rows that are no token sequences count one each.
        mini_batch_size: at most so many rows in a mini-batch.
        memory_share: share of the memory that is free at the first batch that embedding may take:
            graphs that are kept, and one mini-batch at work. 0 keeps none.
        memory_limit: the same in bytes, instead of a share.
        progress: show a bar over the mini-batches.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of its range.

    Reference: Gao et al. 2021, arXiv 2101.06983.

    Example:
        >>> encoder = torch.nn.Linear(8, 4)
        >>> cache = GradientCache(encoder, mini_batch_size=16)
        >>> query, key = cache(torch.randn(64, 8), torch.randn(64, 8))
        >>> info_nce(query, key).backward()
        >>> encoder.weight.grad.shape
        torch.Size([4, 8])
    """

    def __init__(
        self,
        encode: Encode | Sequence[Encode],
        *,
        model: nn.Module | None = None,
        mini_batch_tokens: int | None = None,
        mini_batch_size: int | None = None,
        memory_share: float = 0.5,
        memory_limit: int | None = None,
        progress: bool = False,
    ) -> None:
        _check_towers(encode)
        _check_whole("mini_batch_tokens", mini_batch_tokens, 1)
        _check_whole("mini_batch_size", mini_batch_size, 1)
        _check_whole("memory_limit", memory_limit, 0)
        if isinstance(memory_share, bool) or not isinstance(memory_share, (int, float)):
            raise TypeError(f"memory_share: expected a number, got {memory_share!r}.")
        if not 0 <= memory_share <= 1:
            raise ValueError(f"memory_share: expected a share in [0, 1], got {memory_share}.")
        self.encode, self.model = encode, model
        self.mini_batch_tokens, self.mini_batch_size = mini_batch_tokens, mini_batch_size
        self.memory_share, self.memory_limit = memory_share, memory_limit
        self.progress = progress
        self.statistics = Statistics()
        self.budget: int | None = None  # bytes, found at the first batch
        self.bytes_per_token: dict[int, float] = {}  # of a graph, the most seen, by column
        self.slabs = Slabs()

    def __call__(self, *columns: Features) -> tuple[Tensor, ...]:
        """Embed the rows of all columns.

        Args:
            columns: mappings of names to tensors with one row a sample, as tokenizers return them,
                or tensors with one row a sample; any number of columns.

        Returns:
            (rows, D) embeddings of each column. Their gradient reaches the encoder's parameters by
            `backward()`, not by `torch.autograd.grad`.

        Raises:
            TypeError, ValueError: a column is empty or not as described, or `encode` returned
                anything but one embedding a row.
        """
        embedded = self.embed(columns)
        if not torch.is_grad_enabled():
            return tuple(embedded.columns)
        return _Embed.apply(embedded, torch.zeros((), requires_grad=True))  # type: ignore[no-any-return, no-untyped-call]

    def embed(self, columns: Sequence[Features]) -> Embedded:
        """The same, for a caller that carries the gradients back himself."""
        towers = self._towers(len(columns))
        counts = [_checked(number, column) for number, column in enumerate(columns)]
        groups = pools(columns, towers)
        run = BatchRun(self, columns, counts, [towers[numbers[0]] for numbers in groups], groups)
        return run.embed()

    def _towers(self, count: int) -> list[Encode]:
        if not count:
            raise ValueError("columns: expected at least one.")
        if callable(self.encode):
            return [self.encode] * count
        if len(self.encode) != count:
            raise ValueError(f"columns: expected {len(self.encode)}, one a tower, got {count}.")
        return list(self.encode)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of the encoder, as far as its modules are known."""
        towers = [self.encode] if callable(self.encode) else self.encode
        for module in towers if self.model is None else [self.model]:
            if isinstance(module, nn.Module):
                yield from module.parameters()

    def device(self, columns: Sequence[Features]) -> torch.device:
        """Where the encoder computes: it may move its features there itself."""
        parameter = next(self.parameters(), None)
        return device_of(columns) if parameter is None else parameter.device

    def room(self, device: torch.device) -> int:
        """Bytes that embedding may take; found once, so that steps do not differ."""
        if self.budget is None and self.memory_limit is not None:
            self.budget = self.memory_limit
        if self.budget is None:
            waiting = {p for p in self.parameters() if p.requires_grad and p.grad is None}
            coming = sum(p.nbytes for p in waiting)
            free = free_memory(device) if self.memory_share else 0
            self.budget = int(max(free - STATES * coming, 0) * self.memory_share)
        return self.budget


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embedded: Embedded, trigger: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG004
        ctx.embedded = embedded
        ctx.set_materialize_grads(False)
        return tuple(x.detach() for x in embedded.columns)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None]:
        ctx.embedded.backward(gradients)
        return None, None


def _check_towers(encode: object) -> None:
    towers = encode if isinstance(encode, (list, tuple)) else [encode]
    if not towers or not all(callable(tower) for tower in towers):
        raise TypeError(f"encode: expected a callable, or one a column, got {encode!r}.")


def _checked(number: int, column: Features) -> int:
    """Rows of a column that can be embedded."""
    rows = rows_of(column)
    if not rows:
        raise ValueError(f"columns: column {number} has no rows.")
    if torch.is_grad_enabled() and requires_grad(column):
        raise ValueError(
            f"columns: column {number} requires a gradient, but gradients reach the encoder's "
            "parameters only; detach it, or make what computes it part of encode."
        )
    return rows


def _check_whole(name: str, value: int | None, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number or None, got {value!r}.")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}.")
