"""What all commands share: arguments with one-sentence errors, output for people and machines."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from simcse_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BAD_INPUT, INTERRUPTED = 2, 130


class Parser(argparse.ArgumentParser):
    """One sentence for a wrong argument, without the usage above it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave."""
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def complain(sentence: str, code: int) -> int:
    """One sentence to the person, the code to the shell."""
    sys.stderr.write(f"simcse-fast: {' '.join(sentence.split())}\n")
    return code


@contextmanager
def bad_input(output: Path) -> Iterator[None]:
    """What cannot be used or written, in one sentence."""
    try:
        yield
    except OSError as error:
        where = error.filename or output
        raise InputError(
            f"--output {output}: {where} cannot be written ({error.strerror or error})"
        ) from error
    except TypeError as error:
        raise InputError(str(error)) from error


def whole(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from `least` on."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number >= {least}, got {text!r}")
        return value

    return convert


def number(text: str) -> float:
    """The type of an option that is a number; its range is checked where it is used."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None


def say(step: str) -> None:
    """What is being done, where a person watches."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{step} ...\n")


def bold(text: str) -> str:
    """Bold on a terminal, unless NO_COLOR is set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain or not sys.stdout.isatty() else f"\033[1m{text}\033[0m"


def write_lines(lines: list[str]) -> None:
    """Text to standard output; letters that its encoding lacks are escaped."""
    text, encoding = "\n".join(lines) + "\n", sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def write_json(value: object) -> None:
    """JSON to standard output; dataclasses as objects."""
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=plain, default=vars) + "\n")
