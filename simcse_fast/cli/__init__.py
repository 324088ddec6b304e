"""The command simcse-fast."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

from simcse_fast import __version__
from simcse_fast.cli.ablate import add_ablate
from simcse_fast.cli.common import BAD_INPUT, INTERRUPTED, Parser, complain
from simcse_fast.cli.demo import add_demo
from simcse_fast.cli.evaluate import add_evaluate
from simcse_fast.cli.explain import add_explain
from simcse_fast.cli.info import add_info
from simcse_fast.cli.information import add_information
from simcse_fast.cli.pretrain_mlm import add_pretrain_mlm
from simcse_fast.cli.sparsify import add_sparsify
from simcse_fast.cli.study import add_study
from simcse_fast.cli.train import add_train
from simcse_fast.errors import InputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence


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
    except KeyboardInterrupt as stop:
        told = str(stop) or "nothing was written"
        return complain(f"{options.name} was interrupted; {told}", INTERRUPTED)
    return 0


def parser() -> Parser:
    """All commands with their options."""
    top = Parser(
        prog="simcse-fast",
        description="Contrastive sentence encoders: fast exact losses, and what they teach.",
        epilog="example:\n  simcse-fast demo",
    )
    top.add_argument("--version", action="version", version=f"simcse-fast {__version__}")
    commands = top.add_subparsers(dest="name", required=True, metavar="COMMAND")
    every = (
        add_demo,
        add_pretrain_mlm,
        add_train,
        add_evaluate,
        add_explain,
        add_information,
        add_study,
        add_sparsify,
        add_ablate,
        add_info,
    )
    for add in every:
        added = add(commands)
        added.add_argument("--json", action="store_true", help="print the results as JSON")
    return top
