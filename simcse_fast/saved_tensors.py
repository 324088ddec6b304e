"""What a graph holds for its backward pass: counted, and on a CPU put in memory of its own.

A graph that is kept while other mini-batches run would leave the heap full of holes, in which the
next graph does not fit: the process grows far beyond what it holds, and every step pays for fresh
pages. So the tensors that a graph saves are copied end to end into slabs, which are used again.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from simcse_fast.backend import copy_past_caches
from simcse_fast.memory import resident_memory, return_free_pages

if TYPE_CHECKING:
    from collections.abc import Callable

SLAB = 64 << 20
ALIGNED = 64
SMALL = 1 << 20  # a slab with less room than this is full


class Slabs:
    """Memory that is used again from batch to batch."""

    def __init__(self) -> None:
        self.free: list[Tensor] = []
        self.total = 0
        self.level = resident_memory()  # what the process held beside them when it was last tidy

    def take(self, least: int) -> Tensor:
        """A slab with room for so many bytes."""
        for number, slab in enumerate(self.free):
            if slab.numel() >= least:
                return self.free.pop(number)
        if least > SLAB:  # of another size than the last batch's: those are not used again
            self.total -= sum(slab.numel() for slab in self.free if slab.numel() > SLAB)
            self.free = [slab for slab in self.free if slab.numel() == SLAB]
        size = max(SLAB, least)
        self.total += size
        return torch.frombuffer(_pages(size), dtype=torch.uint8)

    def tidy(self, holes: int) -> None:
        """Return freed memory to the system once the process has grown by more than `holes`.

        The small nodes of a kept graph stay among the large tensors that were freed around them,
        and the C library can rarely use what is left between.
        """
        if resident_memory() - self.total - self.level > holes:
            return_free_pages()
            self.level = resident_memory() - self.total


def _pages(size: int) -> mmap.mmap:
    """Fresh memory; on Linux in pages of 2 MiB, which only private memory gets."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class Shelf:
    """The slabs that one batch uses."""

    def __init__(self, slabs: Slabs) -> None:
        self.slabs = slabs
        self.used: list[Tensor] = []
        self.open: list[tuple[Tensor, int]] = []  # slabs with room, and where it begins
        self.cleared = 0  # times

    def place(self, size: int) -> Tensor:
        """Memory of so many bytes."""
        size = -(-size // ALIGNED) * ALIGNED
        for number, (slab, begin) in enumerate(self.open):
            if begin + size <= slab.numel():
                del self.open[number]
                return self._cut(slab, begin, size)
        slab = self.slabs.take(size)
        self.used.append(slab)
        return self._cut(slab, 0, size)

    def _cut(self, slab: Tensor, begin: int, size: int) -> Tensor:
        if slab.numel() - begin - size >= SMALL:
            self.open.append((slab, begin + size))
        return slab[begin : begin + size]

    def clear(self) -> None:
        """Give the slabs back; nothing placed in them may be read any more."""
        self.slabs.free += self.used
        self.used, self.open = [], []
        self.cleared += 1


class Saved:
    """As a context counts the bytes that a graph built inside holds, parameters aside, in `total`.

    Args:
        shelf: where what is saved is copied to; None leaves it where it is.
    """

    def __init__(self, shelf: Shelf | None) -> None:
        self.shelf = shelf
        self._hooks: saved_tensors_hooks | None = None
        self.total = 0
        # By storage, as long as it lives: its copy, and the version that was copied.
        self._copies: dict[StorageWeakRef, tuple[Tensor | None, int]] = {}

    def __enter__(self) -> Self:
        self._hooks = saved_tensors_hooks(self._pack, _unpack)
        self._hooks.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        hooks, self._hooks = self._hooks, None  # which point back here
        if hooks is not None:
            hooks.__exit__(*raised)

    def _pack(self, x: Tensor) -> Tensor | Callable[[], Tensor]:
        root = x if x._base is None else x._base  # noqa: SLF001 - the parameter behind a view
        learned = isinstance(root, nn.Parameter) or (root.is_leaf and root.requires_grad)
        if learned or x.layout != torch.strided or x.is_conj() or x.is_neg():
            return x
        storage = x.untyped_storage()
        name, size = StorageWeakRef(storage), storage.nbytes()  # type: ignore[no-untyped-call]
        copy, version = self._copies.get(name, (None, -1))
        if version != x._version and size:  # noqa: SLF001 - changed in place since
            self.total += size
            if self.shelf is not None and x.device.type == "cpu":
                copy = self.shelf.place(size)
                content = torch.empty(0, dtype=torch.uint8).set_(storage)
                copy_past_caches(content, copy[:size])
            self._copies[name] = copy, x._version  # noqa: SLF001
        if copy is None or self.shelf is None:
            return x
        return _copied(x, copy, self.shelf)


def _copied(x: Tensor, copy: Tensor, shelf: Shelf) -> Callable[[], Tensor]:
    """What gives the tensor back from the copy of its storage."""
    dtype, shape, strides, offset = x.dtype, x.shape, x.stride(), x.storage_offset()
    cleared = shelf.cleared

    def found() -> Tensor:
        if shelf.cleared != cleared:
            raise RuntimeError(
                "backward: a graph from inside encode was used after its batch had let go of its "
                "memory."
            )
        typed = copy.view(dtype)
        return typed.as_strided(shape, strides, typed.storage_offset() + offset)

    return found


def _unpack(packed: Tensor | Callable[[], Tensor]) -> Tensor:
    return packed if isinstance(packed, Tensor) else packed()
