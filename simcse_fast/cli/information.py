"""simcse-fast information."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.cli.common import Parser, bold, whole, write_json, write_lines
from simcse_fast.errors import BackendUnavailableError, InputError
from simcse_fast.files import written_whole

if TYPE_CHECKING:
    import argparse

    from simcse_fast.information import InformationTable
    from simcse_fast.information.table import Column

PICTURES = {".png", ".svg", ".pdf"}
TABLES = {".parquet", ".csv"}
IN_A_BAND = 8  # words named of each band of frequency


def add_information(commands: Any) -> Parser:
    """simcse-fast information."""
    information: Parser = commands.add_parser(
        "information",
        help="information gain of the words of a corpus",
        description="Count how far the words around each word are from words at large.",
        epilog="example:\n  simcse-fast information wiki.parquet --top 20 --out words.parquet "
        "--plot words.png",
    )
    add_reading(information)
    add_counting(information)
    information.add_argument("--top", type=whole(1), default=10, metavar="N", help="rows to print")
    information.add_argument(
        "--by", choices=("count", "information_gain", "corrected"), default="information_gain"
    )
    information.add_argument(
        *("--out", "--output"),
        type=Path,
        metavar="FILE",
        help="the whole table, .parquet or .csv",
        dest="output",
    )
    information.add_argument(
        "--plot", type=Path, metavar="FILE", help="gain against frequency, .png, .svg or .pdf"
    )
    information.add_argument(
        "--counts", type=Path, metavar="FILE", help="counts of all pairs of words, .parquet"
    )
    information.set_defaults(run=information_command)
    return information


def add_reading(information: Parser) -> None:
    """What is read, and how it becomes words."""
    information.add_argument(
        "corpus",
        nargs="+",
        help=".txt (a sentence a line), .jsonl, either as .gz or .zst too, .parquet; globs",
    )
    information.add_argument(
        "--column", metavar="NAME", help="where it is neither text nor sentence"
    )
    information.add_argument(
        "--split-sentences",
        nargs="?",
        const="en",
        metavar="LANGUAGE",
        help="texts are running text, to be split first; a language's code, by default en",
    )
    information.add_argument(
        "--tokenizer",
        default="words",
        metavar="NAME",
        help="words (default), a tokenizer.json, or a model's name or folder",
    )
    kept = information.add_mutually_exclusive_group()
    kept.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="keep ids there; by default those of 256 MB and more beside the corpus",
    )
    kept.add_argument("--no-cache", action="store_true", help="keep no ids")
    information.add_argument(
        "--engine", choices=("local", "spark"), default="local", help="where it is counted"
    )


def add_counting(information: Parser) -> None:
    """What is counted, and with what."""
    information.add_argument(
        "--context",
        default="sentence",
        metavar="C",
        help="sentence (default), document, or a number of words to either side",
    )
    information.add_argument("--presence", action="store_true", help="sentences as sets of words")
    information.add_argument(
        "--probability",
        choices=("unigram", "marginal"),
        default="unigram",
        help="of words at large: share of tokens, or of what stands beside words",
    )
    information.add_argument(
        "--correction",
        choices=("null", "shuffle", "none"),
        default="null",
        help="of what chance gives: expected (default), by shuffled corpora, or none",
    )
    information.add_argument(
        "--rounds", type=whole(1), default=10, metavar="N", help="of shuffling"
    )
    information.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of shuffling")
    information.add_argument("--min-count", type=whole(1), default=10, metavar="N")
    information.add_argument("--threads", type=whole(1), metavar="N")
    information.add_argument(
        "--memory-limit", metavar="SIZE", help='as in "2 GB": count in passes, ids on disk'
    )


def information_command(options: argparse.Namespace) -> None:
    """Count, write what was asked for, and print the ends of the table."""
    check_outputs(options)
    if options.by == "corrected" and options.correction == "none":
        raise InputError("--by corrected: --correction none gives no such column")
    table = count(options)
    if options.output:
        write_table(table, options.output)
    if options.plot:
        write_plot(table, options.plot)
    if options.json:
        write_json(told(table, options))
    else:
        write_lines(report(table, options))


def check_outputs(options: argparse.Namespace) -> None:
    """Before hours of counting: every file can be written, and replaces nothing that is read."""
    taken = {Path(name).resolve(): "the corpus" for name in options.corpus}
    for option, endings in (("out", TABLES), ("plot", PICTURES), ("counts", {".parquet"})):
        path = options.output if option == "out" else getattr(options, option)
        if path is None:
            continue
        if path.suffix not in endings:
            expected = " or ".join(sorted(endings))
            raise InputError(f"--{option} {path}: expected a name in {expected}")
        if path.resolve() in taken:
            raise InputError(f"--{option} {path}: this is {taken[path.resolve()]}, too")
        if not path.absolute().parent.is_dir():
            raise InputError(f"--{option} {path}: cannot be written (no such folder)")
        taken[path.resolve()] = f"--{option}"
    if options.plot:
        import_module("matplotlib")


def count(options: argparse.Namespace) -> InformationTable:
    """The table; wrong input in one sentence, warnings too."""
    with warnings.catch_warnings(record=True) as caught:
        table = gain(options)
    for warning in caught:
        if warning.category is UserWarning:
            sys.stderr.write(f"simcse-fast: {str(warning.message).removeprefix('corpus: ')}\n")
    return table


def gain(options: argparse.Namespace) -> InformationTable:
    """The table."""
    information = import_module("simcse_fast.information")
    local = options.engine == "local"
    try:
        found = information.information_gain(
            # A name is never a sentence.
            [Path(name) for name in options.corpus] if local else options.corpus,
            tokenizer=load_tokenizer(options.tokenizer),
            context=context_of(options.context),
            min_count=options.min_count,
            correction=None if options.correction == "none" else options.correction,
            rounds=options.rounds,
            seed=options.seed,
            threads=options.threads,
            presence=options.presence,
            probability=options.probability,
            split_sentences=options.split_sentences,
            column=options.column,
            memory_limit=options.memory_limit,
            cache=False if options.no_cache else options.cache or "auto",
            return_counts=options.counts or False,
            engine=options.engine,
        )
    except (ValueError, TypeError, BackendUnavailableError) as error:
        raise InputError(str(error).removeprefix("corpus: ")) from error
    except OSError as error:
        raise InputError(f"--counts {options.counts}: {error.strerror or error}") from error
    table: InformationTable = found[0] if options.counts else found
    return table


def context_of(text: str) -> str | int:
    """A number where it is one."""
    return int(text) if text.isdecimal() else text


def told(table: InformationTable, options: argparse.Namespace) -> dict[str, Any]:
    """The results for machines; NaN and infinity are null."""
    records = [
        {name: value if finite(value) else None for name, value in row.items()}
        for row in table.top(options.top, by=options.by).arrow.to_pylist()
    ]
    totals = {name: getattr(table, name) for name in ("tokens", "sentences", "vocabulary_size")}
    return {**totals, "words": records}


def finite(value: object) -> bool:
    """What JSON has."""
    return not isinstance(value, float) or isfinite(value)


def report(table: InformationTable, options: argparse.Namespace) -> list[str]:
    """Totals, the highest and lowest rows, and what each band of frequency holds."""
    lines = [repr(table).splitlines()[0]]
    if not len(table):
        return [*lines, f"No word occurs {options.min_count} times; --min-count 1 shows all."]
    name = options.by.replace("_", " ")
    lines += ["", bold(f"Highest {name}")]
    lines += table.lines(table.top(options.top, by=options.by).arrow.to_pylist())
    if len(table) > options.top:
        lines += ["", bold(f"Lowest {name}")]
        lines += table.lines(table.bottom(options.top, by=options.by).arrow.to_pylist())
    return [*lines, "", bold("By frequency"), *bands(table)]


def bands(table: InformationTable) -> list[str]:
    """A line for each power of ten of the counts: medians, and the words that tell most."""
    numpy = import_module("numpy")
    corrected = "corrected" in table.arrow.column_names
    by: Column = "corrected" if corrected else "information_gain"
    heads = f"{'count':>13} {'words':>9} {'gain':>8}" + f" {'by chance':>10}" * corrected
    lines = [f"{heads}  highest {by.replace('_', ' ')}"]
    for band in table.bands():
        low = 10 ** (len(str(band.column("count").item(0))) - 1)
        median = numpy.nanmedian(band.column("information_gain")) if known(band) else numpy.nan
        line = f"{f'{low:,} and up':>13} {len(band):>9,} {median:>8.3f}"
        if corrected:
            chance = numpy.nanmedian(band.column("null")) if known(band) else numpy.nan
            line += f" {chance:>10.3f}"
        words = [str(word) for word in band.top(IN_A_BAND, by=by).column("word")]
        lines.append(f"{line}  {' '.join(words)}")
    return lines


def known(table: InformationTable) -> bool:
    """Whether any word has company."""
    gains = table.column("information_gain")
    return bool((gains == gains).any())  # noqa: PLR0124 - NaN


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
        raise InputError(f"--out {path}: cannot be written ({error.strerror or error})") from error


def write_plot(table: InformationTable, path: Path) -> None:
    """Gain against frequency."""
    plots = import_module("simcse_fast.information.plots")
    try:
        with written_whole(path) as unfinished:
            plots.save_plot(table, unfinished, format=path.suffix[1:])
    except OSError as error:
        raise InputError(f"--plot {path}: cannot be written ({error.strerror or error})") from error
