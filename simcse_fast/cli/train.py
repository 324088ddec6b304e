"""simcse-fast train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.cli.common import Parser, bold, number, say, whole, write_json, write_lines
from simcse_fast.errors import InputError
from simcse_fast.training.options import AUGMENTATIONS, DUPLICATES, LOSSES, POOLINGS

if TYPE_CHECKING:
    import argparse

    from simcse_fast.training import TrainingResult

# What is no argument of `train`, but of the command.
OWN = ("name", "command", "run", "json")


def add_train(commands: Any) -> Parser:
    """simcse-fast train."""
    train: Parser = commands.add_parser(
        "train",
        help="train a sentence encoder on text or on pairs",
        description="SimCSE, unsupervised or supervised, on any encoder, with batches of any\n"
        "size; on several devices under torchrun. The model goes to DIR/final.",
        epilog="example:\n  simcse-fast train --unsupervised wiki.txt --model bert-base-uncased"
        " --output runs/simcse --batch-size 1024 --evaluate stsb_dev.tsv",
    )
    data = train.add_mutually_exclusive_group(required=True)
    data.add_argument(
        "--unsupervised", metavar="FILE", help="sentences: .txt, .tsv, .parquet, .jsonl, hub name"
    )
    data.add_argument(
        "--triplets",
        metavar="FILE",
        help="anchors, positives and, if any, negatives: .tsv, .parquet, .jsonl, hub name",
    )
    train.add_argument("--model", required=True, metavar="NAME", help="name or folder")
    train.add_argument("--output", required=True, type=Path, metavar="DIR")
    add_recipe(train)
    add_evaluation(train)
    add_machine(train)
    train.set_defaults(run=train_command)
    return train


def add_recipe(train: Parser) -> None:
    """What is learned."""
    recipe = train.add_argument_group("recipe")
    recipe.add_argument(
        "--pooling", choices=POOLINGS, help="the model's own; cls where it has none"
    )
    recipe.add_argument("--temperature", type=number, default=0.05, metavar="X", help="0.05")
    recipe.add_argument("--symmetric", action="store_true", help="both directions, for pairs")
    recipe.add_argument("--max-length", type=whole(3), metavar="N", help="tokens of a text (32)")
    recipe.add_argument(
        "--batch-size", type=whole(2), metavar="N", help="rows of all processes (64, 512, 4096)"
    )
    recipe.add_argument("--epochs", type=number, metavar="X", help="unsupervised 1, else 3")
    recipe.add_argument("--steps", type=whole(1), metavar="N", help="instead of --epochs")
    recipe.add_argument(
        "--learning-rate", type=number, metavar="X", help="3e-5, supervised 5e-5, static 5e-3"
    )
    recipe.add_argument(
        "--warmup", type=number, default=0.0, metavar="X", help="share of steps (0)"
    )
    recipe.add_argument("--weight-decay", type=number, default=0.0, metavar="X", help="0")
    recipe.add_argument(
        "--duplicates",
        choices=DUPLICATES,
        default="mask",
        help="as negatives: mask (default)",
    )
    recipe.add_argument(
        "--mlm-weight",
        type=number,
        default=0.0,
        metavar="X",
        help="of a masked language model's loss besides; SimCSE: 0.1 (0)",
    )
    recipe.add_argument("--dropout", type=number, metavar="X", help="the model's own")
    recipe.add_argument(
        "--augmentation",
        choices=AUGMENTATIONS,
        default="none",
        help="what makes the second view of a sentence (none: dropout alone)",
    )
    recipe.add_argument(
        "--augmentation-share",
        type=number,
        default=0.1,
        metavar="X",
        help="of the words that crop and delete take out (0.1)",
    )
    recipe.add_argument("--loss", choices=LOSSES, default="info_nce", help="info_nce")
    recipe.add_argument("--seed", type=whole(0), default=0, metavar="N", help="0")


def add_evaluation(train: Parser) -> None:
    """What is kept."""
    kept = train.add_argument_group("evaluation and checkpoints")
    kept.add_argument(
        "--evaluate", metavar="FILE", help="pairs with scores; the best is the result"
    )
    kept.add_argument("--evaluation-steps", type=whole(1), metavar="N", help="125")
    kept.add_argument("--patience", type=whole(1), metavar="N", help="evaluations without a gain")
    kept.add_argument("--save-steps", type=whole(1), default=500, metavar="N", help="500")
    kept.add_argument("--keep-checkpoints", type=whole(1), default=2, metavar="N", help="2")
    kept.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    kept.add_argument("--report-to", default="none", metavar="NAME", help="tensorboard, wandb, ...")


def add_machine(train: Parser) -> None:
    """Where it runs."""
    machine = train.add_argument_group("machine")
    machine.add_argument("--bf16", action="store_true", help="mixed precision")
    machine.add_argument("--fp16", action="store_true", help="mixed precision")
    machine.add_argument("--mini-batch-tokens", type=whole(1), metavar="N", help="of one forward")
    machine.add_argument(
        "--memory-share", type=number, default=0.5, metavar="X", help="of free memory (0.5)"
    )
    machine.add_argument("--cache", type=Path, metavar="DIR", help="of token ids (in --output)")
    machine.add_argument("--device", metavar="NAME", help="cpu; by default the best there is")


def train_command(options: argparse.Namespace) -> None:
    """Train, and say how it went."""
    first = os.environ.get("RANK", "0") == "0"  # torchrun's others are silent
    if first:
        say("loading torch and sentence-transformers")
    from simcse_fast import train  # noqa: PLC0415 - torch, which --help need not wait for

    arguments = {name: value for name, value in vars(options).items() if name not in OWN}
    try:
        result = train(**arguments, say=say if first else None)
    except (OSError, TypeError) as error:
        raise InputError(str(error)) from error
    if not first:
        return
    if options.json:
        write_json(summary(result))
    else:
        write_lines(page(result))


def summary(result: TrainingResult) -> dict[str, Any]:
    """The result for machines."""
    history = result.history
    return {
        "model": str(result.folder.resolve()),
        "steps": result.steps,
        "seconds": history.seconds,
        "sentences": history.sentences,
        "sentences_per_second": history.sentences_per_second,
        "real_tokens": history.real_tokens,
        "padded_tokens": history.padded_tokens,
        "duplicates_masked": history.duplicates,
        "data": vars(result.data),
        "losses": history.losses,
        "mlm_losses": history.mlm_losses,
        "evaluations": [{"step": step, "spearman": score} for step, score in history.evaluations],
        "best": history.best(),
        "notes": result.notes,
    }


def page(result: TrainingResult) -> list[str]:
    """The result for people."""
    history = result.history
    lines = [f"{bold('Data')}   {note}" for note in result.notes]
    lines.append(
        f"{bold('Steps')}  {result.steps:,} in {history.seconds:,.0f} s, "
        f"{history.sentences_per_second:,.0f} sentences/s, loss {history.losses[0]:.4f} -> "
        f"{history.losses[-1]:.4f}"
    )
    if history.mlm_losses:
        first, *_, last = history.mlm_losses * 2  # two of them, at least
        lines.append(f"{bold('MLM')}    loss {first:.4f} -> {last:.4f}")
    share = history.padded_tokens / max(history.real_tokens, 1)
    lines.append(
        f"{bold('Tokens')} {history.real_tokens:,} real, {history.padded_tokens:,} with padding "
        f"({share:.2f} times)"
    )
    if history.duplicates:
        lines.append(f"{bold('Masked')} {history.duplicates:,} repeated sentences as negatives")
    best = history.best()
    if best is not None:
        before = history.evaluations[0][1]
        lines.append(f"{bold('STS')}    {before:.2f} -> {best[1]:.2f} (step {best[0]})")
    lines.append(f"{bold('Model')}  {result.folder.resolve()}")
    return lines
