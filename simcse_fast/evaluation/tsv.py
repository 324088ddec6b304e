"""Tasks as tab-separated files with a header, without quoting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simcse_fast.errors import InputError
from simcse_fast.evaluation.rows import (
    Labelled,
    Pairs,
    labelled_of,
    number_of,
    pairs_of,
    read_lines,
)
from simcse_fast.evaluation.tasks import TRANSFER

if TYPE_CHECKING:
    from pathlib import Path

    from simcse_fast.evaluation.tasks import Task

PAIRS = ("source", "score", "sentence1", "sentence2")
SINGLE = ("label", "sentence")
DOUBLE = ("label", "sentence1", "sentence2")
OMITTED = {"sts13": "SMT"}  # not free, and in no published figure


def file_of(root: Path, task: Task, part: str) -> Path:
    """sts/stsb_test.tsv, transfer/mr.tsv, ..."""
    folder = "transfer" if task.kind == TRANSFER else "sts"
    return root / folder / f"{task.data}{'_' if part else ''}{part}.tsv"


def read_pairs(root: Path, task: Task, part: str) -> Pairs:
    """Pairs with gold scores.

    Raises:
        ValueError: the file, or a line of it, is not as expected.
    """
    path = file_of(root, task, part)
    rows = [
        (source, number_of(score, path, line), first, second)
        for line, (source, score, first, second) in enumerate(_fields(path, PAIRS), start=2)
    ]
    return pairs_of(rows, path, OMITTED.get(task.data))


def read_labelled(root: Path, task: Task, part: str) -> Labelled:
    """Sentences with classes.

    Raises:
        ValueError: the file, or a line of it, is not as expected.
    """
    path = file_of(root, task, part)
    names = DOUBLE if task.name == "MRPC" else SINGLE
    return labelled_of([tuple(row) for row in _fields(path, names)], path)


def _fields(path: Path, names: tuple[str, ...]) -> list[list[str]]:
    """All rows behind the header, as the names order them."""
    header, *lines = read_lines(path)
    found = header.split("\t")
    if set(found) != set(names) or len(found) != len(names):
        raise InputError(
            f"{path}, line 1: expected the header {' '.join(names)} between tabs, got {header!r}."
        )
    if not lines:
        raise InputError(f"{path}: holds only its header; expected one row a line.")
    order = [found.index(name) for name in names]
    rows = []
    for number, line in enumerate(lines, start=2):
        fields = line.split("\t")
        if len(fields) != len(names):
            raise InputError(
                f"{path}, line {number}: expected {len(names)} tab-separated fields "
                f"({', '.join(found)}), found {len(fields)}."
            )
        rows.append([fields[place] for place in order])
    return rows
