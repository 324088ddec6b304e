"""Where the time goes from Parquet to KL on one core, and how fast counters can be incremented."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.information_data import silent
from simcse_fast.information.corpus import open_corpus
from simcse_fast.information.ids import MemorySink
from simcse_fast.information.numbering import Plan, Reader, finish
from simcse_fast.kernels.cooccurrence import engine
from simcse_fast.kernels.cooccurrence.engine import Corpus, Run
from simcse_fast.kernels.cooccurrence.numba_rows import entropy_table
from simcse_fast.kernels.cooccurrence.numba_sentences import add_terms, count_dense
from simcse_fast.kernels.numba_threads import jit
from simcse_fast.kernels.text.numba_kernels import Block, Words, find_words, word_characters

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from simcse_fast.information.ids import Numbered
    from simcse_fast.information.sentences import Part

# In the order of the work. Looking up is what numbering takes beyond bare splitting.
PHASES = (
    *("reading", "splitting", "looking up", "vocabulary"),
    *("sort", "terms", "triangle", "index", "rows", "rest"),
)
COUNTING = PHASES[4:]
INCREMENTS = 1 << 27
DRAWN = 1 << 12  # addresses that stay in L1; another mask for each round spreads them


class Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add what the block takes."""
        begin = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - begin


@jit
def split_only(data: Any, starts: Any, is_word: Any, block: Block, sizes: Any) -> int:
    """Find all words and forget them."""
    text, i, total = 0, starts[0], 0
    while text < len(sizes):
        found, text, i = find_words(data, starts, is_word, (text, i), block, sizes)
        total += found
    return total


@jit
def increment(table: Any, places: Any, masks: Any) -> None:
    """Add one to counters all over the table, whose length is a power of two."""
    for mask in masks:
        for place in places:
            table[place ^ mask] += np.uint32(1)


def split(clock: Clock, parts: list[Part]) -> Numbered:
    """Text to ids, as number_text does with one thread."""
    reader, sink = Reader(Plan(None, False, None, 1)), MemorySink(1)
    block, is_word = Words().block, word_characters()
    for part in parts:
        data, starts = part.sentences.data, part.sentences.starts
        with clock("splitting"):
            split_only(data, starts, is_word, block, np.zeros(len(starts) - 1, np.uint32))
    for part in parts:
        with clock("numbering"):
            sink.append(0, *reader.number(part.sentences))
    with clock("vocabulary"):
        return finish([reader], sink)


def count(clock: Clock, numbered: Numbered) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """KL and the rows' load, as cooccurrence_kl does with one thread."""
    corpus = Corpus(numbered.counts, numbered.longest)
    run, log_p, table = Run(1, silent), engine.log_shares(numbered.counts), entropy_table()
    ids, starts = numbered.ids, numbered.offsets
    with clock("rest"):
        bags = engine.prepare(corpus, (ids, starts), overwrite=True)
        counted = engine.empty_counts(corpus)
        counted = counted._replace(triangle=counted.triangle.astype(corpus.kind))
    for share in engine.pieces(starts, (0, len(starts) - 1)):
        with clock("sort"):
            engine.sort_bags(ids, bags, share, overwrite=True)
        with clock("terms"):
            add_terms(bags, share, log_p, *counted.terms)
        with clock("triangle"):
            count_dense(bags, share, corpus.dense, counted.triangle, counted.load)
    with clock("index"):
        index = engine.index_chunk(run, corpus, bags, [counted], counted.load)
    with clock("rows"):
        sums = engine.sum_rows(run, corpus, index, table)
    with clock("rest"):
        sums += engine.sum_triangle(corpus, counted, table)
        gain = engine.divergence(sums, counted.terms)
    sizes = bags.sizes.astype(np.int64)
    read = np.array([counted.load[:, 1].sum(), (sizes * (sizes - 1) // 2).sum()])
    return gain, np.array([read[1] - read[0], read[0]])


def once(path: Path) -> tuple[dict[str, float], Any, NDArray[np.float64], NDArray[np.int64]]:
    """Seconds by phase, ids, KL, and increments in the triangle and in rows."""
    clock = Clock()
    with clock("reading"):
        parts = list(open_corpus(str(path)).parts)
    numbered = split(clock, parts)
    gain, increments = count(clock, numbered)
    seconds = clock.seconds
    seconds["looking up"] = max(0.0, seconds.pop("numbering") - seconds["splitting"])
    return {name: seconds[name] for name in PHASES}, numbered, gain, increments


def ceiling(kib: int) -> float:
    """G increments a second into a table of so many KiB, the best of five."""
    generator, size = np.random.default_rng(0), kib << 8
    places = generator.integers(size, size=DRAWN).astype(np.uint32)
    masks = generator.integers(size, size=INCREMENTS // DRAWN).astype(np.uint32)
    table, times = np.zeros(size, np.uint32), []
    increment(table, places, masks[:1])
    for _ in range(5):
        begin = time.perf_counter()
        increment(table, places, masks)
        times.append(time.perf_counter() - begin)
    assert table.sum() == 5 * len(masks) * DRAWN + DRAWN
    return round(INCREMENTS / min(times) / 1e9, 3)


def phases(path: Path, rounds: int, exact: NDArray[np.float64]) -> dict[str, Any]:
    """Medians of the phases, their shares, and increments against the ceiling."""
    found = [once(path) for _ in range(rounds + 1)][1:]
    _, numbered, gain, increments = found[0]
    np.testing.assert_allclose(gain[: len(exact)], exact, rtol=0, atol=1e-10)
    seconds = {name: statistics.median(run[0][name] for run in found) for name in PHASES}
    whole, counting = sum(seconds.values()), sum(seconds[name] for name in COUNTING)
    triangle, rows = increments.tolist()
    return {
        "kind": "phases",
        "sentences": numbered.sentences,
        "tokens": numbered.tokens,
        "rounds": rounds,
        "ms": {name: round(1e3 * value, 3) for name, value in seconds.items()},
        "share": {name: round(value / whole, 4) for name, value in seconds.items()},
        "increments_per_token": {
            "triangle": round(triangle / numbered.tokens, 3),
            "rows": round(rows / numbered.tokens, 3),
        },
        "G increments/s": {
            "triangle": round(triangle / seconds["triangle"] / 1e9, 3),
            "rows": round(rows / seconds["rows"] / 1e9, 3),
            "counting": round((triangle + rows) / counting / 1e9, 3),
        },
        "ceiling": {f"{kib} KiB": ceiling(kib) for kib in (16, 512, 2048)},
    }
