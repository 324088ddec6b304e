"""A table in parts, each on the disk for good once it is finished; put together at the end."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from simcse_fast.errors import InputError
from simcse_fast.files import written_whole
from simcse_fast.training.sealed import UNFINISHED, UnwritableError, made, sync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

SETTINGS = "settings.json"
NOTES = b"simcse_fast.notes"  # of a part: what it warns of, and how often
ABOUT = b"simcse_fast.settings"  # of the whole table
GROUP = 16 << 20  # bytes of a row group of the whole table, at least
NAME = re.compile(r"part-(\d+)-([0-9a-f]{16})\.parquet")  # its number, and a hash of its content
# Settings that are hashes, and what it means where they differ.
HASHED = {"model": "another model or tokenizer", "sentences": "other sentences"}


@dataclass(frozen=True)
class TableParts:
    """Finished parts of a Parquet file, in a folder beside it.

    Attributes:
        out: the file that they become.
        schema: its columns.
        ranges: the rows of each part.
        settings: all that decides what is in them, as JSON has it; parts of others are refused.
    """

    out: Path
    schema: pa.Schema
    ranges: list[range]
    settings: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Where the parts are."""
        return self.out.with_name(f"{self.out.name}.parts")

    def _paths(self) -> dict[int, Path]:
        """The files of parts that are there, whole or not."""
        found = ((NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return {int(match[1]): path for match, path in found if match}

    @contextmanager
    def claimed(self, *, resume: bool) -> Iterator[None]:
        """The folder with parts of these settings only, and no other process in it.

        Args:
            resume: keep the parts that are there; otherwise they are removed.

        Raises:
            InputError: they are of other settings, or another process is writing them.
            UnwritableError: there can be no such folder.
        """
        with made(self.folder, "out"):
            descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                self._lock(descriptor)
                if resume:
                    self._check()
                else:
                    self._clear()
                yield
            finally:
                os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"out: another process is writing {self.out}") from None
        except OSError:  # a file system without locks
            pass

    def _check(self) -> None:
        """Refuse parts of other settings.

        Raises:
            InputError: it names the first that differs.
        """
        afresh = (
            "name another file, or start afresh: delete the folder or pass resume=False (--restart)"
        )
        if not self._paths():
            (self.folder / SETTINGS).unlink(missing_ok=True)
            return
        try:
            then = {**json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))}
        except (OSError, ValueError, TypeError):
            raise InputError(
                f"out: {self.folder} holds parts, but its {SETTINGS} is missing or cannot be "
                f"read; {afresh}"
            ) from None
        for name in [*self.settings, *(name for name in then if name not in self.settings)]:
            was, now = then.get(name), self.settings.get(name)
            if was != now:
                told = HASHED.get(name) or f"{name} {was!r}, now it is {now!r}"
                raise InputError(
                    f"out: {self.folder} holds parts made with {told}; give the same, {afresh}"
                )

    def complete(self) -> bool:
        """Whether the whole table of these settings is there, and no run is under way."""
        if self.folder.exists():
            return False
        try:
            about = (pq.read_schema(self.out).metadata or {}).get(ABOUT, b"null")
            found: bool = json.loads(about) == json.loads(json.dumps(self.settings))
        except (OSError, ValueError):  # none, or no Parquet file
            return False
        return found

    def missing(self) -> list[int]:
        """Numbers of the parts that are not there; torn ones are removed."""
        paths = self._paths()
        for number, path in list(paths.items()):
            try:
                _read(path)
            except OSError:
                path.unlink()
                del paths[number]
        return [number for number in range(len(self.ranges)) if number not in paths]

    def write(self, number: int, columns: Mapping[str, Any], notes: Mapping[str, int]) -> None:
        """A finished part; after this nothing but a failing disk loses it.

        Args:
            number: which part.
            columns: of the schema.
            notes: what it warns of, and how many of its rows have it.

        Raises:
            UnwritableError: the disk is full or fails.
        """
        table = pa.table(columns, self.schema.with_metadata({NOTES: json.dumps(notes)}))
        settings = json.dumps(self.settings, indent=1).encode()
        with pa.BufferOutputStream() as stream:
            pq.write_table(table, stream, compression="zstd")
            content = stream.getvalue()
        name = f"part-{number:06d}-{_digest(content)}.parquet"
        with self._told():
            if not (self.folder / SETTINGS).exists():
                _write(self.folder / SETTINGS, lambda file: file.write(settings))
            _write(self.folder / name, lambda file: file.write(content))

    def merge(self) -> Counter[str]:
        """Put the parts together, in place of an earlier table, and remove them.

        Returns:
            What they warn of, and of how many rows.

        Raises:
            UnwritableError: the disk is full or fails; parts and earlier table stay.
        """
        notes: Counter[str] = Counter()
        paths = self._paths()
        schema = self.schema.with_metadata({ABOUT: json.dumps(self.settings)})

        def merged(file: BinaryIO) -> None:
            waiting: list[pa.Table] = []
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for number in range(len(self.ranges)):
                    table = _read(paths[number])
                    notes.update(json.loads(table.schema.metadata[NOTES]))
                    waiting.append(table.replace_schema_metadata(schema.metadata))
                    full = sum(one.nbytes for one in waiting) >= GROUP
                    if full or number == len(self.ranges) - 1:
                        writer.write_table(pa.concat_tables(waiting))
                        waiting.clear()

        with self._told():
            _write(self.out, merged)
        self._clear()
        with suppress(OSError):  # something else is in it
            self.folder.rmdir()
        return notes

    def _clear(self) -> None:
        """Remove the parts, but nothing that somebody else has put there."""
        with self._told():
            for pattern in ("part-*.parquet", f"{UNFINISHED}*", SETTINGS):
                for path in self.folder.glob(pattern):
                    path.unlink()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """A refusal of the disk as one sentence."""
        try:
            yield
        except OSError as error:
            reason = (error.strerror or str(error)).partition("\n")[0]
            raise UnwritableError(
                f"out: {self.out} cannot be written ({reason}); finished parts are whole, in "
                f"{self.folder}, and the same command goes on from them"
            ) from error


def _read(path: Path) -> pa.Table:
    """A part.

    Raises:
        OSError: it is torn.
    """
    content, match = path.read_bytes(), NAME.fullmatch(path.name)
    if match is None or _digest(content) != match[2]:
        raise OSError(f"{path.name} is not as it was written")
    return pq.read_table(pa.BufferReader(content))


def _digest(content: bytes | pa.Buffer) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """A file that is whole and on the disk, or not there."""
    with written_whole(path) as unfinished:
        with unfinished.open("wb") as file:  # pyarrow leaves its own open on a full disk
            write(file)
        sync(unfinished)
    sync(path.parent)
