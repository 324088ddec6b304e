"""Whatever a user calls a corpus, as parts of sentences or as token ids."""

import os
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from simcse_fast.information.readers import (
    BLOCK,
    ENDINGS,
    ROWS,
    Source,
    column_of,
    find_files,
    read_parts,
)
from simcse_fast.information.sentences import (
    Part,
    Repairs,
    Sentences,
    TokenIds,
    from_arrow,
    from_strings,
    join,
)

ACCEPTED = (
    "sentences (an iterable of str, an Arrow array, a datasets.Dataset), a path or paths to .txt, "
    ".parquet or .jsonl, or token ids as (ids, offsets) or (ids, offsets, vocabulary)"
)
MOST_IDS = 1 << 31


@dataclass(frozen=True)
class Text:
    """Sentences to be read once, part by part."""

    parts: Iterator[Part]
    total: int | None  # of what `Part.done` counts up to, where it is known
    files: tuple[Path, ...] = ()


def open_corpus(
    corpus: object, column: str | None = None, repairs: Repairs | None = None
) -> Text | TokenIds:
    """Everything that `information_gain` accepts, ready to be read."""
    if isinstance(corpus, tuple) and len(corpus) in {2, 3} and not is_text(corpus[0]):
        return from_ids(*corpus)
    files = files_of(corpus)
    if files is not None:
        return text_of_files(files, column, repairs)
    if isinstance(corpus, pa.Array | pa.ChunkedArray):
        return Text(array_parts(corpus, repairs), corpus.nbytes)
    if is_dataset(corpus) and isinstance(corpus, Mapping):
        raise TypeError(f"corpus: pass one split; got {type(corpus).__name__}")
    if isinstance(corpus, bytes | Mapping):
        raise TypeError(f"corpus: expected {ACCEPTED}; got {type(corpus).__name__}")
    if is_dataset(corpus):
        return Text(batch_parts(batches_of_dataset(corpus), column, repairs), None)
    if is_table(corpus):
        reader = pa.RecordBatchReader.from_stream(corpus)
        parts = (batch.slice(row, ROWS) for batch in reader for row in range(0, len(batch), ROWS))
        return Text(batch_parts(parts, column, repairs, reader.schema), None)
    if not isinstance(corpus, Iterable) or hasattr(corpus, "columns"):
        raise TypeError(f"corpus: expected {ACCEPTED}; got {type(corpus).__name__}")
    return text_of_strings(iter(corpus), column, repairs)


def read_corpus(corpus: object) -> Sentences | TokenIds:
    """Everything that `information_gain` accepts, read into memory; invalid UTF-8 is an error."""
    opened = open_corpus(corpus)
    if isinstance(opened, TokenIds):
        return opened
    return join([part.sentences for part in opened.parts])


def files_of(corpus: object) -> list[Path] | None:
    """The files, where a path or a sequence of nothing but paths is given."""
    if isinstance(corpus, str | os.PathLike):
        return find_files(os.fspath(corpus))
    if isinstance(corpus, list | tuple) and corpus and all(map(is_path, corpus)):
        return [path for name in corpus for path in find_files(os.fspath(name))]
    return None


def is_path(entry: object) -> bool:
    """A path, or a string that is one rather than a sentence that ends in one."""
    if not isinstance(entry, str):
        return isinstance(entry, os.PathLike)
    return entry.endswith(ENDINGS) and (" " not in entry or os.path.exists(entry))  # noqa: PTH110 - any string


def text_of_files(files: list[Path], column: str | None, repairs: Repairs | None) -> Text:
    """The sentences of all files, one after the other."""
    sizes = [path.stat().st_size for path in files]

    def parts() -> Iterator[Part]:
        before = 0
        for path, size in zip(files, sizes, strict=True):
            for part in read_parts(Source(path, column, repairs)):
                yield Part(part.sentences, before + part.done)
            before += size

    return Text(parts(), sum(sizes), tuple(files))


def text_of_strings(texts: Iterator[Any], column: str | None, repairs: Repairs | None) -> Text:
    """The sentences of an iterable; or those of files, where it gives nothing but paths."""
    paths: list[Any] = []
    for text in texts:
        if not is_path(text):
            return Text(string_parts(chain(paths, [text], texts)), None)
        paths.append(text)
    if not paths:
        return Text(string_parts(iter([])), None)
    files = [path for name in paths for path in find_files(os.fspath(name))]
    return text_of_files(files, column, repairs)


def string_parts(texts: Iterator[Any]) -> Iterator[Part]:
    """Python strings, some thousands at a time; fewer where they are long."""
    row, done = 0, 0
    batch: list[Any] = []
    length = 0
    for text in texts:
        batch.append(text)
        length += len(text) if isinstance(text, str) else 0
        if len(batch) == ROWS or length >= BLOCK:
            found = from_strings(batch, first=row)
            row, done = row + len(batch), done + int(found.starts[-1] - found.starts[0])
            batch, length = [], 0
            yield Part(found, done)
    found = from_strings(batch, first=row)
    yield Part(found, done + int(found.starts[-1] - found.starts[0]))


def array_parts(array: pa.Array | pa.ChunkedArray, repairs: Repairs | None) -> Iterator[Part]:
    """Slices of an Arrow array."""
    step = max(1, len(array) * BLOCK // max(array.nbytes, 1))
    yield Part(from_arrow(array[:0], "corpus"), 0)  # says so at once where it holds no strings
    for first in range(0, len(array), step):
        part = array[first : first + step]
        found = from_arrow(part, "corpus", repairs, first)
        yield Part(found, (first + len(part)) * array.nbytes // len(array))


def batch_parts(
    batches: Iterable[Any],
    column: str | None,
    repairs: Repairs | None,
    schema: pa.Schema | None = None,
) -> Iterator[Part]:
    """The column of sentences of Arrow tables or batches of rows."""
    first, done = 0, 0
    if schema is not None:
        column_of(schema, "corpus", column)
    for batch in batches:
        name = column_of(batch.schema, "corpus", column)
        found = from_arrow(batch[name], "corpus", repairs, first)
        first, done = first + len(found), done + int(found.starts[-1] - found.starts[0])
        yield Part(found, done)


def is_table(corpus: object) -> bool:
    """A table or data frame, or a reader of batches, by Arrow's own interface."""
    return isinstance(corpus, pa.RecordBatchReader) or (
        hasattr(corpus, "__arrow_c_stream__") and hasattr(corpus, "columns")
    )


def is_dataset(corpus: object) -> bool:
    """Of the package datasets."""
    return hasattr(corpus, "with_format") and hasattr(corpus, "column_names")


def batches_of_dataset(dataset: Any) -> Iterator[pa.Table]:
    """All its columns, some rows at a time; streaming data sets as they come."""
    # Rows may be whole books: few at a time, and no more than these in memory.
    batches: Iterator[pa.Table] = dataset.with_format("arrow").iter(batch_size=max(1, ROWS // 16))
    return batches


def table_of_dataset(dataset: Any) -> pa.Table:
    """All its columns, in memory."""
    if not hasattr(dataset, "__len__") or isinstance(dataset, Mapping):
        raise TypeError("corpus: pass one split, in memory, or an iterable of its sentences")
    table: pa.Table = dataset.with_format("arrow")[:]
    return table


def is_text(entry: object) -> bool:
    """A sentence or a path, not an array."""
    return isinstance(entry, str | bytes | os.PathLike) or not isinstance(entry, Iterable)


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
    if isinstance(vocabulary, pa.Array | pa.ChunkedArray):
        vocabulary = vocabulary.to_pylist()
    if isinstance(vocabulary, Mapping | AbstractSet):
        raise TypeError(
            "corpus: vocabulary must be a list, the word of id 0 first; got "
            f"{type(vocabulary).__name__}"
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
