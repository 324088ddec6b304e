"""simcse-fast ablate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.ablations.groups import GROUPS
from simcse_fast.ablations.result import MEASURES, told
from simcse_fast.cli.common import Parser, bold, number, say, whole, write_json, write_lines
from simcse_fast.errors import InputError
from simcse_fast.training.options import POOLINGS

if TYPE_CHECKING:
    import argparse

    from simcse_fast.ablations import Ablation

# Arguments of `ablate`; the others are options of `train`.
OF_ABLATE = (
    *("model", "development", "test", "triplets", "output", "vary", "seeds"),
    *("trajectory_steps", "trajectories", "keep_models", "device"),
)
OF_TRAIN = (
    *("steps", "epochs", "batch_size", "learning_rate", "pooling", "max_length", "warmup"),
    *("mini_batch_tokens", "bf16"),
)


def add_ablate(commands: Any) -> Parser:
    """simcse-fast ablate."""
    added: Parser = commands.add_parser(
        "ablate",
        help="SimCSE's ablations: one thing changed, several seeds",
        description="Train the same model with one thing changed at a time and several seeds.\n"
        "Tables and plots go to DIR; the same command goes on where it was stopped.",
        epilog="example:\n  simcse-fast ablate --model bert-base-uncased --unsupervised wiki.txt"
        " --development stsb_dev.tsv --vary dropout temperature --steps 500 --output runs/ablate",
    )
    added.add_argument("--model", required=True, metavar="NAME", help="name or folder")
    added.add_argument("--unsupervised", metavar="FILE", help="sentences, as of simcse-fast train")
    added.add_argument("--triplets", metavar="FILE", help="triplets, for hard_negatives")
    added.add_argument(
        "--development", required=True, metavar="FILE", help="pairs with scores to judge by"
    )
    added.add_argument("--test", metavar="FILE", help="pairs with scores to report on")
    added.add_argument("--output", required=True, type=Path, metavar="DIR")
    added.add_argument(
        "--vary", required=True, nargs="+", choices=GROUPS, metavar="GROUP", help=", ".join(GROUPS)
    )
    added.add_argument("--seeds", type=whole(1), default=5, metavar="N", help="of each (5)")
    added.add_argument(
        "--trajectory-steps",
        type=whole(1),
        default=10,
        metavar="N",
        help="steps between points of alignment and uniformity (10)",
    )
    added.add_argument(
        "--trajectories", type=whole(0), default=1, metavar="N", help="seeds that have them (1)"
    )
    added.add_argument("--keep-models", action="store_true", help="in DIR/models")
    added.add_argument("--device", metavar="NAME", help="cpu; by default the best there is")
    add_training(added)
    added.set_defaults(run=ablate_command)
    return added


def add_training(added: Parser) -> None:
    """What all runs have in common; as of simcse-fast train."""
    training = added.add_argument_group("training of all runs, as of simcse-fast train")
    training.add_argument("--steps", type=whole(1), metavar="N")
    training.add_argument("--epochs", type=number, metavar="X")
    training.add_argument("--batch-size", type=whole(2), metavar="N")
    training.add_argument("--learning-rate", type=number, metavar="X")
    training.add_argument("--pooling", choices=POOLINGS)
    training.add_argument("--max-length", type=whole(3), metavar="N")
    training.add_argument("--warmup", type=number, metavar="X")
    training.add_argument("--mini-batch-tokens", type=whole(1), metavar="N")
    training.add_argument("--bf16", action="store_true", default=None)


def ablate_command(options: argparse.Namespace) -> None:
    """Ablate, and say what came of it."""
    say("loading torch and sentence-transformers")
    from simcse_fast import ablate  # noqa: PLC0415 - torch, which --help need not wait for

    given = {name: getattr(options, name) for name in OF_TRAIN}
    training = {name: value for name, value in given.items() if value is not None}
    arguments = {name: getattr(options, name) for name in OF_ABLATE}
    try:
        result = ablate(sentences=options.unsupervised, say=say, **arguments, **training)
    except (OSError, TypeError) as error:
        raise InputError(str(error)) from error
    if options.json:
        write_json(
            {"output": str(result.folder), "notes": result.notes, "summary": result.summary()}
        )
    else:
        write_lines(page(result))


def page(result: Ablation) -> list[str]:
    """The result for people."""
    names = [name for name in MEASURES if name != "test" or result.rows[0]["test"] is not None]
    lines = [f"{'':16}{'':20}{''.join(f'{name:>20}' for name in names)}"]
    lines += [
        f"{one['group']:16}{one['configuration']:20}"
        + "".join(f"{told(one, name):>20}" for name in names)
        for one in result.summary()
    ]
    lines += [f"{bold('Note')}    {note}" for note in result.notes]
    return [*lines, f"{bold('Tables')}  {result.folder.resolve()}"]
