"""Token ids of all texts, made once and mapped from the disk afterwards."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from simcse_fast.errors import InputError
from simcse_fast.locks import alone
from simcse_fast.training.sealed import made, note_of, writing
from simcse_fast.training.texts import label, read_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from simcse_fast.information.sentences import Sentences
    from simcse_fast.training.text_encoder import TextEncoder

VERSION = 1  # of the files; one of another version is made anew
LOCK = ".lock"
CHUNK = 32_768  # texts for one call: enough for all threads of a tokenizer


@dataclass(frozen=True)
class DataReport:
    """What became of the texts of a source."""

    rows: int  # that are trained on
    dropped: int  # rows left out, for a text without tokens (halves need two)
    truncated: int  # texts longer than the longest allowed
    duplicates: int  # rows whose positive repeats that of an earlier row
    tokens: int
    max_length: int | None

    def sentences(self) -> list[str]:
        """What a person should know about the data."""
        told = [f"{self.rows:,} rows, {self.tokens:,} tokens"]
        if self.dropped:
            told.append(f"{self.dropped:,} rows with an empty text dropped")
        if self.truncated:
            told.append(f"{self.truncated:,} texts cut at {self.max_length} tokens")
        if self.duplicates:
            told.append(f"{self.duplicates:,} rows repeat an earlier sentence")
        return told


@dataclass(frozen=True)
class Column:
    """Text t is ids[offsets[t] : offsets[t + 1]]; equal texts have equal numbers in `identity`."""

    ids: NDArray[Any]
    offsets: NDArray[np.int64]
    identity: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of these texts one after the other, and how many each has."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        place = np.repeat(starts - (ends - lengths), lengths)
        place += np.arange(total)
        return self.ids[place].astype(np.int64), lengths


@dataclass(frozen=True)
class TokenData:
    """The columns, and which of their rows are trained on."""

    columns: tuple[Column, ...]
    rows: NDArray[np.int64]
    report: DataReport
    content: str  # hash of all ids


def token_data(
    source: object,
    argument: str,
    encoder: TextEncoder,
    cache: Path,
    say: Callable[[str], None] = lambda _: None,
) -> TokenData:
    """Token ids of a source, from the cache where it holds just these.

    Args:
        source: what `read_columns` takes.
        argument: the name of the argument that it was given for.
        encoder: makes ids of texts.
        cache: folder for the ids; one that is torn or of other data is never used.
        say: called with a sentence where something else is waited for.

    Raises:
        InputError: the source cannot be used, or changes while it is read.
    """
    of_file = is_file(source)
    fingerprint, columns = fingerprint_of(source, argument, encoder.fingerprint)
    folder = cache / f"tokens-{fingerprint[:16]}"
    note = made_of(folder, fingerprint)
    if note is not None:
        return read(folder, note)
    columns = columns or read_columns(source, argument)
    still = not of_file or is_file(source)
    if not still or (
        of_file and fingerprint_of(source, argument, encoder.fingerprint)[0] != fingerprint
    ):
        raise InputError(f"{argument}: {label(source)} changed while it was read; try again")
    with made(cache, "cache"), alone_in(cache, say):
        note = made_of(folder, fingerprint)  # by the one that was waited for
        if note is None:
            note = {"fingerprint": fingerprint, "dtype": encoder.dtype.name}
            with writing(folder, note) as staging:
                note |= write(columns, encoder, staging, argument)
    return read(folder, note)


def made_of(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The note of a folder that is whole and of just these texts and this tokenizer."""
    note, _ = note_of(folder) if folder.is_dir() else (None, "")
    return note if note is not None and note.get("fingerprint") == fingerprint else None


def alone_in(folder: Path, say: Callable[[str], None]) -> AbstractContextManager[bool]:
    """Wait for other runs that write into a folder."""
    return alone(
        folder / LOCK,
        busy=lambda: say(f"waiting for another run that writes token ids into {folder}"),
        unlockable=lambda: say(
            f"{folder} cannot be locked: no other run may write token ids into it now"
        ),
    )


def is_file(source: object) -> bool:
    """Whether a source is a file here: known by its size and time rather than by its content."""
    return isinstance(source, str | os.PathLike) and Path(source).exists()


def fingerprint_of(source: Any, argument: str, made_by: str) -> tuple[str, list[Sentences] | None]:
    """Of texts and what is made of them, a hash; and the texts, where they had to be read."""
    parts = [str(VERSION), argument, made_by]
    if is_file(source):
        path = Path(source).resolve()
        about = path.stat()
        parts += [str(path), str(about.st_size), str(about.st_mtime_ns)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest(), None
    columns = read_columns(source, argument)
    content = hashlib.sha256("\n".join(parts).encode())
    for column in columns:
        content.update(np.ascontiguousarray(column.starts).data)
        content.update(np.ascontiguousarray(column.data).data)
    return content.hexdigest(), columns


def write(
    columns: list[Sentences], encoder: TextEncoder, folder: Path, argument: str
) -> dict[str, Any]:
    """Tokenize, and write everything that `read` reads, but for what it returns."""
    bar = tqdm(
        total=sum(map(len, columns)), desc="tokenizing", unit=" texts", disable=None, leave=False
    )
    kept = np.ones(len(columns[0]), bool)
    hashes, truncated, tokens = [], 0, 0
    for number, texts in enumerate(columns):
        lengths, column_hashes, cut = write_column(texts, encoder, folder, number, bar)
        kept &= lengths >= encoder.fewest
        truncated, tokens = truncated + cut, tokens + int(lengths.sum())
        hashes.append(column_hashes)
    bar.close()
    rows = np.flatnonzero(kept)
    if len(rows) < 2:  # noqa: PLR2004 - one row has no negatives
        raise InputError(f"{argument}: expected at least two rows with text, found {len(rows)}")
    # One numbering for all columns, so that a negative that equals a positive is known as such.
    joined = np.concatenate(hashes)
    _, identity = np.unique(joined, return_inverse=True)
    identity = identity.reshape(len(columns), -1).astype(np.int64)
    positive = identity[min(1, len(columns) - 1)][rows]
    np.save(folder / "rows.npy", rows)
    np.save(folder / "identity.npy", identity)
    report = DataReport(
        rows=len(rows),
        dropped=len(kept) - len(rows),
        truncated=truncated,
        duplicates=len(rows) - len(np.unique(positive)),
        tokens=tokens,
        max_length=encoder.max_length,
    )
    return {"report": asdict(report), "content": hashlib.sha256(joined.data).hexdigest()}


def write_column(
    texts: Sentences, encoder: TextEncoder, folder: Path, number: int, bar: Any
) -> tuple[NDArray[np.int64], NDArray[np.uint64], int]:
    """Ids of one column to the disk; its lengths, hashes of its texts, and how many were cut."""
    lengths, hashes, truncated = [], [], 0
    with (folder / f"ids-{number}.bin").open("wb") as file:
        for chunk in chunks(texts):
            ids, counts, cut = encoder.encode(chunk)
            ids.tofile(file)
            lengths.append(counts)
            hashes.append(hashes_of(ids, counts))
            truncated += cut
            bar.update(len(chunk))
    counts = np.concatenate(lengths)
    np.save(folder / f"offsets-{number}.npy", np.concatenate([[0], np.cumsum(counts)]))
    return counts, np.concatenate(hashes), truncated


def chunks(texts: Sentences) -> Iterator[list[str]]:
    """The texts, many at a time."""
    for low in range(0, len(texts), CHUNK):
        yield [text.strip() for text in texts.texts(low, low + CHUNK)]


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Numbers that look random, one for each number (the finalizer of splitmix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def hashes_of(ids: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A 64-bit hash of each text's ids and their order."""
    ends = np.cumsum(lengths)
    place = (np.arange(len(ids)) - np.repeat(ends - lengths, lengths)).astype(np.uint64)
    terms = mixed(ids.astype(np.uint64) + (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    sums: NDArray[np.uint64] = total[ends] - total[ends - lengths]
    return sums


def read(folder: Path, note: dict[str, Any]) -> TokenData:
    """Map what `write` wrote."""
    columns = []
    for number, identity in enumerate(np.load(folder / "identity.npy", mmap_mode="r")):
        path = folder / f"ids-{number}.bin"
        dtype = np.dtype(note["dtype"])
        ids = np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
        offsets = np.load(folder / f"offsets-{number}.npy", mmap_mode="r")
        columns.append(Column(ids, offsets, identity))
    report = DataReport(**note["report"])
    return TokenData(tuple(columns), np.load(folder / "rows.npy"), report, note["content"])
