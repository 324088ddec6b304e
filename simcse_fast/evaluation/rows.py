"""What tasks are made of, and lines of files as text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simcse_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Pairs:
    """Pairs of sentences with gold scores; those without one are left out."""

    first: list[str]
    second: list[str]
    scores: NDArray[np.float64]
    sources: list[str]  # of each pair
    dropped: int  # pairs without gold, or not of the task
    file: Path  # where they are from; a folder where they are from several

    @property
    def texts(self) -> list[str]:
        """All sentences."""
        return [*self.first, *self.second]


@dataclass(frozen=True)
class Labelled:
    """Sentences, or pairs of sentences, and their classes."""

    columns: tuple[list[str], ...]  # one or two
    labels: list[str]
    file: Path

    @property
    def texts(self) -> list[str]:
        """All sentences."""
        return [text for column in self.columns for text in column]


def read_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """Lines without their ends; those at the end that are empty are none.

    Raises:
        ValueError: the file cannot be read, is empty, or a line is not of this encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    lines = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            lines.append(line.rstrip(b"\r").decode(encoding))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number}: invalid UTF-8 ({error.reason}).") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise InputError(f"{path}: is empty; expected one row a line.")
    return lines


def number_of(text: str, path: Path, line: int) -> float:
    """A gold score; NaN where there is none.

    Raises:
        ValueError: it is no number.
    """
    if not text.strip():
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}, line {line}: expected a number as score, got {text!r}.")
    return value


def clean(text: str) -> str:
    """Words with one blank between them, as SentEval hands them to an encoder."""
    return " ".join(text.split())


def pairs_of(
    rows: Sequence[tuple[str, float, str, str]], path: Path, omit: str | None = None
) -> Pairs:
    """Rows of (source, score, sentence, sentence), those without gold or of one source left out.

    Raises:
        ValueError: no row is left.
    """
    kept = [row for row in rows if not math.isnan(row[1]) and row[0] != omit]
    if not kept:
        raise InputError(f"{path}: none of {len(rows)} pairs has a score; expected one a line.")
    sources, scores, first, second = zip(*kept, strict=True)
    return Pairs(
        first=[clean(text) for text in first],
        second=[clean(text) for text in second],
        scores=np.array(scores),
        sources=list(sources),
        dropped=len(rows) - len(kept),
        file=path,
    )


def labelled_of(rows: Sequence[tuple[str, ...]], path: Path) -> Labelled:
    """Rows of (label, sentence, ...).

    Raises:
        ValueError: all are of one class.
    """
    labels, *columns = zip(*rows, strict=True)
    if len(set(labels)) == 1:
        raise InputError(f"{path}: all {len(rows)} rows are of class {labels[0]!r}; expected two.")
    return Labelled(
        columns=tuple([clean(text) for text in column] for column in columns),
        labels=list(labels),
        file=path,
    )
