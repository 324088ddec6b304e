"""simcse-fast information."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.cli.common import Parser, whole, write_json, write_lines
from simcse_fast.errors import InputError
from simcse_fast.files import written_whole

if TYPE_CHECKING:
    import argparse

    from simcse_fast.information import InformationTable


def add_information(commands: Any) -> Parser:
    """simcse-fast information."""
    information: Parser = commands.add_parser(
        "information",
        help="information gain of the words of a corpus",
        description="Count how far the words around each word are from words at large.",
        epilog="example:\n  simcse-fast information wiki.txt --top 20 --output words.parquet",
    )
    information.add_argument("corpus", nargs="+", help=".txt (a sentence a line), .parquet, .jsonl")
    information.add_argument(
        "--tokenizer",
        default="words",
        metavar="NAME",
        help="words (default), a tokenizer.json, or a model's name or folder",
    )
    information.add_argument("--min-count", type=whole(1), default=10, metavar="N")
    information.add_argument("--top", type=whole(1), default=10, metavar="N", help="rows to print")
    information.add_argument(
        "--by", choices=("count", "information_gain"), default="information_gain"
    )
    information.add_argument("--threads", type=whole(1), metavar="N")
    information.add_argument(
        "--output", type=Path, metavar="FILE", help="the whole table, .parquet or .csv"
    )
    information.set_defaults(run=information_command)
    return information


def information_command(options: argparse.Namespace) -> None:
    """Count and print the top of the table."""
    ending = options.output.suffix if options.output else ".csv"
    if ending not in {".parquet", ".csv"}:
        raise InputError(f"--output {options.output}: expected a name in .parquet or .csv")
    information = import_module("simcse_fast.information")
    try:
        table: InformationTable = information.information_gain(
            [Path(name) for name in options.corpus],  # a name is never a sentence
            tokenizer=load_tokenizer(options.tokenizer),
            min_count=options.min_count,
            threads=options.threads,
        )
    except ValueError as error:
        raise InputError(str(error).removeprefix("corpus: ")) from error
    if options.output:
        write_table(table, options.output)
    rows = table.top(options.top, by=options.by)
    if not options.json:
        rare = f"\nNo word occurs {options.min_count} times; --min-count 1 shows all."
        write_lines([repr(rows) + ("" if len(table) else rare)])
        return
    records = [
        {name: None if value != value else value for name, value in row.items()}  # noqa: PLR0124 - NaN
        for row in rows.arrow.to_pylist()
    ]
    totals = {name: getattr(table, name) for name in ("tokens", "sentences", "vocabulary_size")}
    write_json({**totals, "words": records})


def load_tokenizer(name: str) -> Any:
    """The tokenizer "words", one in a tokenizer.json, or a model's."""
    if name == "words":
        return name
    try:
        if name.endswith(".json"):
            return import_module("tokenizers").Tokenizer.from_file(name)
        return import_module("transformers").AutoTokenizer.from_pretrained(name)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"--tokenizer {name}: cannot be loaded ({error})") from error


def write_table(table: InformationTable, path: Path) -> None:
    """Under another name first, so that a table that is there is whole."""
    try:
        with written_whole(path) as unfinished:
            if path.suffix == ".csv":
                import_module("pyarrow.csv").write_csv(table.arrow, unfinished)
            else:
                table.to_parquet(unfinished)
    except OSError as error:
        raise InputError(
            f"--output {path}: cannot be written ({error.strerror or error})"
        ) from error
