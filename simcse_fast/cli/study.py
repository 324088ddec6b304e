"""simcse-fast study."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.cli.common import Parser, bad_input, bold, say, whole, write_json, write_lines
from simcse_fast.errors import InputError
from simcse_fast.studies.options import METHODS, QUANTITIES

if TYPE_CHECKING:
    import argparse

    from simcse_fast.studies import Study

ALONE = "none"  # for --before


def add_study(commands: Any) -> Parser:
    """simcse-fast study."""
    added: Parser = commands.add_parser(
        "study",
        help="do encoders weight informative words, and more so after training?",
        description="Word weights of two encoders, by Integrated Gradients and SHAP, regressed on\n"
        "what a corpus tells of the words. Tables, plots and report.html go to DIR; a study that\n"
        "was stopped goes on from there. Static encoders need no sentences.",
        epilog="example:\n  simcse-fast study runs/mlm/final runs/simcse/final --corpus"
        " wiki.parquet --sentences stsb=stsb_test.tsv wiki=wiki.parquet --output runs/study",
    )
    added.add_argument(
        "before", metavar="BEFORE", help=f"name or folder; {ALONE!r} studies AFTER alone"
    )
    added.add_argument("after", metavar="AFTER", help="name or folder")
    added.add_argument(
        "--corpus", required=True, nargs="+", metavar="FILE", help="counted: .txt, .parquet, .jsonl"
    )
    added.add_argument(
        "--sentences",
        nargs="+",
        default=[],
        metavar="[NAME=]FILE",
        help="a set each: .txt, .parquet, .jsonl, or .tsv with pairs",
    )
    added.add_argument("--output", required=True, type=Path, metavar="DIR")
    added.add_argument("--methods", nargs="+", choices=METHODS, default=["ig", "shap"])
    added.add_argument(
        "--quantities",
        nargs="+",
        choices=QUANTITIES,
        default=["information_gain", "self_information"],
    )
    add_numbers(added)
    added.add_argument("--pooling", metavar="NAME", help="of plain transformers (mean)")
    added.add_argument("--device", metavar="NAME", help="cpu; by default the best there is")
    added.add_argument("--restart", action="store_true", help="make all attributions anew")
    added.set_defaults(run=study_command)
    return added


def add_numbers(added: Parser) -> None:
    """How much is looked at."""
    for name, default, told in (
        ("--limit", 2000, "sentences of a set at most"),
        ("--norm-limit", 300, "the same of the method norms"),
        ("--samples", 128, "coalitions of a sentence's Shapley values"),
        ("--min-count", 10, "of words in the corpus"),
        ("--resamples", 1000, "of the bootstrap"),
    ):
        least = 2 if name in {"--samples", "--resamples"} else 1
        help_ = f"{told} ({default})"
        added.add_argument(name, type=whole(least), default=default, metavar="N", help=help_)
    added.add_argument("--seed", type=whole(0), default=0, metavar="N", help="0")


def study_command(options: argparse.Namespace) -> None:
    """Study, and say what was found."""
    sets = named_files(options.sentences)
    say("loading torch and sentence-transformers")
    run = import_module("simcse_fast.studies")  # torch, which --help need not wait for
    quiet = import_module("simcse_fast.training.run").quiet_transformers
    names = ("methods", "quantities", "limit", "norm_limit", "samples", "min_count", "resamples")
    with bad_input(options.output), quiet():
        result: Study = run.study(
            None if options.before == ALONE else options.before,
            options.after,
            options.corpus,
            sets or None,
            **{name: getattr(options, name) for name in (*names, "seed", "output", "pooling")},
            device=options.device,
            resume=not options.restart,
            say=say,
        )
        report = result.report(options.output)
    if options.json:
        write_json({**result.summary(), "report": str(report)})
    else:
        write_lines(page(result, report))


def named_files(given: list[str]) -> dict[str, str]:
    """Files by the name before "=", or by their own.

    Raises:
        InputError: two have the same name.
    """
    sets: dict[str, str] = {}
    for one in given:
        name, found, path = one.partition("=")
        if not found:
            name, path = Path(one).stem, one
        if name in sets:
            raise InputError(f"--sentences: two sets are called {name!r}; name them, as in a=FILE")
        sets[name] = path
    return sets


def page(result: Study, report: Path) -> list[str]:
    """The result for people."""
    tables = import_module("simcse_fast.studies.tables")
    lines = [result.to_markdown().rstrip(), ""]
    lines += [f"{bold('Found')}  {sentence}" for sentence in tables.findings(result)]
    lines += [
        f"{bold('Words')}  {one['set']}, {one['method']}: {one['points']:,} of {one['words']:,} "
        f"words; the corpus lacks {100 * one['unknown_share']:.1f} %"
        for one in result.coverage
    ]
    return [*lines, f"{bold('Report')} {report}"]
