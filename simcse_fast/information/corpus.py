"""Whatever a user calls a corpus, as UTF-8 in Arrow's layout or as token ids."""

import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

ENDINGS = (".txt", ".parquet", ".jsonl")
TEXT_COLUMNS = ("text", "sentence")
ACCEPTED = (
    "sentences (an iterable of str, an Arrow array, a datasets.Dataset), a path or paths to .txt, "
    ".parquet or .jsonl, or token ids as (ids, offsets) or (ids, offsets, vocabulary)"
)
MOST_IDS = 1 << 31


@dataclass(frozen=True)
class Sentences:
    """Valid UTF-8: sentence s is data[starts[s] : starts[s + 1]]."""

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def texts(self, first: int = 0, end: int | None = None) -> Iterator[str]:
        """The sentences, or those from `first` up to `end`, without the line breaks of a file."""
        data, starts = self.data.data, self.starts[first : None if end is None else end + 1]
        for low, high in pairwise(starts.tolist()):
            yield str(data[low:high], "utf-8").rstrip("\r\n")


@dataclass(frozen=True)
class TokenIds:
    """Sentence s is ids[offsets[s] : offsets[s + 1]]; `vocabulary[i]` is the word of id i."""

    ids: NDArray[np.integer[Any]]
    offsets: NDArray[np.int64]
    vocabulary: list[str] | None


def read_corpus(corpus: object) -> Sentences | TokenIds:
    """Read everything that `information_gain` accepts into memory."""
    if isinstance(corpus, str | os.PathLike):
        return join([read_file(path) for path in find_files(os.fspath(corpus))])
    if isinstance(corpus, pa.Array | pa.ChunkedArray):
        return from_arrow(corpus, "corpus")
    if isinstance(corpus, pa.Table):
        return from_table(corpus, "corpus")
    if is_dataset(corpus):
        return from_table(table_of_dataset(corpus), "corpus")
    if isinstance(corpus, tuple) and len(corpus) in {2, 3} and not is_text(corpus[0]):
        return from_ids(*corpus)
    if isinstance(corpus, bytes | Mapping) or hasattr(corpus, "columns"):
        raise TypeError(f"corpus: expected {ACCEPTED}; got {type(corpus).__name__}")
    if not isinstance(corpus, Iterable):
        raise TypeError(f"corpus: expected {ACCEPTED}; got {type(corpus).__name__}")
    return from_texts(list(corpus))


def is_dataset(corpus: object) -> bool:
    """Of the package datasets."""
    return hasattr(corpus, "with_format") and hasattr(corpus, "column_names")


def table_of_dataset(dataset: Any) -> pa.Table:
    """All its columns."""
    if not hasattr(dataset, "__len__") or isinstance(dataset, Mapping):
        raise TypeError("corpus: pass one split, in memory, or an iterable of its sentences")
    table: pa.Table = dataset.with_format("arrow")[:]
    return table


def is_text(entry: object) -> bool:
    """A sentence or a path, not an array."""
    return isinstance(entry, str | bytes | os.PathLike) or not isinstance(entry, Iterable)


def from_texts(texts: list[Any]) -> Sentences:
    """Sentences, or paths where every entry is one."""
    if texts and all(
        isinstance(text, os.PathLike) or (isinstance(text, str) and names_files(text))
        for text in texts
    ):
        return join([read_file(path) for text in texts for path in find_files(os.fspath(text))])
    return from_strings(texts)


def names_files(text: str) -> bool:
    """Whether a string is a path rather than a sentence that ends in one."""
    return text.endswith(ENDINGS) and (" " not in text or os.path.exists(text))  # noqa: PTH110 - any string


def from_strings(texts: list[Any]) -> Sentences:
    """Python strings, each checked."""
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"corpus: entry {row} is {type(text).__name__} ({text!r:.40}); expected str"
            )
    try:
        return from_arrow(pa.array(texts, pa.large_string()), "corpus")
    except UnicodeEncodeError as error:
        row = next(row for row, text in enumerate(texts) if text == error.object)
        raise ValueError(
            f"corpus: entry {row} holds a lone surrogate at character {error.start}, which no "
            "UTF-8 text can hold"
        ) from None


def from_arrow(array: pa.Array | pa.ChunkedArray, where: str) -> Sentences:
    """Arrow strings, zero copy where they are one chunk of large_string."""
    if not is_strings(array.type):
        raise TypeError(f"{where}: expected an Arrow array of strings, got type {array.type}")
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if array.null_count:
        row = array.is_null().to_pylist().index(True)
        raise ValueError(f"{where}: row {row} is null; expected a string")
    if not valid(array):
        row = next(row for row in range(len(array)) if not valid(array[row : row + 1]))
        raise ValueError(f"{where}: row {row} is not valid UTF-8")
    array = array.cast(pa.large_string())
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    _, ends, data = array.buffers()
    if ends is None or not len(array):
        return Sentences(np.empty(0, np.uint8), np.zeros(1, np.int64))
    starts = np.frombuffer(ends, np.int64)[array.offset : array.offset + len(array) + 1]
    return Sentences(np.frombuffer(data or b"", np.uint8), starts)


def is_strings(kind: pa.DataType) -> bool:
    """Strings in any of Arrow's layouts."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def valid(array: pa.Array | pa.ChunkedArray) -> bool:
    """Whether all strings are valid UTF-8."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def from_table(table: pa.Table, where: str) -> Sentences:
    """The column of sentences."""
    strings = [field.name for field in table.schema if is_strings(field.type)]
    return from_arrow(table[text_column(strings, table.column_names, where)], where)


def text_column(strings: list[str], names: list[str], where: str) -> str:
    """`text`, `sentence`, or the only column of strings."""
    for name in TEXT_COLUMNS:
        if name in strings:
            return name
    if len(strings) != 1:
        raise ValueError(
            f"{where}: expected a column of strings named text or sentence, or only one column of "
            f"strings; found {len(strings)} among {', '.join(names)}"
        )
    return strings[0]


def from_ids(ids: Any, offsets: Any, vocabulary: Any = None) -> TokenIds:
    """Check token ids; `information_gain` needs them to be right, the kernels do not look."""
    ids, offsets = np.asarray(ids), np.asarray(offsets)
    for name, array in (("ids", ids), ("offsets", offsets)):
        if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
            raise ValueError(
                f"corpus: {name} must be one-dimensional integers; got shape {array.shape}, "
                f"dtype {array.dtype}"
            )
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(ids):
        ends = f"{offsets[0]} ... {offsets[-1]}" if len(offsets) else "nothing"
        raise ValueError(f"corpus: offsets must run from 0 to len(ids) = {len(ids)}; got {ends}")
    offsets = offsets.astype(np.int64, copy=False)
    falls = np.flatnonzero(np.diff(offsets) < 0)
    if len(falls):
        raise ValueError(
            f"corpus: offsets must not decrease; offsets[{falls[0] + 1}] = "
            f"{offsets[falls[0] + 1]} after {offsets[falls[0]]}"
        )
    words = None if vocabulary is None else list(vocabulary)
    limit = MOST_IDS if words is None else len(words)
    wrong = np.flatnonzero((ids < 0) | (ids >= limit)) if len(ids) else ids
    if len(wrong):
        raise ValueError(
            f"corpus: {len(wrong)} of {len(ids)} ids are outside [0, {limit}): first at "
            f"position {wrong[0]} (value {ids[wrong[0]]})"
        )
    if words is not None:
        check_vocabulary(words)
    return TokenIds(ids, offsets, words)


def check_vocabulary(words: list[Any]) -> None:
    """Distinct strings, so that every word has one row."""
    known: dict[str, int] = {}
    for i, word in enumerate(words):
        if not isinstance(word, str):
            raise TypeError(f"corpus: vocabulary[{i}] is {type(word).__name__}; expected str")
        if known.setdefault(word, i) != i:
            raise ValueError(f"corpus: vocabulary[{i}] repeats vocabulary[{known[word]}], {word!r}")


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


def read_file(path: Path) -> Sentences:
    """One file by its ending; a .txt holds one sentence a line."""
    readers = {".txt": read_lines, ".jsonl": read_jsonl, ".parquet": read_parquet}
    if path.suffix not in readers:
        raise ValueError(f"corpus: {path} ends in {path.suffix!r}; expected {', '.join(ENDINGS)}")
    try:
        return readers[path.suffix](path)
    except OSError as error:
        raise ValueError(f"corpus: {path} cannot be read: {error.strerror or error}") from error


def read_lines(path: Path) -> Sentences:
    """A UTF-8 text file, zero copy; line breaks stay at the ends of the sentences."""
    content = path.read_bytes()
    if not content.strip():
        raise ValueError(f"corpus: {path} is empty; expected one sentence a line")
    nul = content.find(b"\0")
    if nul >= 0:
        raise ValueError(
            f"corpus: {path} is a binary file (a NUL at byte {nul}); expected UTF-8 text"
        )
    data = np.frombuffer(content, np.uint8)[3 if content.startswith(b"\xef\xbb\xbf") else 0 :]
    whole = pa.LargeStringArray.from_buffers(
        1, pa.py_buffer(np.array([0, len(data)], np.int64)), pa.py_buffer(data)
    )
    if not valid(whole):
        raise ValueError(bad_line(path, content))
    breaks = np.flatnonzero(data == ord("\n")) + 1
    if len(breaks) and breaks[-1] == len(data):
        breaks = breaks[:-1]
    return Sentences(data, np.concatenate([[0], breaks, [len(data)]]))


def bad_line(path: Path, content: bytes) -> str:
    """The message for a file that is not UTF-8."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return (
            f"corpus: {path}, line {line}: invalid UTF-8 (byte 0x{content[error.start]:02x} at "
            f"offset {error.start}); expected UTF-8 text"
        )
    return f"corpus: {path}: invalid UTF-8"


def read_jsonl(path: Path) -> Sentences:
    """One JSON value a line: a string, or an object with the sentence in a field."""
    column, texts = None, []
    for number, line in enumerate(read_lines(path).texts(), start=1):
        if not line.strip():
            continue
        where = f"corpus: {path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            raise ValueError(f"{where}: not JSON ({reason}); expected one value a line") from None
        if isinstance(value, dict):
            if column is None:
                strings = [name for name, entry in value.items() if isinstance(entry, str)]
                column = text_column(strings, list(value), where)
            value = value.get(column)
        if not isinstance(value, str):
            raise ValueError(  # noqa: TRY004 - the file's content, not the caller's type
                f"{where}: expected a string, or an object with a string in a field"
            )
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{where}: a lone surrogate, which no UTF-8 text can hold") from None
        texts.append(value)
    return from_strings(texts)


def read_parquet(path: Path) -> Sentences:
    """The column of sentences of a Parquet file."""
    where = f"corpus: {path}"
    try:
        return from_table(pq.read_table(path), where)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{where} is not a Parquet file: {error}") from error


def join(parts: list[Sentences]) -> Sentences:
    """The sentences of several files, one after the other."""
    if len(parts) == 1:
        return parts[0]
    data = [part.data[part.starts[0] : part.starts[-1]] for part in parts]
    lengths = np.concatenate([np.diff(part.starts) for part in parts])
    return Sentences(np.concatenate(data), np.concatenate([[0], np.cumsum(lengths)]))
