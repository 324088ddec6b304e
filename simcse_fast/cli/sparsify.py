"""simcse-fast sparsify."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.cli.common import (
    Parser,
    bad_input,
    bold,
    number,
    say,
    whole,
    write_json,
    write_lines,
)
from simcse_fast.cli.models import load_model
from simcse_fast.errors import InputError

if TYPE_CHECKING:
    import argparse

    from simcse_fast.sparsity import Sparsified


def add_sparsify(commands: Any) -> Parser:
    """simcse-fast sparsify."""
    added: Parser = commands.add_parser(
        "sparsify",
        help="remove what contributes least to alignment and uniformity",
        description="SparseCSE: score every attention head and neuron of an encoder, remove the\n"
        "lowest, compare with pruning by magnitude and at random. The smaller model goes to\n"
        "DIR/model, plots and tables to DIR/report.html.",
        epilog="example:\n  simcse-fast sparsify sentence-transformers/all-MiniLM-L6-v2 --pairs"
        " stsb_train.tsv --development stsb_dev.tsv --sparsity 0.01 0.02 0.05 --output runs/sparse",
    )
    added.add_argument("model", metavar="MODEL", help="name or folder")
    added.add_argument("--pairs", required=True, metavar="FILE", help="to score on, with scores")
    added.add_argument(
        "--sparsity",
        required=True,
        type=number,
        nargs="+",
        metavar="X",
        help="shares to remove; of several the best on the development pairs",
    )
    added.add_argument("--output", required=True, type=Path, metavar="DIR")
    added.add_argument("--development", metavar="FILE", help="pairs with scores to choose by")
    added.add_argument("--test", metavar="FILE", help="pairs with scores to report on")
    added.add_argument(
        "--units",
        nargs="+",
        choices=("heads", "neurons", "weights"),
        default=["heads", "neurons"],
        help="heads neurons (default), or weights",
    )
    added.add_argument("--balance", type=number, default=0.5, metavar="X", help="0.5")
    added.add_argument(
        "--allocation",
        choices=("global", "layer"),
        default="global",
        help="order all layers together (default), or each for itself",
    )
    added.add_argument(
        "--aggregate",
        choices=("absolute", "total"),
        default="absolute",
        help="of the sentences' shares: the sum of sizes (default), or the size of the sum",
    )
    added.add_argument(
        "--positive-above", type=number, default=4.0, metavar="X", help="score of positives (4)"
    )
    added.add_argument("--seeds", type=whole(1), default=5, metavar="N", help="random orders (5)")
    added.add_argument(
        "--check", type=whole(2), metavar="N", help="remove N units one by one, compare with scores"
    )
    added.add_argument("--device", metavar="NAME", help="cpu; by default the best there is")
    add_retraining(added)
    added.set_defaults(run=sparsify_command)
    return added


def add_retraining(added: Parser) -> None:
    """What the smaller model is trained on."""
    retrain = added.add_argument_group("retraining")
    data = retrain.add_mutually_exclusive_group()
    data.add_argument("--unsupervised", metavar="FILE", help="sentences, as of simcse-fast train")
    data.add_argument("--triplets", metavar="FILE", help="triplets, as of simcse-fast train")
    retrain.add_argument("--rewind", metavar="NAME", help="remove from this model instead")
    retrain.add_argument("--epochs", type=number, metavar="X")
    retrain.add_argument("--batch-size", type=whole(2), metavar="N")
    retrain.add_argument("--learning-rate", type=number, metavar="X", help="3e-5")


def sparsify_command(options: argparse.Namespace) -> None:
    """Sparsify, and say how it went."""
    recipe = retraining(options)
    say("loading torch and sentence-transformers")
    run = import_module("simcse_fast.sparsity.run")  # torch, which --help need not wait for
    quiet = import_module("simcse_fast.training.run").quiet_transformers
    model = load_model(options.model, options.device, None)
    rewind = load_model(options.rewind, options.device, None) if options.rewind else None
    with bad_input(options.output):
        run.check_retraining(model if rewind is None else rewind, recipe)
    with bad_input(options.output), quiet():
        options.output.mkdir(parents=True, exist_ok=True)  # before minutes of work
        result = run.sparsify(
            model,
            options.pairs,
            sparsity=options.sparsity,
            units=options.units,
            balance=options.balance,
            rewind=rewind,
            development=options.development,
            test=options.test,
            seeds=options.seeds,
            allocation=options.allocation,
            aggregate=options.aggregate,
            positive_above=options.positive_above,
        )
        report = written(result, options.output)
        check = None if options.check is None else result.check(options.check)
        if recipe is not None:  # what was found so far is there, whatever happens
            result = result.retrain(**recipe)
            report = written(result, options.output)
    found = {**result.summary(), "model": str(options.output / "model"), "report": str(report)}
    found |= {} if check is None else {"check": check}
    if options.json:
        write_json(found)
    else:
        write_lines(page(result, found))


def written(result: Sparsified, folder: Path) -> Path:
    """Model and report."""
    result.save(folder / "model")
    return result.report(folder)


def retraining(options: argparse.Namespace) -> dict[str, Any] | None:
    """Arguments of `train`, where its data are given."""
    data = {name: getattr(options, name) for name in ("unsupervised", "triplets")}
    names = ("epochs", "batch_size", "learning_rate")
    recipe = {name: getattr(options, name) for name in names}
    data, recipe = (
        {name: value for name, value in given.items() if value is not None}
        for given in (data, recipe)
    )
    if not data:
        if recipe:
            option = next(iter(recipe)).replace("_", "-")
            raise InputError(f"--{option}: belongs to --unsupervised or --triplets")
        return None
    return {**data, **recipe, "output": options.output / "retraining"}


def page(result: Sparsified, found: dict[str, Any]) -> list[str]:
    """The result for people."""
    lines = [f"{'removed':>8}  {'by':<10}{'STS':>8}{'alignment':>11}{'uniformity':>12}{'test':>8}"]
    for row in result.curve:
        name = row["criterion"] if row["seed"] is None else f"{row['criterion']} {row['seed']}"
        line = f"{100 * row['sparsity']:>7.4g}%  {name:<10}{row['spearman']:>8.2f}"
        line += f"{row['alignment']:>11.4f}{row['uniformity']:>12.4f}"
        lines.append(line + (f"{row['test_spearman']:>8.2f}" if "test_spearman" in row else ""))
    if not result.curve:
        lines = []
    for kind, share in result.removed.items():
        lines.append(f"{bold('Removed')} {100 * share:.1f} % of the {kind}")
    lines += [f"{bold('Note')}    {note}" for note in result.notes]
    if check := found.get("check"):
        lines.append(
            f"{bold('Check')}   predictions and truth correlate by {check['alignment']:.2f} "
            f"(alignment) and {check['uniformity']:.2f} (uniformity)"
        )
    if result.retrained_scores is not None:
        row = result.retrained_scores
        tested = f", test {row['test_spearman']:.2f}" if "test_spearman" in row else ""
        lines.append(f"{bold('Trained')} STS {row['spearman']:.2f}{tested}")
    return [*lines, f"{bold('Model')}   {found['model']}", f"{bold('Report')}  {found['report']}"]
