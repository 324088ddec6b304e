"""Numbered corpora: token ids in memory, or in a folder of their own on disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simcse_fast.errors import InputError
from simcse_fast.information.sentences import Repairs
from simcse_fast.kernels.numba_threads import run_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from simcse_fast.kernels.cooccurrence.engine import Chunk

CHUNK = 1 << 22  # tokens that are read from disk at a time
BLOCK = 1 << 23  # tokens of a block in memory: 32 MB, beyond what glibc keeps in its heap
SMALL = 1 << 16  # words whose ids fit 16 bits
META, IDS, SIZES, WORDS, PASSES = "meta.json", "ids.bin", "sizes.bin", "words.parquet", "passes.npz"
LOCK, UNFINISHED = "lock", ".unfinished-"
STARTING = 3600  # seconds that a folder may be without its lock before it counts as abandoned
BYTES_OF_ID = 4


@dataclass(frozen=True)
class Disk:
    """Ids on disk, by handles: they stay those of this corpus, whatever happens to the names."""

    folder: Path
    digest: str  # of all that was written
    ids: BinaryIO
    sizes: BinaryIO

    def read(self, name: str, kind: Any, first: int, count: int) -> NDArray[Any]:
        """At most `count` numbers from place `first` on."""
        file = self.ids if name == IDS else self.sizes
        out, done = np.empty(count, kind), 0
        size = out.itemsize
        view = out.view(np.uint8).data
        while got := os.preadv(file.fileno(), [view[done:]], first * size + done):
            done += got
        return out[: done // size]


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
        disk: where they are on disk.
        source: gives other ids in sentences of the same lengths.
    """

    vocabulary: pa.Array
    counts: NDArray[np.int64]
    tokens: int
    sentences: int
    longest: int
    offsets: NDArray[np.int64] | None = None
    ids: NDArray[np.uint32] | None = None
    disk: Disk | None = None
    source: Callable[[], Iterator[Chunk]] | None = None

    def chunks(self) -> Iterator[Chunk]:
        """The corpus from its beginning, whole sentences at a time; the ids may be overwritten."""
        if self.source is not None:
            yield from self.source()
        elif self.ids is not None and self.offsets is not None:
            yield self.ids, self.offsets
        elif self.disk is not None:
            first, kind = 0, id_type(len(self.counts))
            for offsets in self.lengths():
                ids = self.disk.read(IDS, kind, first, int(offsets[-1]))
                if len(ids) != offsets[-1] or int(ids.max(initial=0)) >= len(self.counts):
                    raise InputError(f"cache: {self.disk.folder / IDS} changed while it was read")
                first += len(ids)
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
        for first in range(0, self.sentences, step):
            if self.offsets is not None:
                yield np.diff(self.offsets[first : first + step + 1])
            elif self.disk is not None:
                count = min(step, self.sentences - first)
                yield self.disk.read(SIZES, np.uint32, first, count).astype(np.int64)


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


class FileSink:
    """Keeps the ids in a folder, which is there as a whole or not at all."""

    def __init__(self, folder: Path, fingerprint: dict[str, Any], repairs: Repairs) -> None:
        self.folder, self.fingerprint, self.repairs = folder, fingerprint, repairs
        self.parts: list[tuple[int, int]] = []
        self.sentences, self.longest, self.sizes_sum = 0, 0, 0
        with told(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(folder)
            prefix = f"{folder.name}{UNFINISHED}"
            self.unfinished = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
            # Under its name it is locked from the first: a free one is for others to clear away.
            starting = self.unfinished / f"{LOCK}.new"
            self.lock = lock(starting)
            starting.rename(self.unfinished / LOCK)
            self.ids = (self.unfinished / IDS).open("w+b")
            self.sizes = (self.unfinished / SIZES).open("w+b")

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
        """See Sink; another process may have been quicker, whose ids are as good."""
        with told(self.folder):
            tokens, check = self._renumber(maps, id_type(len(counts)))
            words = self.unfinished / WORDS
            pq.write_table(pa.table({"word": vocabulary, "count": counts}), words)
            meta = {
                "fingerprint": self.fingerprint,
                "tokens": tokens,
                "sentences": self.sentences,
                "longest": self.longest,
                "repairs": [self.repairs.replaced, self.repairs.first],
                "sums": {IDS: check, SIZES: self.sizes_sum, WORDS: checksum(words)},
            }
            text = json.dumps(meta)
            (self.unfinished / META).write_text(text)
            found = load(self.folder, self.fingerprint, Repairs()) or self._move_in()
        if found is not None:
            self.discard()
            return found
        disk = Disk(self.folder, digest(text), self.ids, self.sizes)
        self.lock.close()
        return Numbered(vocabulary, counts, tokens, self.sentences, self.longest, disk=disk)

    def _renumber(self, maps: Sequence[NDArray[np.uint32]], kind: Any) -> tuple[int, int]:
        """Write final ids; what is read lies behind what is written, so one file does."""
        read, written, check = 0, 0, 0
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
        return read, check

    def _move_in(self) -> Numbered | None:
        """Take the place of what was there; the ids of who took it first, if they are as good."""
        aside = Path(
            tempfile.mkdtemp(prefix=f"{self.folder.name}{UNFINISHED}", dir=self.folder.parent)
        )
        try:
            with contextlib.suppress(FileNotFoundError):
                self.folder.rename(aside / "old")
            self.unfinished.rename(self.folder)
        except OSError:
            found = load(self.folder, self.fingerprint, Repairs())
            if found is None:
                raise
            return found
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return None

    def discard(self) -> None:
        """Remove what was not finished."""
        for file in (self.ids, self.sizes, self.lock):
            with contextlib.suppress(OSError):
                file.close()
        shutil.rmtree(self.unfinished, ignore_errors=True)


def lock(path: Path) -> TextIO:
    """The file, for this process as long as it is open.

    Raises:
        BlockingIOError: it is another's.
    """
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def remove_abandoned(folder: Path) -> None:
    """Delete what processes that are no more have left behind: theirs is no lock."""
    for path in folder.parent.glob(f"{glob.escape(folder.name)}{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if (path / LOCK).exists():
                lock(path / LOCK).close()
            elif time.time() - path.stat().st_mtime < STARTING:
                continue
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def told(
    path: Path, argument: str = "cache", advice: str = "name another folder by cache="
) -> Iterator[None]:
    """One sentence where something cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        free = "free some, or " * (error.errno == errno.ENOSPC)
        raise InputError(
            f"{argument}: {path} cannot be written: {reason}; {free}{advice}"
        ) from error


def load(folder: Path, fingerprint: dict[str, Any], repairs: Repairs) -> Numbered | None:
    """The ids of an earlier run; None where they are of another text or not whole."""
    with contextlib.ExitStack() as stack:
        try:
            text = (folder / META).read_text()
            meta = json.loads(text)
            if meta["fingerprint"] != fingerprint:
                return None
            if any(checksum(folder / name) != meta["sums"][name] for name in (IDS, SIZES, WORDS)):
                return None
            table = pq.read_table(folder / WORDS)
            counts = table["count"].combine_chunks().to_numpy()
            words = table["word"].combine_chunks()
            sizes = (meta["tokens"], meta["sentences"], meta["longest"])
            ids, lengths = (
                stack.enter_context((folder / name).open("rb")) for name in (IDS, SIZES)
            )
            if int(counts.sum()) != meta["tokens"]:
                return None
            repairs.add(*meta["repairs"])
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return None
        stack.pop_all()  # the files stay open
    return Numbered(words, counts, *sizes, disk=Disk(folder, digest(text), ids, lengths))


def digest(text: str) -> str:
    """Of what describes a folder, checksums included."""
    return hashlib.sha256(text.encode()).hexdigest()


def checksum(path: Path) -> int:
    """Of a whole file."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            total = zlib.crc32(block, total)
    return total
