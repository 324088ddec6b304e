"""The steps of the demo in their order."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError

from simcse_fast import __version__, backends, information_gain
from simcse_fast.demo import figures, timing, training
from simcse_fast.demo.encoder import Tokens, embed, tokenize, word_vectors
from simcse_fast.demo.findings import findings
from simcse_fast.demo.output import MODEL, REPORT, RESULTS, staged
from simcse_fast.demo.report import page
from simcse_fast.demo.text import Text, read_text, state_of_the_union
from simcse_fast.demo.transformer import NAME, word_weights
from simcse_fast.demo.weights import Words, frequent_words, nearest, shares
from simcse_fast.errors import InputError
from simcse_fast.static_encoders import random_encoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from simcse_fast.information import InformationTable

WIDTH = 256
VOCABULARY_LIMIT = 60_000  # of the most frequent words
HELD_OUT = 4096  # sentences at most, and a tenth at most
FEW = 200  # sentences to train on
SHOWN = 5
ROWS_PER_SECOND = 2000  # of timing: 4 seconds for 8,192 rows
# Seconds after the start that keep four minutes on a slow machine: sentences are weighed under the
# transformer up to the first, and sizes are left out that would be timed beyond the second.
WEIGHING_ENDS, TIMING_ENDS = 140, 170
SIZES = ((4096, 768), (8192, 768), (8192, 256), (4096, 256))  # the most telling first
QUICK_SIZES = ((256, 32), (512, 32))
SAMPLES = 384  # coalitions of a sentence: eight seconds for all of them
QUICK_SAMPLES, QUICK_SHOWN = 32, 2


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    text: Path | None  # None: the State of the Union addresses
    output: Path
    seed: int
    steps: int
    batch_size: int
    quick: bool
    command: str  # as typed, for the report


@dataclass(frozen=True)
class Corpus:
    """The sentences with their word numbers, and which of them are trained on."""

    text: Text
    tokens: Tokens
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]

    def sentence(self, row: int) -> str:
        """The text of a row."""
        return self.text.sentences[row]


def run_demo(options: Options, say: Callable[[str], object]) -> dict[str, Any]:
    """Count, train, time, look, and write the folder.

    Returns:
        Every figure of the report; the same as `results.json`.

    Raises:
        InputError: the text or the folder cannot be used.
    """
    started = time.perf_counter()
    with staged(options.output) as folder:
        say("reading the text")
        text = state_of_the_union() if options.text is None else read_text(options.text)
        say("counting information gain")
        table, information = count(text)
        say("training the encoder")
        model = random_encoder(vocabulary(table), WIDTH, options.seed)
        corpus = prepare(model, text, options.seed)
        show = examples(corpus, options.seed)
        before = word_vectors(model)
        early = look(model, corpus, show)
        history = fit(model, corpus, options)
        late = look(model, corpus, show)
        words = frequent_words(table, before, word_vectors(model))
        say(f"weighing words under {NAME}")
        transformer = word_weights(
            show["sentences"][: QUICK_SHOWN if options.quick else SHOWN],
            words,
            samples=QUICK_SAMPLES if options.quick else SAMPLES,
            deadline=started + WEIGHING_ENDS,
        )
        say("timing the fused loss against the textbook loss")
        sizes = QUICK_SIZES if options.quick else SIZES
        comparisons = compare(model, corpus, sizes, started + TIMING_ENDS)
        say("writing the report")
        results = {
            "command": options.command,
            "versions": versions(),
            "backend": backend_in_use(),
            "threads": torch.get_num_threads(),
            "seed": options.seed,
            "text": describe(corpus, table),
            "information": information,
            "training": training_figures(history, corpus),
            "words": word_figures(words),
            "timing": [asdict(one) for one in comparisons],
            "queries_written": bool(text.queries),
            **merged(show, early, late),
            "transformer": transformer,
            "seconds": time.perf_counter() - started,
        }
        results["findings"] = findings(results, words)
        images = {
            "loss": figures.draw(figures.loss_curve, history),
            "norms": figures.draw(figures.norms, words),
            "costs": figures.draw(figures.costs, comparisons),
        }
        results["seconds"] = time.perf_counter() - started
        write(folder, model, results, images)
    return results


def count(text: Text) -> tuple[InformationTable, dict[str, Any]]:
    """Information gain of every word, and how long that took."""
    started = time.perf_counter()
    try:
        table = information_gain(text.sentences, min_count=1)
    except ValueError as error:
        raise InputError(f"{text.name}: {str(error).removeprefix('corpus: ')}") from error
    seconds = time.perf_counter() - started
    return table, {"words": len(table), "tokens": table.tokens, "seconds": seconds}


def vocabulary(table: InformationTable) -> list[str]:
    """The words that get a vector, the most frequent first."""
    words: list[str] = table.head(VOCABULARY_LIMIT).column("word").tolist()
    return words


def prepare(model: SentenceTransformer, text: Text, seed: int) -> Corpus:
    """Word numbers of all sentences, and a random tenth held out."""
    tokens = tokenize(model, text.sentences)
    long_enough = np.flatnonzero(tokens.lengths() >= training.SHORTEST)
    if len(long_enough) < FEW:
        raise InputError(
            f"{text.name}: {len(long_enough)} different sentences of {training.SHORTEST} words or "
            f"more among {len(text.sentences)}; expected at least {FEW}"
        )
    rows = np.random.default_rng(seed).permutation(long_enough)
    cut = min(HELD_OUT, len(rows) // 10)
    return Corpus(text, tokens, train=rows[cut:], held_out=rows[:cut])


def examples(corpus: Corpus, seed: int) -> dict[str, list[str]]:
    """Held-out sentences of middling length to show, and three queries."""
    lengths = corpus.tokens.lengths()[corpus.held_out]
    low, high = np.quantile(lengths, [0.25, 0.6])
    middling = corpus.held_out[(lengths >= low) & (lengths <= high)]
    drawn = np.random.default_rng(seed).permutation(middling).tolist()
    queries = list(corpus.text.queries) or [corpus.sentence(row) for row in drawn[-3:]]
    return {"sentences": [corpus.sentence(row) for row in drawn[:SHOWN]], "queries": queries}


def look(model: SentenceTransformer, corpus: Corpus, show: dict[str, list[str]]) -> dict[str, Any]:
    """Shares and neighbours as the encoder is now."""
    return {
        "sentences": [shares(model, sentence) for sentence in show["sentences"]],
        "nearest": nearest(model, corpus.tokens, corpus.text.sentences, show["queries"]),
    }


def merged(
    show: dict[str, list[str]], early: dict[str, Any], late: dict[str, Any]
) -> dict[str, Any]:
    """What was shown before and after, side by side."""
    pairs = zip(early["sentences"], late["sentences"], strict=True)
    found = zip(show["queries"], early["nearest"], late["nearest"], strict=True)
    return {
        "sentences": [{"before": before, "after": after} for before, after in pairs],
        "nearest": [{"query": q, "before": before, "after": after} for q, before, after in found],
    }


def fit(model: SentenceTransformer, corpus: Corpus, options: Options) -> training.History:
    """Train on all but the held-out sentences."""
    rng = np.random.default_rng(options.seed)
    return training.train(
        model,
        corpus.tokens,
        corpus.train,
        training.two_halves(corpus.tokens.take(corpus.held_out), rng),
        steps=options.steps,
        batch_size=options.batch_size,
        seed=options.seed,
    )


def compare(
    model: SentenceTransformer,
    corpus: Corpus,
    sizes: tuple[tuple[int, int], ...],
    deadline: float,  # on the clock of time.perf_counter
) -> list[timing.Comparison]:
    """Both losses on the encoder's own embeddings, and on random vectors of other widths."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    comparisons: list[timing.Comparison] = []
    rate = 0.0  # seconds a product of two numbers took at the size before
    for rows, width in sizes:
        begun, work = time.perf_counter(), rows * rows * width
        if comparisons and begun + rate * work > deadline:
            continue
        if width == WIDTH:
            picked = rng.choice(corpus.train, rows, replace=len(corpus.train) < rows)
            halves = training.two_halves(corpus.tokens.take(picked), rng)
            query, key = (embed(model, half).clone() for half in halves)
        else:
            query, key = torch.randn(2, rows, width, generator=generator)
        comparisons.append(timing.compare(query, key, budget=rows / ROWS_PER_SECOND))
        rate = (time.perf_counter() - begun) / work
    return sorted(comparisons, key=lambda one: (one.width, one.rows))


def describe(corpus: Corpus, table: InformationTable) -> dict[str, Any]:
    """The text in numbers."""
    return {
        "name": corpus.text.name,
        "sentences": len(corpus.text.sentences),
        "cut": corpus.text.cut,
        "tokens": table.tokens,
        "vocabulary": len(table),
    }


def training_figures(history: training.History, corpus: Corpus) -> dict[str, Any]:
    """Settings and course of the training."""
    return {
        "width": WIDTH,
        "temperature": training.TEMPERATURE,
        "learning_rate": training.LEARNING_RATE,
        "sentences": len(corpus.train),
        "held_out_sentences": len(corpus.held_out),
        "batch_size": history.batch_size,
        "steps": len(history.losses),
        "steps_asked": history.steps_asked,
        "seconds": history.seconds,
        "sentences_per_second": history.sentences_per_second(),
        "losses": history.losses,
        "held_out": [asdict(point) for point in history.held_out],
    }


def word_figures(words: Words) -> dict[str, Any]:
    """How well either information explains the lengths of the vectors."""
    kinds = ("information_gain", "self_information")
    between = np.corrcoef(words.information_gain, words.self_information)[0, 1] ** 2
    explained = {
        moment: {kind: words.r_squared(moment, kind) for kind in kinds}
        for moment in ("before", "after")
    }
    return {
        "n": len(words.words),
        "min_count": words.min_count,
        "r_squared": {**explained, "between": float(between)},
    }


def versions() -> dict[str, str]:
    """What ran."""
    names = ("torch", "sentence-transformers", "numpy")
    return {"simcse-fast": __version__, **{name: version(name) for name in names}}


def backend_in_use() -> str:
    """The loss back-end that a CPU tensor takes here."""
    status = backends()
    return next(
        f"{name} ({status[name].detail})" for name in ("cpu", "torch") if status[name].available
    )


def write(
    folder: Path,
    model: SentenceTransformer,
    results: dict[str, Any],
    images: dict[str, dict[str, bytes]],
) -> None:
    """The model, the plots, the figures and the page."""
    try:
        model.save(str(folder / MODEL), create_model_card=False)
    except SafetensorError as error:  # it carries the operating system's error as text
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number)) from error
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image["light"])
    (folder / REPORT).write_text(page(results, images), encoding="utf-8")
    text = json.dumps(results, indent=1, default=asdict, ensure_ascii=False)
    (folder / RESULTS).write_text(text + "\n", encoding="utf-8")
