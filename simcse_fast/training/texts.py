"""Columns of text from whatever a user trains on: files, hub names, lists, tables."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from simcse_fast.errors import InputError
from simcse_fast.information import corpus, readers
from simcse_fast.information.sentences import Sentences, from_arrow, is_strings

ENDINGS = (".txt", ".tsv", ".parquet", ".jsonl")
# For each argument the names under which its columns are looked for, the first match wins.
NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "unsupervised": (("text",), ("sentence",)),
    "triplets": (
        ("anchor", "positive", "negative"),
        ("query", "positive", "negative"),
        ("sent0", "sent1", "hard_neg"),
        ("anchor", "positive"),
        ("query", "positive"),
        ("sent0", "sent1"),
        ("sentence1", "sentence2"),
    ),
    "evaluate": (
        ("sentence1", "sentence2", "score"),
        ("sentence1", "sentence2", "label"),
        ("sentence1", "sentence2", "similarity_score"),
    ),
}
NAMES["corpus"] = NAMES["unsupervised"]  # of `pretrain_mlm`
ONE_COLUMN = ("unsupervised", "corpus")
WIDTHS = {"unsupervised": (1,), "corpus": (1,), "triplets": (2, 3), "evaluate": (3,)}
for _like_evaluate in ("development", "test"):  # of `sparsify`
    NAMES[_like_evaluate], WIDTHS[_like_evaluate] = NAMES["evaluate"], WIDTHS["evaluate"]
_POSITIVE = (("sentence1", "sentence2"), ("anchor", "positive"), ("query", "positive"))
NAMES["pairs"], WIDTHS["pairs"] = (*NAMES["evaluate"], *_POSITIVE), (2, 3)


def read_columns(source: object, argument: str) -> list[Sentences]:
    """The columns of text of one argument of `train`.

    Args:
        source: a path, the name of a data set on a hub, or values in memory.
        argument: "unsupervised" or "corpus" (one column), or "triplets" (two or three).

    Returns:
        Columns of one length: sentences; or anchors, positives and, where given, negatives.

    Raises:
        InputError: the source is missing, empty, malformed, or has other columns.
    """
    table = read_table(source, argument)
    if isinstance(table, Sentences):
        if argument not in ONE_COLUMN:
            raise InputError(
                f"{argument}: {label(source)} holds one column of text; expected 2 or 3"
            )
        columns = [table]
    else:
        names = choose(table, argument)
        columns = [strings_of(table[name], f"{argument}: column {name}") for name in names]
    if not len(columns[0]):
        raise InputError(f"{argument}: {label(source)} is empty; expected at least two rows")
    return columns


def read_scored_pairs(
    source: object, argument: str = "evaluate"
) -> tuple[list[str], list[str], list[float]]:
    """Sentence pairs and their scores, of an argument that takes what `evaluate` takes."""
    first, second, scores = read_pairs(source, argument)
    return first, second, scores or []


def read_pairs(source: object, argument: str) -> tuple[list[str], list[str], list[float] | None]:
    """Sentence pairs, and their scores where the argument may do without and they have none."""
    table = read_table(source, argument)
    if isinstance(table, Sentences):
        raise InputError(
            f"{argument}: {label(source)} holds sentences; expected sentence1, sentence2, score"
        )
    if not len(table):
        raise InputError(f"{argument}: {label(source)} is empty; expected pairs of sentences")
    first, second, *scored = choose(table, argument)
    columns = [strings_of(table[name], f"{argument}: column {name}") for name in (first, second)]
    texts = [[text.strip() for text in column.texts()] for column in columns]
    if not scored:
        return texts[0], texts[1], None
    (score,) = scored
    try:
        scores = table[score].cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise InputError(f"{argument}: column {score} must hold numbers ({error})") from None
    if len(scores) < 2 or not np.isfinite(scores).all() or np.ptp(scores) == 0:  # noqa: PLR2004 - a rank correlation needs two
        raise InputError(
            f"{argument}: column {score} must hold two or more finite scores that are not all equal"
        )
    return texts[0], texts[1], scores.tolist()


def label(source: object) -> str:
    """How a message calls a source."""
    return str(source) if isinstance(source, str | os.PathLike) else type(source).__name__


def read_table(source: Any, argument: str) -> pa.Table | Sentences:
    """The source as it is, its columns not yet chosen."""
    try:
        if isinstance(source, str | os.PathLike):
            return read_path(os.fspath(source), argument)
        if corpus.is_dataset(source):
            return corpus.table_of_dataset(source)
        if hasattr(source, "__arrow_c_stream__"):  # tables, data frames
            return pa.table(source)
        if argument in ONE_COLUMN and not isinstance(source, Mapping):
            return texts_of(corpus.read_corpus(source), argument)
        return table_of(source, argument)
    except InputError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{argument}: {label(source)} cannot be read ({reason})") from error
    except ValueError as error:
        raise InputError(f"{argument}: {str(error).removeprefix('corpus: ')}") from error
    except TypeError as error:
        raise TypeError(f"{argument}: {str(error).removeprefix('corpus: ')}") from error


def read_path(name: str, argument: str) -> pa.Table | Sentences:
    """A file by its ending; a name that is no file is looked for on the hub."""
    path = Path(name)
    if path.suffix in ENDINGS or path.exists():
        if path.suffix == ".txt":
            return texts_of(readers.read_lines(path), argument)
        read = {".tsv": read_tsv, ".jsonl": read_jsonl, ".parquet": read_parquet}
        if path.suffix not in read:
            raise InputError(f"{argument}: {path} must end in one of {', '.join(ENDINGS)}")
        return read[path.suffix](path, argument)
    try:
        split = import_module("datasets").load_dataset(name, split="train")
    except ModuleNotFoundError:
        raise
    except Exception as error:  # the hub's client raises whatever its transport does
        raise InputError(
            f"{argument}: {name} is no file, and no data set of that name can be loaded "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    return corpus.table_of_dataset(split)


def read_tsv(path: Path, argument: str) -> pa.Table:
    """Tab-separated fields without quoting; a first line that holds known names is a header."""
    lines = readers.read_lines(path)
    first = next(line for line in lines.texts() if line.strip()).split("\t")
    named = any(set(names) <= set(first) for names in NAMES[argument])
    if not named and len(first) not in WIDTHS[argument]:
        raise InputError(f"{argument}: {path}, line 1: {fields_expected(argument, len(first))}")
    names = first if named else [str(number) for number in range(len(first))]
    for number, line in enumerate(lines.texts(), start=1):
        found = line.count("\t") + 1
        if found != len(first) and line.strip():
            wanted = ", ".join(names if named else NAMES[argument][0][: len(first)])
            raise InputError(
                f"{argument}: {path}, line {number}: expected {len(first)} tab-separated fields "
                f"({wanted}), found {found}"
            )
    return pyarrow.csv.read_csv(
        pa.BufferReader(pa.py_buffer(lines.data)),
        read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=int(named)),
        parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )


def fields_expected(argument: str, found: int) -> str:
    """The sentence on a file with too few or too many columns."""
    names = ", ".join(NAMES[argument][0])
    numbers = " or ".join(map(str, WIDTHS[argument]))
    return f"expected {numbers} tab-separated fields ({names}), found {found}"


def read_jsonl(path: Path, argument: str) -> pa.Table | Sentences:
    """One JSON object a line with the columns in its fields, or one string a line."""
    if argument in ONE_COLUMN:
        return texts_of(readers.read_jsonl(path), argument)
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(readers.read_lines(path).texts(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or (rows and value.keys() != rows[0].keys()):
            wanted = ", ".join(rows[0] if rows else NAMES[argument][0])
            raise InputError(
                f"{argument}: {path}, line {number}: expected a JSON object with {wanted}"
            )
        rows.append(value)
    return pa.Table.from_pylist(rows)


def read_parquet(path: Path, argument: str) -> pa.Table:
    """A Parquet file."""
    try:
        return pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{argument}: {path} is not a Parquet file: {error}") from error


def table_of(source: Any, argument: str) -> pa.Table:
    """Columns by name, or rows of texts, from memory."""
    if isinstance(source, Mapping):
        lengths = {name: len(column) for name, column in source.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise InputError(f"{argument}: columns must have one length; found {told}")
        return pa.table({name: list(column) for name, column in source.items()})
    given = list(source)
    if not given:
        raise InputError(f"{argument}: {label(source)} is empty; expected at least two rows")
    if all(isinstance(row, Mapping) for row in given):
        return pa.Table.from_pylist(given)
    for number, row in enumerate(given):
        if isinstance(row, str | bytes | Mapping):
            raise InputError(
                f"{argument}: row {number} is a {type(row).__name__}; expected a tuple of texts"
            )
    rows = [tuple(row) for row in given]
    widths = {len(row) for row in rows}
    if len(widths) > 1 or not widths <= set(WIDTHS[argument]):
        wrong = next(n for n, row in enumerate(rows) if len(row) != len(rows[0]) or len(widths) < 2)  # noqa: PLR2004 - widths differ
        numbers = " or ".join(map(str, WIDTHS[argument]))
        raise InputError(
            f"{argument}: row {wrong} has {len(rows[wrong])} texts; expected {numbers} in each row"
        )
    columns = zip(*rows, strict=True)
    return pa.table({str(n): list(column) for n, column in enumerate(columns)})


def choose(table: pa.Table, argument: str) -> list[str]:
    """The columns by their names; by their place, where there are just as many as wanted."""
    if len(set(table.column_names)) < len(table.column_names):
        raise InputError(
            f"{argument}: expected each column once; found {', '.join(table.column_names)}"
        )
    for names in NAMES[argument]:
        if set(names) <= set(table.column_names):
            return list(names)
    if argument in ONE_COLUMN:
        strings = [field.name for field in table.schema if is_strings(field.type)]
        if len(strings) == 1:
            return strings
    elif len(table.column_names) in WIDTHS[argument]:
        return list(table.column_names)
    wanted = " or ".join(f"({', '.join(names)})" for names in NAMES[argument][:2])
    found = ", ".join(table.column_names) or "none"
    raise InputError(f"{argument}: expected the columns {wanted}; found {found}")


def strings_of(column: pa.ChunkedArray, where: str) -> Sentences:
    """A column of an Arrow table."""
    try:
        return texts_of(from_arrow(column, where), where)
    except ValueError as error:
        raise InputError(str(error)) from None


def texts_of(sentences: Any, argument: str) -> Sentences:
    """What the readers of corpora give, where it is text."""
    if not isinstance(sentences, Sentences):
        raise TypeError(f"{argument}: expected texts, got token ids")
    return sentences
