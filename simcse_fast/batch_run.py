"""One batch on its way through an encoder: embedded in mini-batches, and back over the same."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from simcse_fast.memory import keep_freed_memory
from simcse_fast.minibatches import Minibatch, Pool, apart, real_tokens, together
from simcse_fast.replay import Autocast, RandomState, finish, learns, parallel_of, synchronised
from simcse_fast.saved_tensors import Saved, Shelf
from simcse_fast.sparse_tables import make_dense, sparse, tables_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from simcse_fast.gradient_cache import Encode, GradientCache
    from simcse_fast.minibatches import Features

TOKENS = {"cpu": 1024}  # a mini-batch that stays in the caches
TOKENS_ELSEWHERE = 16384
FULL = 0.75  # of its tokens a mini-batch holds on a CPU, at least
HOLES = 10  # of the room, one part in so many may be lost between what is kept


@dataclass
class Statistics:
    """What embedding the last batch took."""

    real_tokens: int = 0
    padded_tokens: int = 0
    mini_batches: int = 0
    kept: int = 0  # mini-batches whose graphs were kept
    kept_bytes: int = 0


@dataclass
class Part:
    """A mini-batch on its way."""

    group: int
    batch: Minibatch
    random: RandomState | None = None
    graph: Tensor | None = field(default=None, repr=False)  # embeddings with their graph, if kept


class BatchRun:
    """One batch: the forward pass over its mini-batches, and the backward pass over the same."""

    def __init__(
        self,
        cache: GradientCache,
        columns: Sequence[Features],
        counts: list[int],
        towers: list[Encode],
        groups: list[list[int]],
    ) -> None:
        self.cache, self.counts, self.towers, self.groups = cache, counts, towers, groups
        self.parts: list[Part] = []
        # A device's allocator leaves no holes behind.
        self.device = cache.device(columns)
        self.shelf = Shelf(cache.slabs) if self.device.type == "cpu" else None
        if self.device.type == "cpu":
            keep_freed_memory()
        self.pools = [Pool([columns[n] for n in numbers]) for numbers in groups]
        self.autocast = Autocast(self.device)
        self.grad = torch.is_grad_enabled()
        self.room = cache.room(self.device) if self.grad else 0
        self.frozen: set[int] = set()  # groups whose embeddings depend on no parameter
        self.closed: set[int] = set()  # groups that keep no more graphs
        modules = towers if cache.model is None else [cache.model] * len(groups)
        self.parallel = [parallel_of(module) for module in modules]
        self.parts = self._cut()
        self.largest = [
            max(part.batch.padded_tokens for part in self.parts if part.group == number)
            for number in range(len(groups))
        ]
        several = self.grad and len(self.parts) > 1
        self.tables = [
            tables_of(module, most, self.device) if several else []
            for module, most in zip(modules, self.largest, strict=True)
        ]
        # Of each DistributedDataParallel module (and of the rest, under None).
        self.first = {self._module(part): part for part in reversed(self.parts)}
        self.last = {self._module(part): part for part in self.parts}
        self.statistics = cache.statistics = Statistics(
            sum(real_tokens(column) for column in columns),
            sum(part.batch.padded_tokens for part in self.parts),
            len(self.parts),
        )

    def _cut(self) -> list[Part]:
        """Mini-batches by group, the longest first: what needs most memory fails at once."""
        tokens = self.cache.mini_batch_tokens
        if tokens is None and any(any(pool.widths) for pool in self.pools):
            tokens = TOKENS.get(self.device.type, TOKENS_ELSEWHERE)
        full = FULL if self.device.type == "cpu" else 1.0  # of a heap, not of a device's allocator
        return [
            Part(number, batch)
            for number, pool in enumerate(self.pools)
            for batch in pool.minibatches(tokens, self.cache.mini_batch_size, full)
        ]

    def _module(self, part: Part) -> int:
        return id(self.parallel[part.group])

    def embed(self) -> Embedded:
        """Forward, the parts of a group one after the other."""
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
        self.versions = self._versions()
        done = [x for x in found if x is not None]
        return Embedded(apart(done, self.groups, self.counts), self)

    def _first(self, part: Part) -> Tensor:
        """The embeddings without a graph; the part keeps its graph where there is room."""
        parallel, module = self.parallel[part.group], self._module(part)
        alone = self.first[module] is self.last[module]
        try:
            with synchronised(parallel, alone):
                return self._keep(part) if self._may_keep(part) else self._encode(part, grad=False)
        except torch.OutOfMemoryError:
            if not self.room or part.random is None:
                raise
        self._make_room()
        part.random.restore()
        return self._encode(part, grad=False)

    def _may_keep(self, part: Part) -> bool:
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
        return self._fits(part, self._expected(part.group, part.batch.padded_tokens))

    def _expected(self, group: int, tokens: int) -> float:
        """Bytes of a graph of so many tokens, going by those seen; 0 before the first."""
        return self.cache.bytes_per_token.get(self.groups[group][0], 0.0) * tokens

    def _fits(self, part: Part, size: float) -> bool:
        """Whether a graph of so many bytes fits beside those kept, and beside one more at work.

        Once one does not, none of its group does: graphs that are kept go first in the backward
        pass, and so the order of its sums is the same whatever memory there is.
        """
        work = self._work() if len(self.parts) > 1 else 0
        if not self.room or self.statistics.kept_bytes + size + work > self.room:
            self.closed.add(part.group)
        return part.group not in self.closed

    def _work(self) -> float:
        """Bytes of the graph of the mini-batch at work, at most."""
        return max(itertools.starmap(self._expected, enumerate(self.largest)))

    def _keep(self, part: Part) -> Tensor:
        with Saved(self.shelf) as saved:
            embeddings = self._encode(part, grad=True)
        if not embeddings.requires_grad:
            self.frozen.add(part.group)
            return embeddings
        column, per_token = self.groups[part.group][0], self.cache.bytes_per_token
        seen = saved.total / part.batch.padded_tokens
        per_token[column] = max(per_token.get(column, 0.0), seen)
        parallel = self.parallel[part.group]
        static = parallel is not None and parallel.static_graph
        if not static and self._fits(part, saved.total):
            part.graph = embeddings
            self.statistics.kept += 1
            self.statistics.kept_bytes += saved.total
        found = embeddings.detach()
        if self.shelf is not None:
            del embeddings
            if not self.statistics.kept:
                self.clear()
            self._tidy()
        return found

    def _tidy(self) -> None:
        """Beside graphs that are kept, what the heap loses between them counts too."""
        if self.shelf is not None and any(part.graph is not None for part in self.parts):
            self.cache.slabs.tidy(int(self._work()) + self.room // HOLES)

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
        """In the order of the forward pass: kept graphs go first, and their memory with them."""
        pooled = [
            together([gradients[n] for n in numbers], [self.counts[n] for n in numbers])
            for numbers in self.groups
        ]
        if self.versions != self._versions():
            raise RuntimeError(
                "backward: parameters of the encoder were changed in place since the batch was "
                "embedded; step the optimizer after the backward passes."
            )
        try:
            self._back(pooled)
        finally:
            for wrapper in self.parallel:
                finish(wrapper)
            self.clear()

    def _back(self, pooled: list[Tensor | None]) -> None:
        done: dict[int, Part] = {}
        for part in self._shown(self.parts, "backward"):
            parallel, module = self.parallel[part.group], self._module(part)
            ending, learning = part is self.last[module], learns(parallel)
            with synchronised(parallel, ending):
                reached = self._backward(part, pooled[part.group])
            self._tidy()
            if reached:
                done[module] = part
            if ending and parallel and module in done and (learning or not reached):
                # Nothing flows back from the mini-batch that should have synchronised; or it was
                # the first as well, of a static graph, where others synchronise twice.
                again = done[module]
                like = pooled[again.group]
                self._backward(again, None if like is None else torch.zeros_like(like))

    def _versions(self) -> list[int]:
        """Of the parameters: how often each was changed in place."""
        return [p._version for p in self.cache.parameters()]  # noqa: SLF001

    def clear(self) -> None:
        """Let go of the memory of graphs that are gone."""
        if self.shelf is not None:
            self.shelf.clear()

    def __del__(self) -> None:
        """A batch that is dropped before its backward pass leaves its memory to the next."""
        self.parts.clear()
        self.clear()

    def _backward(self, part: Part, gradient: Tensor | None) -> bool:
        """Whether gradients reached the encoder."""
        embeddings, part.graph = part.graph, None
        if gradient is None or part.group in self.frozen:
            return False
        if embeddings is None:
            embeddings = self._again(part)
        if not embeddings.requires_grad:
            self.frozen.add(part.group)
            return False
        mine = gradient[part.batch.rows.to(gradient.device)]
        try:
            torch.autograd.backward(embeddings, mine.to(embeddings.dtype))
        finally:
            make_dense(self.tables[part.group])
        return True

    def _again(self, part: Part) -> Tensor:
        """The embeddings with a graph, drawn like the first time."""
        try:
            with part.random or nullcontext():
                return self._encode(part, grad=True)
        except torch.OutOfMemoryError:
            if all(other.graph is None for other in self.parts):
                raise
        self._make_room()
        with part.random or nullcontext():
            return self._encode(part, grad=True)

    def _encode(self, part: Part, *, grad: bool) -> Tensor:
        features = self.pools[part.group].select(part.batch)
        with self.autocast(grad=grad), sparse(self.tables[part.group]):
            embeddings = self.towers[part.group](features)
        rows = len(part.batch.rows)
        if isinstance(embeddings, Tensor) and embeddings.device.type != self.device.type:
            raise ValueError(
                f"encode: embeddings are on {embeddings.device}, but the random numbers and the "
                f"memory that are minded are those of {self.device}; pass model=."
            )
        shape = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else None
        if shape is None or len(shape) != 2 or shape[0] != rows:  # noqa: PLR2004
            got = type(embeddings).__name__ if shape is None else f"shape {shape}"
            raise ValueError(f"encode: expected embeddings of shape ({rows}, D), got {got}.")
        return embeddings

    def _shown(self, parts: list[Part], what: str) -> Iterator[Part]:
        if not self.cache.progress:
            return iter(parts)
        from tqdm import tqdm  # noqa: PLC0415 - only for those who want to see it

        return iter(tqdm(parts, what, unit="mini-batch", leave=False))


class Embedded:
    """The embeddings of a batch, and the way back to the encoder."""

    def __init__(self, columns: list[Tensor], run: BatchRun) -> None:
        self.columns = columns  # (rows, D) each, without a graph
        self._run = run

    def backward(self, gradients: Sequence[Tensor | None]) -> None:
        """Add to the parameters' gradients what these gradients of the embeddings say."""
        self._run.backward(gradients)
