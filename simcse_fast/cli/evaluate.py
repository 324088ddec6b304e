"""simcse-fast evaluate."""

from __future__ import annotations

import json
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.cli.common import Parser, bold, say, whole, write_json, write_lines
from simcse_fast.cli.models import load_model, weights_of
from simcse_fast.errors import InputError
from simcse_fast.files import written_whole

if TYPE_CHECKING:
    import argparse

    from simcse_fast.evaluation import Evaluation

PICTURES = {".png", ".svg", ".pdf"}
SPACE = ("alignment", "uniformity")


def add_evaluate(commands: Any) -> Parser:
    """simcse-fast evaluate."""
    evaluate: Parser = commands.add_parser(
        "evaluate",
        help="STS, transfer, alignment and uniformity of sentence encoders",
        description="Scores as the SimCSE papers give them, of one model or of several side by\n"
        "side: Spearman's correlation x 100 for STS, accuracy x 100 for transfer.",
        epilog="example:\n  simcse-fast evaluate bert-base-uncased runs/simcse/final --tasks sts"
        " alignment uniformity --data-dir data --output results.json --plot space.svg",
    )
    evaluate.add_argument("models", nargs="+", metavar="MODEL", help="name or folder")
    evaluate.add_argument(
        "--tasks",
        nargs="+",
        default=["sts"],
        metavar="TASK",
        help="sts (default), transfer, alignment, uniformity, all, or names such as STS-B, MR",
    )
    evaluate.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="sts/*.tsv and transfer/*.tsv, or SentEval's data; downloaded where left out",
    )
    evaluate.add_argument(
        "--pooling",
        metavar="NAME",
        help="of plain transformers: mean (default), cls, pooler, avg_first_last, ...",
    )
    evaluate.add_argument("--batch-size", type=whole(1), default=32, metavar="N", help="32")
    evaluate.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of folds (0)")
    evaluate.add_argument("--device", metavar="NAME", help="cpu; by default the best there is")
    evaluate.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="results as .json, after each model; what it holds already is not done again, unless "
        "the model's folder has changed",
    )
    evaluate.add_argument(
        "--restart", action="store_true", help="replace --output instead of going on with it"
    )
    evaluate.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="alignment against uniformity, .png, .svg or .pdf",
    )
    evaluate.set_defaults(run=evaluate_command)
    return evaluate


def evaluate_command(options: argparse.Namespace) -> None:
    """Evaluate one model after the other, and show all."""
    settings = settings_of(options)
    check_files(options)
    results, weights = earlier(options, settings)
    names = {label_of(name, options): name for name in options.models}
    written = {path.resolve() for path in (options.output, options.plot) if path is not None}
    now = {label: weights_of(name, written) for label, name in names.items()}
    changed = [
        label
        for label in names
        if label in results and label in weights and now[label] not in (None, weights[label])
    ]
    for label in changed:
        del results[label], weights[label]
    resumed = [label for label in names if label in results]
    if len(resumed) < len(names):
        options.data_dir = checked_data(options)
    try:
        for label, name in names.items():
            if label not in results:
                results[label], weights[label] = run_model(name, options), now[label]
                write_results(options.output, told_of(settings, weights, results))
    except KeyboardInterrupt:
        if not results or options.output is None:
            raise
        told = f"{', '.join(results)} {'is' if len(results) == 1 else 'are'} in {options.output}"
        raise KeyboardInterrupt(f"{told}; run it again to go on") from None
    write_plot(options.plot, results)
    if options.json:
        about = {"resumed": resumed, "changed": changed}
        write_json(told_of(settings, weights, results) | about)
    else:
        write_lines(page(options, results, resumed, changed))


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What scores depend on besides the model; results of others are not mixed with them."""
    try:
        chosen = import_module("simcse_fast.evaluation.tasks").choose(options.tasks)
    except InputError as error:
        raise InputError(f"--{error}") from error
    folder = str(options.data_dir.resolve()) if options.data_dir else None
    return {"tasks": [task.name for task, _ in chosen], "data_dir": folder, "seed": options.seed}


def check_files(options: argparse.Namespace) -> None:
    """Refuse what could not be written in the end."""
    for name, path, endings in (
        ("output", options.output, {".json"}),
        ("plot", options.plot, PICTURES),
    ):
        if path is None:
            continue
        if path.suffix not in endings:
            raise InputError(f"--{name} {path}: expected a name in {' or '.join(sorted(endings))}")
        if not path.parent.is_dir():
            raise InputError(f"--{name} {path}: there is no folder {path.parent}")
        check_place(name, path)
    if options.restart and options.output is None:
        raise InputError("--restart: belongs to --output FILE")
    if options.plot is None:
        return
    chosen = import_module("simcse_fast.evaluation.tasks").choose(options.tasks)
    if missing := [name for name in SPACE if name not in {task.name for task, _ in chosen}]:
        raise InputError(f"--plot {options.plot}: add {' and '.join(missing)} to --tasks")
    import_module("simcse_fast.evaluation.plots")  # matplotlib, before hours of work


def check_place(name: str, path: Path) -> None:
    """Refuse a folder in which no file can be made, and what is no file."""
    place = path.resolve()  # a link stays, and what it leads to is replaced
    try:
        reason = "no regular file" if place.exists() and not place.is_file() else None
        with tempfile.TemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise InputError(f"--{name} {path}: cannot be written ({reason})")


def checked_data(options: argparse.Namespace) -> Path:
    """The folder of the tasks, read once before any model is loaded."""
    say("reading the tasks")
    folders = import_module("simcse_fast.evaluation.folder")
    chosen = import_module("simcse_fast.evaluation.tasks").choose(options.tasks)
    if options.data_dir is None:
        found: Path = import_module("simcse_fast.evaluation.hub").downloaded()
    else:
        found = folders.folder_of(options.data_dir)
    folders.read_tasks(found, chosen)
    return found


def label_of(name: str, options: argparse.Namespace) -> str:
    """How tables call a model."""
    return f"{name} ({options.pooling})" if options.pooling else name


def earlier(
    options: argparse.Namespace, settings: dict[str, Any]
) -> tuple[dict[str, Evaluation], dict[str, str | None]]:
    """What an earlier run has left in --output, and of which weights, where it says so."""
    path: Path | None = options.output
    if path is None or options.restart or not path.exists():
        return {}, {}
    Evaluation = import_module("simcse_fast.evaluation").Evaluation  # noqa: N806 - a class
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        found = {name: Evaluation.from_dict(one) for name, one in told["models"].items()}
        weights = dict(told.get("weights", {}))
        known = told["settings"]
        differs = [name for name, value in settings.items() if known[name] != value]
    except OSError as error:
        raise InputError(f"--output {path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"--output {path}: holds no results of this command; give another name"
        ) from error
    if differs:
        name = differs[0]
        raise InputError(
            f"--output {path}: holds results for {name.replace('_', ' ')} {known[name]}, not "
            f"{settings[name]}; give another name, or --restart"
        )
    return found, weights


def run_model(name: str, options: argparse.Namespace) -> Evaluation:
    """Load a model and evaluate it; what is refused is bad input."""
    say(f"loading {name}")
    model = load_model(name, options.device, options.pooling)
    evaluate = import_module("simcse_fast.evaluation").evaluate
    say(f"evaluating {name}")
    try:
        result: Evaluation = evaluate(
            model,
            options.tasks,
            options.data_dir,
            pooling=options.pooling,
            batch_size=options.batch_size,
            seed=options.seed,
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"{name}: {error}") from error
    return result


def told_of(
    settings: dict[str, Any], weights: dict[str, str | None], results: dict[str, Evaluation]
) -> dict[str, Any]:
    """The results for machines."""
    return {
        "settings": settings,
        "weights": weights,
        "models": {name: result.to_dict() for name, result in results.items()},
    }


def write_results(path: Path | None, told: dict[str, Any]) -> None:
    """All models that are done."""
    if path is None:
        return
    text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
    try:
        with written_whole(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--output {path}: cannot be written ({error.strerror or error})"
        ) from error


def write_plot(path: Path | None, results: dict[str, Evaluation]) -> None:
    """The figure of --plot."""
    if path is None:
        return
    figure = import_module("simcse_fast.evaluation.plots").plot(results)
    try:
        with written_whole(path) as unfinished:
            figure.savefig(unfinished, format=path.suffix[1:], dpi=150)
    except OSError as error:
        raise InputError(f"--plot {path}: cannot be written ({error.strerror or error})") from error


def page(
    options: argparse.Namespace,
    results: dict[str, Evaluation],
    resumed: list[str],
    changed: list[str],
) -> list[str]:
    """The results for people."""
    lines = [import_module("simcse_fast.evaluation").table(results), ""]
    if resumed:
        lines.append(f"{bold('Done before')}  {', '.join(resumed)}; --restart does all again")
    if changed:
        lines.append(f"{bold('Done again')}  {', '.join(changed)}; files have changed since")
    for name, path in (("Results", options.output), ("Plot", options.plot)):
        if path is not None:
            lines.append(f"{bold(name)}  {path.resolve()}")
    return lines if lines[-1] else lines[:-1]
