"""simcse-fast demo."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.cli.common import Parser, bold, say, whole, write_json, write_lines

if TYPE_CHECKING:
    import argparse


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
