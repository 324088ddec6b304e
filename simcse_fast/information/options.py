"""The options of information_gain, checked once."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {f"{unit}I": 1024**power for power, unit in enumerate("KMGT", start=1)}


@dataclass(frozen=True)
class Options:
    """See `information_gain`; context is `window` here, 0 for a whole sentence."""

    tokenizer: Any
    window: int
    presence: bool
    probability: str
    min_count: int
    correction: str | None
    rounds: int
    seed: int
    split_sentences: str | None
    column: str | None
    threads: int
    memory_limit: int | None
    cache: Path | str | bool
    return_counts: Path | bool
    engine: str
    progress: bool


def check_options(context: Any, threads: Any, memory_limit: Any, **given: Any) -> Options:
    """All options in the form in which they are used.

    Raises:
        TypeError: an option is of a kind that it does not take.
        ValueError: its value is out of range, or does not go with another's.
    """
    for name, names in (
        ("correction", (None, "null", "shuffle")),
        ("probability", ("unigram", "marginal")),
        ("engine", ("local", "spark")),
    ):
        if given[name] not in names:
            raise ValueError(f"{name}: expected {one_of(names)}; got {given[name]!r}")
    for name in ("min_count", "rounds"):
        whole(name, given[name], 1)
    whole("seed", given["seed"], 0)
    for name in ("presence", "progress"):
        if not isinstance(given[name], bool | np.bool_):
            raise TypeError(f"{name}: expected True or False, got {given[name]!r}")
    given["return_counts"] = flag_or_path("return_counts", given["return_counts"])
    if given["cache"] != "auto":
        given["cache"] = flag_or_path("cache", given["cache"])
    given["split_sentences"] = language(given["split_sentences"])
    options = Options(
        window=window(context),
        threads=available_cores() if threads is None else whole("threads", threads, 1),
        memory_limit=None if memory_limit is None else size("memory_limit", memory_limit),
        **given,
    )
    check_together(options, context)
    return options


def check_together(options: Options, context: Any) -> None:
    """What does not go together."""
    if options.presence and options.window:
        raise ValueError(
            f"presence: counts sentences that hold both words; it has no meaning for the window "
            f"context={context!r}"
        )
    if options.presence and options.correction == "shuffle":
        raise ValueError(
            'correction: "shuffle" would put a word twice into a sentence, which presence=True '
            'excludes; expected None or "null"'
        )
    if options.split_sentences and context == "document":
        raise ValueError('split_sentences: context="document" counts whole texts; leave it out')
    if options.engine == "spark":
        check_for_spark(options)


def check_for_spark(options: Options) -> None:
    """What only one machine does."""
    local = {
        "tokenizer": options.tokenizer != "words",
        "context": options.window > 0,
        "correction": options.correction == "shuffle",
        "split_sentences": options.split_sentences is not None,
        "memory_limit": options.memory_limit is not None,
        "return_counts": options.return_counts is not False,
    }
    for name, asked in local.items():
        if asked:
            raise ValueError(f'{name}: engine="spark" takes the default here; or engine="local"')


def one_of(names: tuple[Any, ...]) -> str:
    """None, "a" or "b"."""
    quoted = [f'"{name}"' if isinstance(name, str) else str(name) for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]])


def whole(name: str, value: Any, least: int) -> int:
    """A whole number from `least` on."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__} ({value!r})")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return int(value)


def window(context: Any) -> int:
    """Positions to either side, 0 for the whole text."""
    if isinstance(context, str) and context in {"sentence", "document"}:
        return 0
    if isinstance(context, bool) or not isinstance(context, int | np.integer):
        raise ValueError(  # noqa: TRY004 - any other string is as wrong
            f'context: expected "sentence", "document" or a number of words to either side; got '
            f"{context!r}"
        )
    return whole("context", context, 1)


def size(name: str, value: Any) -> int:
    """Bytes, as a number or as in "2 GB" or "512 MiB"."""
    given = value
    if isinstance(value, str):
        found = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?I?)B?\s*", value.upper())
        try:
            value = int(float(found[1]) * UNITS[found[2]]) if found else None
        except (KeyError, ValueError):
            value = None
        if value is None:
            raise ValueError(f'{name}: expected bytes or a size as in "2 GB", got {given!r}')
    return whole(name, value, 1)


def flag_or_path(name: str, value: Any) -> bool | Path:
    """True, False, or where."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str | os.PathLike):
        return Path(value)
    raise TypeError(f"{name}: expected True, False or a path, got {value!r}")


def language(value: Any) -> str | None:
    """The code of a language of running text: True is English."""
    if value is None or isinstance(value, bool):
        return "en" if value else None
    if not isinstance(value, str) or not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z-]+)?", value):
        raise ValueError(
            f'split_sentences: expected True or a language\'s code as in "de"; got {value!r}'
        )
    return value


def available_cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
