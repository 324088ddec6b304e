"""Numbered corpora: token ids in memory, or in a folder of their own on disk."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simcse_fast.errors import InputError
from simcse_fast.kernels.numba_threads import run_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from simcse_fast.kernels.cooccurrence.engine import Chunk

CHUNK = 1 << 22  # tokens that are read from disk at a time
BLOCK = 1 << 23  # tokens of a block in memory: 32 MB, beyond what glibc keeps in its heap
SMALL = 1 << 16  # words whose ids fit 16 bits
META, IDS, SIZES, WORDS, PASSES = "meta.json", "ids.bin", "sizes.bin", "words.parquet", "passes.npz"
BYTES_OF_ID = 4


@dataclass(frozen=True)
class Numbered:
    """A corpus of ids by frequency, 0 the most frequent; ties in code-point order.

    Attributes:
        vocabulary: (words,) the words in order of their ids.
        counts: (words,) how often each occurs.
        tokens: number of ids.
        sentences: number of sentences.
        longest: tokens of the longest sentence.
        offsets: (sentences + 1,) first token of each sentence, where the ids are in memory.
        ids: (tokens,) in memory; None: on disk.
        folder: where they are on disk.
        source: gives other ids in sentences of the same lengths.
    """

    vocabulary: pa.Array
    counts: NDArray[np.int64]
    tokens: int
    sentences: int
    longest: int
    offsets: NDArray[np.int64] | None = None
    ids: NDArray[np.uint32] | None = None
    folder: Path | None = None
    source: Callable[[], Iterator[Chunk]] | None = None

    def chunks(self) -> Iterator[Chunk]:
        """The corpus from its beginning, whole sentences at a time; the ids may be overwritten."""
        if self.source is not None:
            yield from self.source()
        elif self.ids is not None and self.offsets is not None:
            yield self.ids, self.offsets
        elif self.folder is not None:
            path = self.folder / IDS
            with path.open("rb") as file:
                for offsets in self.lengths():
                    ids = np.fromfile(file, id_type(len(self.counts)), int(offsets[-1]))
                    if len(ids) != offsets[-1]:
                        raise InputError(f"cache: {path} became shorter while it was read")
                    yield ids.astype(np.uint32, copy=False), offsets

    def lengths(self) -> Iterator[NDArray[np.int64]]:
        """Offsets of so many sentences at a time as have about CHUNK tokens."""
        waiting = np.empty(0, np.int64)
        for more in self._sizes():
            waiting = np.concatenate([waiting, more])
            while (ends := np.cumsum(waiting))[-1:].sum() > CHUNK:
                taken = max(1, int(np.searchsorted(ends, CHUNK, "right")))
                yield np.concatenate([[0], ends[:taken]])
                waiting = waiting[taken:]
        if len(waiting):
            yield np.concatenate([[0], np.cumsum(waiting)])

    def _sizes(self) -> Iterator[NDArray[np.int64]]:
        """Tokens of the sentences, some of them at a time."""
        step = CHUNK // 16
        if self.offsets is not None:
            for first in range(0, self.sentences, step):
                yield np.diff(self.offsets[first : first + step + 1])
        elif self.folder is not None:
            with (self.folder / SIZES).open("rb") as file:
                while len(sizes := np.fromfile(file, np.uint32, step)):
                    yield sizes.astype(np.int64)


def id_type(words: int) -> type[np.unsignedinteger[Any]]:
    """Of ids on disk."""
    return np.uint16 if words <= SMALL else np.uint32


class Sink(Protocol):
    """Takes the parts of a corpus in order, then learns the final number of every word."""

    def append(self, worker: int, ids: NDArray[np.uint32], sizes: NDArray[np.uint32]) -> None:
        """The next part, in the numbering of the worker that read it."""

    def finish(
        self, maps: Sequence[NDArray[np.uint32]], vocabulary: pa.Array, counts: NDArray[np.int64]
    ) -> Numbered:
        """The corpus; maps[worker][id] is the final id."""


@dataclass
class MemorySink:
    """Keeps the ids in memory, in blocks so large that the system gets them back one by one."""

    threads: int
    blocks: list[Any] = field(default_factory=list)
    segments: list[list[tuple[int, int, int]]] = field(default_factory=list)
    sizes: list[NDArray[np.uint32]] = field(default_factory=list)
    tokens: int = 0

    def append(self, worker: int, ids: NDArray[np.uint32], sizes: NDArray[np.uint32]) -> None:
        """See Sink."""
        self.sizes.append(sizes)
        while len(ids):
            place = self.tokens % BLOCK
            if not place:
                self.blocks.append(np.empty(BLOCK, np.uint32))
                self.segments.append([])
            some, ids = ids[: BLOCK - place], ids[BLOCK - place :]
            self.blocks[-1][place : place + len(some)] = some
            self.segments[-1].append((worker, place, place + len(some)))
            self.tokens += len(some)

    def finish(
        self, maps: Sequence[NDArray[np.uint32]], vocabulary: pa.Array, counts: NDArray[np.int64]
    ) -> Numbered:
        """See Sink; each block's memory is free once its ids are written."""
        every = np.empty(self.tokens, np.uint32)

        def work(worker: int) -> Iterator[int]:
            for number in range(worker, len(self.blocks), self.threads):
                block, self.blocks[number] = self.blocks[number], None
                target = every[number * BLOCK : (number + 1) * BLOCK]
                for reader, low, high in self.segments[number]:
                    np.take(maps[reader], block[low:high], out=target[low:high], mode="clip")
                yield 0

        run_workers(self.threads, work, lambda _: None)
        sizes = np.concatenate([np.empty(0, np.uint32), *self.sizes])
        self.sizes = []
        offsets = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=offsets[1:])
        longest = int(sizes.max(initial=0))
        return Numbered(vocabulary, counts, len(every), len(sizes), longest, offsets, every)


@dataclass
class FileSink:
    """Keeps the ids in a folder, which is there as a whole or not at all."""

    folder: Path
    fingerprint: dict[str, Any]

    def __post_init__(self) -> None:
        self.unfinished = self.folder.with_name(f"{self.folder.name}.unfinished-{os.getpid()}")
        remove_abandoned(self.folder)
        with told(self.folder):
            self.unfinished.mkdir(parents=True)
            self.ids = (self.unfinished / IDS).open("w+b")
            self.sizes = (self.unfinished / SIZES).open("w+b")
        self.parts: list[tuple[int, int]] = []
        self.sentences, self.longest, self.sizes_sum = 0, 0, 0

    def append(self, worker: int, ids: NDArray[np.uint32], sizes: NDArray[np.uint32]) -> None:
        """See Sink."""
        with told(self.folder):
            self.ids.write(ids.data)
            self.sizes.write(sizes.data)
        self.parts.append((worker, len(ids)))
        self.sentences += len(sizes)
        self.longest = max(self.longest, int(sizes.max(initial=0)))
        self.sizes_sum = zlib.crc32(sizes.data, self.sizes_sum)

    def finish(
        self, maps: Sequence[NDArray[np.uint32]], vocabulary: pa.Array, counts: NDArray[np.int64]
    ) -> Numbered:
        """See Sink; what is read lies behind what is written, so one file does."""
        kind, read, written, check = id_type(len(counts)), 0, 0, 0
        with told(self.folder):
            for worker, size in self.parts:
                self.ids.seek(read * BYTES_OF_ID)
                part = maps[worker][np.fromfile(self.ids, np.uint32, size)].astype(kind)
                self.ids.seek(written)
                self.ids.write(part.data)
                read, written = read + size, written + part.nbytes
                check = zlib.crc32(part.data, check)
            self.ids.truncate(written)
            for file in (self.ids, self.sizes):
                file.flush()
                os.fsync(file.fileno())
                file.close()
            pq.write_table(pa.table({"word": vocabulary, "count": counts}), self.unfinished / WORDS)
            meta = {
                "fingerprint": self.fingerprint,
                "tokens": read,
                "sentences": self.sentences,
                "longest": self.longest,
                "sums": {IDS: check, SIZES: self.sizes_sum},
            }
            (self.unfinished / META).write_text(json.dumps(meta))
            shutil.rmtree(self.folder, ignore_errors=True)
            self.unfinished.rename(self.folder)
        return Numbered(vocabulary, counts, read, self.sentences, self.longest, folder=self.folder)

    def discard(self) -> None:
        """Remove what was not finished."""
        for file in (self.ids, self.sizes):
            with contextlib.suppress(OSError):
                file.close()
        shutil.rmtree(self.unfinished, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Delete what processes left behind that are no more."""
    for path in folder.parent.glob(f"{folder.name}.unfinished-*"):
        number = path.name.rpartition("-")[2]
        if number.isdigit() and (int(number) == os.getpid() or not alive(int(number))):
            shutil.rmtree(path, ignore_errors=True)


def alive(process: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # someone else's
        return True
    return True


@contextlib.contextmanager
def told(folder: Path) -> Iterator[None]:
    """One sentence where ids cannot be kept."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = "; free some, or name another folder by cache=" * (error.errno == errno.ENOSPC)
        raise InputError(f"cache: {folder} cannot be written: {reason}{advice}") from error


def load(folder: Path, fingerprint: dict[str, Any]) -> Numbered | None:
    """The ids of an earlier run; None where they are of another text or not whole."""
    try:
        meta = json.loads((folder / META).read_text())
        if meta["fingerprint"] != fingerprint:
            return None
        if any(checksum(folder / name) != value for name, value in meta["sums"].items()):
            return None
        table = pq.read_table(folder / WORDS)
        counts = table["count"].combine_chunks().to_numpy()
        words = table["word"].combine_chunks()
        expected = int(counts.sum()), len(counts)
        if expected[0] != meta["tokens"]:
            return None
        sizes = (meta["tokens"], meta["sentences"], meta["longest"])
        return Numbered(words, counts, *sizes, folder=folder)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def checksum(path: Path) -> int:
    """Of a whole file."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            total = zlib.crc32(block, total)
    return total
