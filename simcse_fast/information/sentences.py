"""Sentences as UTF-8 in Arrow's layout, and token ids."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

REPLACEMENT = "\ufffd"


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


class Part(NamedTuple):
    """Some sentences of a corpus, and how far it is read: bytes of its files, or of text."""

    sentences: Sentences
    done: int


@dataclass
class Repairs:
    """What was no UTF-8 and became U+FFFD, the replacement character; said once."""

    replaced: int = 0
    first: str = ""

    def add(self, count: int, where: str) -> None:
        """Remember how many characters were replaced, and where the first one was."""
        self.first = self.first or where * (count > 0)
        self.replaced += count

    def forget(self) -> None:
        """Begin again."""
        self.replaced, self.first = 0, ""

    def tell(self) -> None:
        """Warn whoever calls the public function, if anything was replaced."""
        if self.replaced:
            times = "once" if self.replaced == 1 else f"{self.replaced:,} times, first"
            warnings.warn(
                f"corpus: invalid UTF-8 was replaced by U+FFFD {times} in {self.first}",
                stacklevel=3,
            )


def from_strings(texts: list[Any], where: str = "corpus", first: int = 0) -> Sentences:
    """Python strings, each checked; `first` is the number of the first."""
    for row, text in enumerate(texts, start=first):
        if not isinstance(text, str):
            raise TypeError(
                f"{where}: entry {row} is {type(text).__name__} ({text!r:.40}); expected str"
            )
    try:
        return from_arrow(pa.array(texts, pa.large_string()), where)
    except UnicodeEncodeError as error:
        row = next(row for row, text in enumerate(texts, start=first) if text == error.object)
        raise ValueError(
            f"{where}: entry {row} holds a lone surrogate at character {error.start}, which no "
            "UTF-8 text can hold"
        ) from None


def from_arrow(
    array: pa.Array | pa.ChunkedArray, where: str, repairs: Repairs | None = None, first: int = 0
) -> Sentences:
    """Arrow strings, zero copy where they are one chunk of large_string.

    Args:
        array: strings in any of Arrow's layouts.
        where: how a message calls the array.
        repairs: takes note of invalid UTF-8, which is replaced; without it that is an error.
        first: the number of the first row.
    """
    if not is_strings(array.type):
        raise TypeError(f"{where}: expected an Arrow array of strings, got type {array.type}")
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if array.null_count:
        row = first + array.is_null().to_pylist().index(True)
        raise ValueError(f"{where}: row {row} is null; expected a string")
    if not valid(array):
        array = repaired(array, where, repairs, first)
    array = array.cast(pa.large_string())
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    _, ends, data = array.buffers()
    if ends is None or not len(array):
        return Sentences(np.empty(0, np.uint8), np.zeros(1, np.int64))
    starts = np.frombuffer(ends, np.int64)[array.offset : array.offset + len(array) + 1]
    return Sentences(np.frombuffer(data or b"", np.uint8), starts)


def repaired(
    array: pa.Array | pa.ChunkedArray, where: str, repairs: Repairs | None, first: int
) -> pa.Array:
    """Valid strings in the place of those that are not."""
    rows = [row for row in range(len(array)) if not valid(array[row : row + 1])]
    if repairs is None:
        raise ValueError(f"{where}: row {first + rows[0]} is not valid UTF-8")
    whole = array.cast(pa.large_binary()).to_pylist()
    for row in rows:
        text = whole[row].decode("utf-8", "replace")
        known = whole[row].count(REPLACEMENT.encode())
        repairs.add(
            text.count(REPLACEMENT) - known, f"{where}, row {first + row}".removeprefix("corpus: ")
        )
        whole[row] = text.encode()
    return pa.array(whole, pa.large_binary()).view(pa.large_string())


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


def join(parts: list[Sentences]) -> Sentences:
    """All sentences, one after the other."""
    if len(parts) == 1:
        return parts[0]
    data = [part.data[part.starts[0] : part.starts[-1]] for part in parts]
    lengths = np.concatenate([np.empty(0, np.int64), *(np.diff(part.starts) for part in parts)])
    every = np.concatenate([np.empty(0, np.uint8), *data])
    return Sentences(every, np.concatenate([[0], np.cumsum(lengths)]))
