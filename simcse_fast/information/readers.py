"""Files of text, read part by part: .txt, .jsonl (either compressed by gzip or zstd), .parquet."""

import glob
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from simcse_fast.information.sentences import (
    REPLACEMENT,
    Part,
    Repairs,
    Sentences,
    from_arrow,
    from_strings,
    is_strings,
    join,
    valid,
)

PACKED = {".gz": "gzip", ".zst": "zstd"}
ENDINGS = (".txt", ".parquet", ".jsonl", *PACKED)
TEXT_COLUMNS = ("text", "sentence")
BLOCK = 4 << 20  # bytes of text to one part
ROWS = 1 << 15  # of a Parquet file to one part
PAGES = 1 << 20  # bytes of a Parquet file that are read at a time
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Source:
    """A file, the column of its sentences, and who takes note of invalid UTF-8 (None: an error)."""

    path: Path
    column: str | None = None
    repairs: Repairs | None = None

    @property
    def where(self) -> str:
        """How a message calls it."""
        return f"corpus: {self.path}"


def find_files(path: str) -> list[Path]:
    """The file, or all that match the pattern, in order of their names."""
    # os.path and glob take any string, however long; Path.glob refuses absolute patterns.
    found = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))  # noqa: PTH110, PTH207
    if not found:
        raise ValueError(
            f"corpus: no file {path!r:.200}; expected {', '.join(ENDINGS)}; put a single "
            "sentence in a list"
        )
    return [Path(name) for name in found]


def kind_of(path: Path) -> str:
    """The ending that says what is inside: .txt for text, whatever packs it."""
    inner = Path(path.stem).suffix if path.suffix in PACKED else path.suffix
    return ".txt" if path.suffix in PACKED and inner != ".jsonl" else inner


def read_parts(source: Source) -> Iterator[Part]:
    """One file by its ending; a .txt holds one sentence a line."""
    readers: dict[str, Callable[[Source], Iterator[Part]]] = {
        ".txt": line_parts,
        ".jsonl": json_parts,
        ".parquet": parquet_parts,
    }
    kind = kind_of(source.path)
    if kind not in readers:
        raise ValueError(f"{source.where} ends in {kind!r}; expected {', '.join(ENDINGS)}")
    try:
        yield from readers[kind](source)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise ValueError(f"{source.where} cannot be read: {reason}") from error


def read_file(path: Path, column: str | None = None) -> Sentences:
    """A whole file by its ending."""
    return join([part.sentences for part in read_parts(Source(path, column))])


def read_lines(path: Path) -> Sentences:
    """A whole file of a sentence a line, whatever its ending."""
    return join([part.sentences for part in line_parts(Source(path))])


def read_jsonl(path: Path) -> Sentences:
    """A whole file of a JSON value a line."""
    return join([part.sentences for part in json_parts(Source(path))])


def read_parquet(path: Path) -> Sentences:
    """The sentences of a Parquet file."""
    return join([part.sentences for part in parquet_parts(Source(path))])


@contextmanager
def unchanged(path: Path) -> Iterator[Any]:
    """The open file; an error if another size or time says that it changed meanwhile."""
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        yield file
        after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ValueError(
            f"corpus: {path} changed while it was read: {before.st_size:,} bytes before, "
            f"{after.st_size:,} after"
        )


def blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Unpacked bytes that end with a line, and how much of the file is read."""
    with unchanged(path) as file:
        packed = PACKED.get(path.suffix)
        # Nothing comes of an empty file, which has no header to unpack.
        unpack = packed and os.fstat(file.fileno()).st_size
        text = pa.CompressedInputStream(pa.PythonFile(file, "r"), packed) if unpack else file
        waiting: list[bytes] = []  # of a line that goes on
        while block := text.read(BLOCK):
            end = block.rfind(b"\n") + 1
            if end:
                yield b"".join([*waiting, block[:end]]), file.tell()
                waiting = []
            waiting.append(block[end:])
        if any(waiting):
            yield b"".join(waiting), file.tell()


def line_parts(source: Source) -> Iterator[Part]:
    """A UTF-8 text file; line breaks stay at the ends of the sentences."""
    if source.column is not None and kind_of(source.path) == ".txt":
        raise ValueError(f"{source.where}: column {source.column!r}: lines of text have none")
    line, place, blank = 1, 0, True
    for content, done in blocks(source.path):
        nul = content.find(b"\0")
        if nul >= 0:
            raise ValueError(
                f"{source.where} is a binary file (a NUL at byte {place + nul}); expected UTF-8 "
                "text"
            )
        begins = len(BOM) if not place and content.startswith(BOM) else 0
        data = np.frombuffer(content, np.uint8)[begins:]
        if not valid(as_string(data)):
            data = np.frombuffer(repair(source, data.tobytes(), line, place), np.uint8)
        breaks = np.flatnonzero(data == ord("\n")) + 1
        last = [] if len(breaks) and breaks[-1] == len(data) else [len(data)]
        yield Part(Sentences(data, np.concatenate([[0], breaks, last]).astype(np.int64)), done)
        blank = blank and not content.strip()
        line, place = line + len(breaks), place + len(content)
    if blank:
        raise ValueError(f"{source.where} is empty; expected one sentence a line")


def as_string(data: NDArray[np.uint8]) -> pa.Array:
    """One Arrow string of all bytes, unchecked."""
    ends = pa.py_buffer(np.array([0, len(data)], np.int64))
    return pa.LargeStringArray.from_buffers(1, ends, pa.py_buffer(data))


def repair(source: Source, content: bytes, line: int, place: int) -> bytes:
    """Valid UTF-8 instead; line breaks stay, since no broken character takes one with it."""
    text = content.decode("utf-8", "replace")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        number = line + content.count(b"\n", 0, error.start)
        if source.repairs is None:
            raise ValueError(
                f"{source.where}, line {number}: invalid UTF-8 (byte "
                f"0x{content[error.start]:02x} at offset {place + error.start}); expected UTF-8 "
                "text"
            ) from None
        broken = text.count(REPLACEMENT) - content.count(REPLACEMENT.encode())
        source.repairs.add(broken, f"{source.path}, line {number}")
    return text.encode()


def json_parts(source: Source) -> Iterator[Part]:
    """One JSON value a line: a string, or an object with the sentence in a field."""
    column, number = source.column, 0
    for lines, done in line_parts(source):
        texts = []
        for number, line in enumerate(lines.texts(), start=number + 1):  # noqa: B020 - goes on counting
            if line.strip():
                text, column = sentence_of(line, column, f"{source.where}, line {number}")
                texts.append(text)
        yield Part(from_strings(texts), done)


def sentence_of(line: str, column: str | None, where: str) -> tuple[str, str | None]:
    """The sentence of a line of JSON, and the field it is in."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise ValueError(f"{where}: not JSON ({reason}); expected one value a line") from None
    if isinstance(value, dict):
        strings = [name for name, entry in value.items() if isinstance(entry, str)]
        if column is None or column not in value:
            column = text_column(strings, list(value), where, column)
        value = value[column]
    if not isinstance(value, str):
        raise ValueError(  # noqa: TRY004 - the file's content, not the caller's type
            f"{where}: expected a string, or an object with a string in a field"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: a lone surrogate, which no UTF-8 text can hold") from None
    return value, column


def parquet_parts(source: Source) -> Iterator[Part]:
    """The column of sentences of a Parquet file."""
    with unchanged(source.path) as opened:
        try:
            # By itself it would read row groups whole, before their pages are asked for.
            file = pq.ParquetFile(opened, pre_buffer=False, buffer_size=PAGES)
            column = column_of(file.schema_arrow, source.where, source.column)
            size, rows, first = os.fstat(opened.fileno()).st_size, file.metadata.num_rows, 0
            step = rows_of_a_part(file.metadata, column)
            for batch in file.iter_batches(batch_size=step, columns=[column]):
                found = from_arrow(batch.column(0), source.where, source.repairs, first)
                first += len(batch)
                yield Part(found, size * first // rows)
        except pa.ArrowInvalid as error:
            told = " ".join(str(error).split())
            raise ValueError(f"{source.where} is not a Parquet file: {told}") from error


def rows_of_a_part(metadata: Any, column: str) -> int:
    """As many rows of a Parquet file as have about BLOCK bytes; they may be whole books."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    size = sum(one.total_uncompressed_size for one in columns if one.path_in_schema == column)
    return int(max(1, min(ROWS, BLOCK * metadata.num_rows // max(size, 1))))


def column_of(schema: pa.Schema, where: str, column: str | None = None) -> str:
    """The column of sentences of a table."""
    return text_column(
        [field.name for field in schema if is_strings(field.type)], schema.names, where, column
    )


def text_column(strings: list[str], names: list[str], where: str, column: str | None) -> str:
    """The column that was asked for; or `text`, `sentence`, or the only one of strings."""
    if column is not None:
        if column not in strings:
            what = "holds no strings" if column in names else "is not there"
            raise ValueError(f"{where}: column {column!r} {what}; found {', '.join(names)}")
        return column
    for name in TEXT_COLUMNS:
        if name in strings:
            return name
    if len(strings) != 1:
        raise ValueError(
            f"{where}: expected a column of strings named text or sentence, or only one column of "
            f"strings; found {len(strings)} among {', '.join(names)}; or name one by column="
        )
    return strings[0]
