"""simcse-fast pretrain-mlm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.cli.common import Parser, bold, number, say, whole, write_json, write_lines
from simcse_fast.errors import InputError

if TYPE_CHECKING:
    import argparse

    from simcse_fast.pretraining import Pretrained

# What is no argument of `pretrain_mlm`, but of the command.
OWN = ("name", "command", "run", "json")


def add_pretrain_mlm(commands: Any) -> Parser:
    """simcse-fast pretrain-mlm."""
    pretrain: Parser = commands.add_parser(
        "pretrain-mlm",
        help="pre-train a small encoder from nothing",
        description="A vocabulary and a small BERT, learned from sentences alone as a masked\n"
        "language model. The model goes to DIR/final; `train` can go on from it.",
        epilog="example:\n  simcse-fast pretrain-mlm wiki.txt --output runs/mlm --minutes 30\n"
        "  simcse-fast train --unsupervised wiki.txt --model runs/mlm/final --output runs/simcse",
    )
    pretrain.add_argument(
        "corpus", metavar="FILE", help="sentences: .txt, .tsv, .parquet, .jsonl, hub name"
    )
    pretrain.add_argument("--output", required=True, type=Path, metavar="DIR")
    add_model(pretrain)
    add_recipe(pretrain)
    add_evaluation(pretrain)
    add_machine(pretrain)
    pretrain.set_defaults(run=pretrain_command)
    return pretrain


def add_model(pretrain: Parser) -> None:
    """What is made."""
    model = pretrain.add_argument_group("model")
    words = model.add_mutually_exclusive_group()
    words.add_argument("--tokenizer", metavar="NAME", help="an existing one: name or folder")
    words.add_argument("--vocabulary-size", type=whole(1), metavar="N", help="to learn (16000)")
    model.add_argument("--layers", type=whole(1), default=4, metavar="N", help="4")
    model.add_argument("--width", type=whole(1), default=192, metavar="N", help="192")
    model.add_argument("--heads", type=whole(1), metavar="N", help="width / 64")
    model.add_argument(
        "--max-length", type=whole(3), default=64, metavar="N", help="tokens of a sentence (64)"
    )


def add_recipe(pretrain: Parser) -> None:
    """What is learned."""
    recipe = pretrain.add_argument_group("recipe")
    recipe.add_argument(
        "--batch-tokens", type=whole(1), default=4096, metavar="N", help="of a step (4096)"
    )
    length = recipe.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=number, metavar="X", help="1")
    length.add_argument("--steps", type=whole(1), metavar="N", help="instead of --epochs")
    length.add_argument("--minutes", type=number, metavar="X", help="of training, instead")
    recipe.add_argument("--learning-rate", type=number, metavar="X", help="1e-3 to a width of 192")
    recipe.add_argument(
        "--warmup", type=number, default=0.05, metavar="X", help="share of the run (0.05)"
    )
    recipe.add_argument("--weight-decay", type=number, default=0.01, metavar="X", help="0.01")
    recipe.add_argument(
        "--dropout", type=number, default=0.1, metavar="X", help="while pre-training (0.1)"
    )
    recipe.add_argument("--seed", type=whole(0), default=0, metavar="N", help="0")


def add_evaluation(pretrain: Parser) -> None:
    """What is kept."""
    kept = pretrain.add_argument_group("evaluation and checkpoints")
    kept.add_argument(
        "--held-out", type=whole(1), metavar="N", help="sentences never trained on (2000)"
    )
    kept.add_argument("--evaluation-steps", type=whole(1), default=500, metavar="N", help="500")
    kept.add_argument("--save-steps", type=whole(1), default=500, metavar="N", help="500")
    kept.add_argument("--keep-checkpoints", type=whole(1), default=2, metavar="N", help="2")
    kept.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")


def add_machine(pretrain: Parser) -> None:
    """Where it runs."""
    machine = pretrain.add_argument_group("machine")
    machine.add_argument("--bf16", action="store_true", help="mixed precision")
    machine.add_argument(
        "--cache", type=Path, metavar="DIR", help="of vocabulary and token ids (in --output)"
    )
    machine.add_argument("--device", metavar="NAME", help="cpu; by default the best there is")


def pretrain_command(options: argparse.Namespace) -> None:
    """Pre-train, and say how it went."""
    say("loading torch and transformers")
    from simcse_fast import pretrain_mlm  # noqa: PLC0415 - torch, which --help need not wait for

    arguments = {name: value for name, value in vars(options).items() if name not in OWN}
    try:
        result = pretrain_mlm(**arguments, say=say)
    except (OSError, TypeError) as error:
        raise InputError(str(error)) from error
    if options.json:
        write_json(summary(result))
    else:
        write_lines(page(result))


def summary(result: Pretrained) -> dict[str, Any]:
    """The result for machines."""
    history = result.history
    return {
        "model": str(result.folder.resolve()),
        "steps": result.steps,
        "seconds": history.seconds,
        "vocabulary_size": result.vocabulary_size,
        "parameters": result.parameters,
        "encoder_parameters": result.encoder_parameters,
        "sentences": history.sentences,
        "real_tokens": history.real_tokens,
        "padded_tokens": history.padded_tokens,
        "guessed_tokens": history.guessed_tokens,
        "tokens_per_second": history.tokens_per_second,
        "data": vars(result.data),
        "losses": history.losses,
        "evaluations": [one._asdict() for one in history.evaluations],
        "notes": result.notes,
    }


def page(result: Pretrained) -> list[str]:
    """The result for people."""
    history, before, after = result.history, result.before, result.after
    lines = [f"{bold('Data')}     {note}" for note in result.notes]
    lines.append(
        f"{bold('Size')}     {result.parameters:,} parameters, {result.encoder_parameters:,} in "
        f"layers; {result.vocabulary_size:,} words"
    )
    share = history.padded_tokens / max(history.real_tokens, 1)
    lines.append(
        f"{bold('Steps')}    {result.steps:,} in {history.seconds:,.0f} s, "
        f"{history.tokens_per_second:,.0f} tokens/s"
    )
    lines.append(
        f"{bold('Tokens')}   {history.real_tokens:,} real, {history.padded_tokens:,} with padding "
        f"({share:.2f} times)"
    )
    lines.append(
        f"{bold('Held out')} loss {before.loss:.3f} -> {after.loss:.3f}, guessed "
        f"{before.accuracy:.1%} -> {after.accuracy:.1%}"
    )
    lines.append(f"{bold('Model')}    {result.folder.resolve()}")
    return lines
