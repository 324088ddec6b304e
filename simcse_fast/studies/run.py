"""A study: attributions of every set by every method under every encoder, and their regressions."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_fast.attribution.batch import Batch, read_sentences
from simcse_fast.attribution.encoder import open_encoder
from simcse_fast.errors import InputError
from simcse_fast.information import InformationTable, information_gain
from simcse_fast.studies.options import named_sets
from simcse_fast.studies.points import Vocabulary, points_of
from simcse_fast.studies.result import Study
from simcse_fast.studies.rows import OCCURRENCE, WORD, Quantities, rows_of
from simcse_fast.studies.static import is_static, static_points
from simcse_fast.training.encoders import load
from simcse_fast.training.sealed import made
from simcse_fast.training.texts import read_pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from simcse_fast.studies.options import Options
    from simcse_fast.studies.points import Points

ATTRIBUTIONS = "attributions"
VOCABULARY_SET = "vocabulary"  # what the rows of static encoders are of


@dataclass(frozen=True)
class Settings:
    """What of a study leaves its results as they are."""

    output: Path | None
    pooling: str | None
    device: str | None
    resume: bool
    progress: bool
    say: Callable[[str], object]


def run(
    models: dict[str, Any], corpus: Any, sentences: Any, options: Options, settings: Settings
) -> Study:
    """Attribute, count and regress; see `simcse_fast.study`."""
    settings.say("loading the encoders")
    encoders = {
        name: opened(name, model, settings.pooling, settings.device)
        for name, model in models.items()
        if model is not None or name == "after"
    }
    statics = [name for name, model in encoders.items() if is_static(model)]
    if statics and len(statics) < len(encoders):
        raise InputError(
            f"before: {statics[0]} is a static encoder and the other is not; expected two of a kind"
        )
    sets = {} if statics else texts_of(sentences)
    settings.say("counting the corpus")
    table = information_of(corpus, options, progress=settings.progress)
    runs = Runs(encoders, sets, options, settings)
    if statics:
        points = {
            (VOCABULARY_SET, measure): found
            for measure, found in static_points(encoders, table).items()
        }
    else:
        points = runs.points(table)
    settings.say("fitting lines")
    return concluded(points, table, options, runs, bool(statics))


def concluded(
    points: dict[tuple[str, str], Points],
    table: InformationTable,
    options: Options,
    runs: Runs,
    static: bool,
) -> Study:
    """All regressions."""
    if not any(len(one.row) for one in points.values()):
        words = sum({name: one.coverage.words for (name, _), one in points.items()}.values())
        raise InputError(
            f"sentences: of their {words:,} words none is in the corpus {options.min_count} times "
            "or more; expected sentences of the corpus's language and kind"
        )
    quantities = Quantities.of(table, options.quantities)
    rows = []
    for (name, method), found in points.items():
        levels = (WORD,) if static else (OCCURRENCE, WORD)
        draw = {"resamples": options.resamples, "seed": options.seed}
        rows += rows_of(found, quantities, levels, **draw, set=name, method=method)
    return Study(
        rows=rows,
        points=points,
        table=table,
        options=options,
        encoders={name: label_of(model) for name, model in runs.encoders.items()},
        sentences=runs.drawn,
        seconds=runs.seconds,
    )


class Runs:
    """Attributions of every set of sentences by every method under every encoder.

    Attributes:
        encoders: by name.
        seconds: what each run took: set, method, encoder, sentences, seconds; those aside that were
            there before.
        drawn: the sentences of each set and method.
    """

    def __init__(
        self,
        encoders: dict[str, Any],
        sets: dict[str, list[str]],
        options: Options,
        settings: Settings,
    ) -> None:
        self.encoders, self.options, self.settings = encoders, options, settings
        self.drawn = {
            (name, method): sample(texts, options.limit_of(method), options.seed)
            for name, texts in sets.items()
            for method in options.methods
        }
        self.seconds: list[dict[str, Any]] = []

    def points(self, table: InformationTable) -> dict[tuple[str, str], Points]:
        """Attribute everything, and join it with the corpus."""
        vocabulary = Vocabulary.of(table)
        with ExitStack() as stack:
            if self.settings.output is None:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="simcse-fast-")))
            else:
                folder = self.settings.output / ATTRIBUTIONS
                stack.enter_context(made(folder, "output"))
            found = {}
            for (name, method), texts in self.drawn.items():
                tables = {
                    encoder: self.attribute(folder, name, method, encoder, texts)
                    for encoder in self.encoders
                }
                found[name, method] = points_of(texts, tables, vocabulary)
        return found

    def attribute(
        self, folder: Path, name: str, method: str, encoder: str, texts: list[str]
    ) -> Path:
        """One table, from where an earlier run has stopped."""
        self.settings.say(f"{name}, {method}, {encoder}: {len(texts):,} sentences")
        model = self.encoders[encoder]
        given = self.options.arguments(method)
        if isinstance(model, tuple):
            given["pooling"] = self.settings.pooling
        out, started = folder / f"{name}-{method}-{encoder}.parquet", time.perf_counter()
        batch = Batch(model, texts, out, **given)
        try:
            batch.run(resume=self.settings.resume, progress=self.settings.progress)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"{name}, {method}, {encoder}: {stop}") from stop
        if not batch.earlier:
            self.seconds.append(
                {
                    "set": name,
                    "method": method,
                    "encoder": encoder,
                    "sentences": batch.total,
                    "seconds": time.perf_counter() - started,
                }
            )
        return out


@contextmanager
def named(argument: str) -> Iterator[None]:
    """Errors of `model` in the name of the argument that it was given for."""
    try:
        yield
    except (ValueError, TypeError) as error:
        told = str(error)
        if not told.startswith("model:"):
            raise
        raise type(error)(argument + told.removeprefix("model")) from error


def opened(argument: str, model: Any, pooling: str | None, device: str | None) -> Any:
    """The encoder that a name stands for; others as they are.

    Raises:
        InputError: it cannot be loaded.
        TypeError: it is none.
    """
    with named(argument):
        if isinstance(model, str | os.PathLike):
            loaded, is_plain = load(os.fspath(model), device)
            model = (loaded[0].model, loaded.tokenizer) if is_plain and pooling else loaded
        if not is_static(model):
            open_encoder(model, pooling if isinstance(model, tuple) else None)
        return model


def label_of(model: Any) -> str:
    """How tables and pages call an encoder."""
    first = model[0]
    config = getattr(first, "config", None)
    name = getattr(config, "name_or_path", "") or getattr(config, "_name_or_path", "")
    return str(name) or type(first).__name__


def texts_of(sentences: Any) -> dict[str, list[str]]:
    """Distinct sentences of each set, in their order."""
    if sentences is None:
        raise InputError("sentences: expected some for encoders that are transformers, got none")
    found = {}
    for name, source in named_sets(sentences).items():
        is_path = isinstance(source, str | os.PathLike)
        if is_path and Path(source).suffix == ".tsv":
            first, second, _ = read_pairs(source, "pairs")
            texts = [*first, *second]
        else:
            try:
                texts = [*read_sentences(source).texts()]
            except (ValueError, TypeError) as error:
                told = str(error).removeprefix("source: ")
                raise type(error)(f"sentences: {told}") from error
        found[name] = [text for text in dict.fromkeys(map(str.strip, texts)) if text]
    return found


def sample(texts: list[str], limit: int | None, seed: int) -> list[str]:
    """At most so many, drawn at random, in their order."""
    if limit is None or len(texts) <= limit:
        return texts
    rows = np.random.default_rng(seed).choice(len(texts), limit, replace=False)
    return [texts[row] for row in np.sort(rows)]


def information_of(corpus: Any, options: Options, *, progress: bool) -> InformationTable:
    """The table that was given, or that of a corpus."""
    if not isinstance(corpus, InformationTable):
        found: InformationTable = information_gain(
            corpus, min_count=options.min_count, correction="null", progress=progress
        )
        if not len(found):
            raise InputError(
                f"corpus: none of its {found.vocabulary_size:,} words occurs {options.min_count} "
                "times; expected a larger corpus or a smaller min_count"
            )
        return found
    if missing := [name for name in options.quantities if name not in corpus.arrow.column_names]:
        raise InputError(
            f'corpus: the table has no column {missing[0]}; count it with correction="null"'
        )
    kept = int(np.count_nonzero(corpus.column("count") >= options.min_count))
    if not kept:
        raise InputError(f"corpus: no word of the table has a count of {options.min_count} or more")
    return corpus.head(kept)
