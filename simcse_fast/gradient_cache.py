"""Gradient caching: the exact gradient of a batch too large to embed at once.

The loss needs the embeddings of all rows, but only one mini-batch's activations at a time: embed
without graphs, let the loss give the embeddings their gradients, embed again with graphs and push
these gradients through. Graphs that fit the memory at hand are kept and save the second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from simcse_fast.memory import free_memory
from simcse_fast.minibatches import Minibatch, Pool, device_of, pools, real_tokens, rows_of
from simcse_fast.replay import Autocast, RandomState, parallel_of, synchronised
from simcse_fast.saved_tensors import Saved, Shelf, Slabs

if TYPE_CHECKING:
    from simcse_fast.minibatches import Features

Encode = Callable[[Any], Tensor]
TOKENS = {"cpu": 1024}  # a mini-batch that stays in the caches
TOKENS_ELSEWHERE = 16384
STATES = (
    3  # gradients, and what Adam keeps, per byte of parameters: not there before the first step
)
HOLES = 10  # of the room, one part in so many may be lost between what is kept


@dataclass
class Statistics:
    """What embedding the last batch took."""

    real_tokens: int = 0
    padded_tokens: int = 0
    mini_batches: int = 0
    kept: int = 0  # mini-batches whose graphs were kept
    kept_bytes: int = 0


class GradientCache:
    """Embeds batches of any size in bounded memory, with the gradient of the whole batch.

    Rows are sorted by length across the batch and embedded in mini-batches of like length; columns
    with like features share mini-batches. The graphs of as many mini-batches as memory allows are
    kept, the rest are embedded again in the backward pass, with the same random numbers.

    Args:
        encode: takes the features of some rows, returns their (rows, D) embeddings; or one such
            callable a column, for several towers.
        model: the module whose DistributedDataParallel synchronisation is minded and whose
            gradients need room; by default `encode`, where it is a module.
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
        self.bytes_per_token = 0.0  # of a graph, the most seen
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
        groups = pools(columns, towers)
        run = _Run(self, columns, [towers[numbers[0]] for numbers in groups], groups)
        return run.embed()

    def _towers(self, count: int) -> list[Encode]:
        if not count:
            raise ValueError("columns: expected at least one.")
        if callable(self.encode):
            return [self.encode] * count
        if len(self.encode) != count:
            raise ValueError(f"columns: expected {len(self.encode)}, one a tower, got {count}.")
        return list(self.encode)

    def room(self, device: torch.device) -> int:
        """Bytes that embedding may take; found once, so that steps do not differ."""
        if self.budget is None and self.memory_limit is not None:
            self.budget = self.memory_limit
        if self.budget is None:
            model = self.model if self.model is not None else self.encode
            parameters = model.parameters() if isinstance(model, nn.Module) else ()
            coming = sum(p.nbytes for p in parameters if p.requires_grad and p.grad is None)
            free = free_memory(device) if self.memory_share else 0
            self.budget = int(max(free - STATES * coming, 0) * self.memory_share)
        return self.budget


class Embedded:
    """The embeddings of a batch, and the way back to the encoder."""

    def __init__(self, columns: list[Tensor], run: _Run) -> None:
        self.columns = columns  # (rows, D) each, without a graph
        self._run = run

    def backward(self, gradients: Sequence[Tensor | None]) -> None:
        """Add to the parameters' gradients what these gradients of the embeddings say."""
        self._run.backward(gradients)


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


@dataclass
class _Part:
    """A mini-batch on its way."""

    group: int
    batch: Minibatch
    random: RandomState | None = None
    graph: Tensor | None = field(default=None, repr=False)  # embeddings with their graph, if kept


class _Run:
    """One batch: the forward pass over its mini-batches, and the backward pass over the same."""

    def __init__(
        self,
        cache: GradientCache,
        columns: Sequence[Features],
        towers: list[Encode],
        groups: list[list[int]],
    ) -> None:
        self.cache, self.towers, self.groups = cache, towers, groups
        self.counts = [rows_of(column) for column in columns]
        if 0 in self.counts:
            raise ValueError(f"columns: column {self.counts.index(0)} has no rows.")
        self.pools = [Pool([columns[n] for n in numbers]) for numbers in groups]
        self.device = device_of(columns)
        self.autocast = Autocast(self.device)
        self.grad = torch.is_grad_enabled()
        self.room = cache.room(self.device) if self.grad else 0
        # A device's allocator leaves no holes behind.
        self.shelf = Shelf(cache.slabs) if self.device.type == "cpu" else None
        self.frozen: set[int] = set()  # groups whose embeddings depend on no parameter
        modules = towers if cache.model is None else [cache.model] * len(groups)
        self.parallel = [parallel_of(module) for module in modules]
        self.parts = self._cut()
        self.largest = max(part.batch.padded_tokens for part in self.parts)
        # Of each DistributedDataParallel module (and of the rest, under None).
        self.first = {self._module(part): part for part in reversed(self.parts)}
        self.last = {self._module(part): part for part in self.parts}
        self.statistics = cache.statistics = Statistics(
            sum(real_tokens(column) for column in columns),
            sum(part.batch.padded_tokens for part in self.parts),
            len(self.parts),
        )

    def _cut(self) -> list[_Part]:
        """Mini-batches by group, the longest first: what needs most memory fails at once."""
        tokens = self.cache.mini_batch_tokens
        if tokens is None and any(any(pool.widths) for pool in self.pools):
            tokens = TOKENS.get(self.device.type, TOKENS_ELSEWHERE)
        return [
            _Part(number, batch)
            for number, pool in enumerate(self.pools)
            for batch in pool.minibatches(tokens, self.cache.mini_batch_size)
        ]

    def _module(self, part: _Part) -> int:
        return id(self.parallel[part.group])

    def embed(self) -> Embedded:
        found: list[Tensor | None] = [None] * len(self.pools)
        for part in self._shown(self.parts, "embedding"):
            if self.grad:
                part.random = RandomState(self.device)
            embeddings = self._first(part)
            whole = found[part.group]
            if whole is None:
                rows = len(self.pools[part.group].lengths)
                found[part.group] = whole = embeddings.new_empty(rows, embeddings.shape[1])
            whole[part.batch.rows.to(whole.device)] = embeddings
        return Embedded(self._by_column([x for x in found if x is not None]), self)

    def _first(self, part: _Part) -> Tensor:
        """The embeddings without a graph; the part keeps its graph where there is room."""
        try:
            return self._keep(part) if self._may_keep(part) else self._encode(part, grad=False)
        except torch.OutOfMemoryError:
            if not self.room:
                raise
        self._make_room()
        with part.random or nullcontext():
            return self._encode(part, grad=False)

    def _may_keep(self, part: _Part) -> bool:
        parallel = self.parallel[part.group]
        if not self.grad or part.group in self.frozen:
            return False
        if parallel is not None:
            # Its first pass with a graph may talk to other processes, so it stands first on all.
            if part is self.first[id(parallel)]:
                return True
            # Its last is the one that synchronises, so its graph is made in the backward pass.
            if part is self.last[id(parallel)] or parallel.static_graph:
                return False
        return self._fits(self.cache.bytes_per_token * part.batch.padded_tokens)

    def _fits(self, size: float) -> bool:
        """Whether a graph of so many bytes fits beside those kept, and beside one more at work."""
        work = self.cache.bytes_per_token * self.largest if len(self.parts) > 1 else 0
        return self.room > 0 and self.statistics.kept_bytes + size + work <= self.room

    def _keep(self, part: _Part) -> Tensor:
        parallel, module = self.parallel[part.group], self._module(part)
        alone = self.first[module] is self.last[module]
        with Saved(self.shelf) as saved, synchronised(parallel, alone):
            embeddings = self._encode(part, grad=True)
        if not embeddings.requires_grad:
            self.frozen.add(part.group)
            return embeddings
        per_token = saved.total / part.batch.padded_tokens
        self.cache.bytes_per_token = max(self.cache.bytes_per_token, per_token)
        static = parallel is not None and parallel.static_graph
        if self._fits(saved.total) and not static:
            part.graph = embeddings
            self.statistics.kept += 1
            self.statistics.kept_bytes += saved.total
        found = embeddings.detach()
        if self.shelf is not None:
            del embeddings
            self.cache.slabs.tidy(self.room // HOLES)
        return found

    def _make_room(self) -> None:
        """The device said no: let go of all graphs, and keep half as much from now on."""
        for part in self.parts:
            part.graph = None
        self.clear()
        self.room = self.cache.budget = self.room // 2
        self.statistics.kept = self.statistics.kept_bytes = 0
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def backward(self, gradients: Sequence[Tensor | None]) -> None:
        """Graphs that were kept go first in their group, and their memory with them."""
        pooled = [self._pooled(gradients, numbers) for numbers in self.groups]
        parts = sorted(self.parts, key=lambda part: (part.group, part.graph is None))
        done: dict[int, _Part] = {}
        for part in self._shown(parts, "backward"):
            module = self._module(part)
            ending = part is self.last[module]
            with synchronised(self.parallel[part.group], ending):
                reached = self._backward(part, pooled[part.group])
            if reached:
                done[module] = part
            elif ending and self.parallel[part.group] is not None and module in done:
                # Nothing flows back from the mini-batch that should have synchronised.
                again = done[module]
                like = pooled[again.group]
                self._backward(again, None if like is None else torch.zeros_like(like))
        self.clear()

    def clear(self) -> None:
        """Let go of the memory of graphs that are gone."""
        if self.shelf is not None:
            self.shelf.clear()

    def __del__(self) -> None:
        """A batch that is dropped before its backward pass leaves its memory to the next."""
        self.parts.clear()
        self.clear()

    def _backward(self, part: _Part, gradient: Tensor | None) -> bool:
        """Whether gradients reached the encoder."""
        embeddings, part.graph = part.graph, None
        if gradient is None or part.group in self.frozen:
            return False
        if embeddings is None:
            with part.random or nullcontext():
                embeddings = self._encode(part, grad=True)
        if not embeddings.requires_grad:
            self.frozen.add(part.group)
            return False
        mine = gradient[part.batch.rows.to(gradient.device)]
        torch.autograd.backward(embeddings, mine.to(embeddings.dtype))
        return True

    def _encode(self, part: _Part, *, grad: bool) -> Tensor:
        features = self.pools[part.group].select(part.batch)
        with self.autocast(grad=grad):
            embeddings = self.towers[part.group](features)
        rows = len(part.batch.rows)
        shape = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else None
        if shape is None or len(shape) != 2 or shape[0] != rows:  # noqa: PLR2004
            got = type(embeddings).__name__ if shape is None else f"shape {shape}"
            raise ValueError(f"encode: expected embeddings of shape ({rows}, D), got {got}.")
        return embeddings

    def _by_column(self, found: list[Tensor]) -> list[Tensor]:
        columns = [found[0]] * len(self.counts)
        for whole, numbers in zip(found, self.groups, strict=True):
            pieces = whole.split([self.counts[n] for n in numbers])
            for number, piece in zip(numbers, pieces, strict=True):
                columns[number] = piece
        return columns

    def _pooled(self, gradients: Sequence[Tensor | None], numbers: list[int]) -> Tensor | None:
        """The gradients of a pool's columns, end to end."""
        mine = [(gradients[n], self.counts[n]) for n in numbers]
        like = next((x for x, _ in mine if x is not None), None)
        if like is None:
            return None
        width = like.shape[1]
        return torch.cat([like.new_zeros(rows, width) if x is None else x for x, rows in mine])

    def _shown(self, parts: list[_Part], what: str) -> Iterator[_Part]:
        if not self.cache.progress:
            return iter(parts)
        from tqdm import tqdm  # noqa: PLC0415 - only for those who want to see it

        return iter(tqdm(parts, what, unit="mini-batch", leave=False))


def _check_towers(encode: object) -> None:
    towers = encode if isinstance(encode, (list, tuple)) else [encode]
    if not towers or not all(callable(tower) for tower in towers):
        raise TypeError(f"encode: expected a callable, or one a column, got {encode!r}.")


def _check_whole(name: str, value: int | None, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number or None, got {value!r}.")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}.")
