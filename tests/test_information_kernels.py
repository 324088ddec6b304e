"""The counting engine: against brute force, scipy, and itself under every split of the work."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from simcse_fast.kernels.cooccurrence import engine, reference
from simcse_fast.kernels.cooccurrence.numba_sentences import RANKED, drop_repeats
from simcse_fast.kernels.numba_threads import run_workers


def gains(ids, offsets, words, threads=1, window=0):
    ids = np.asarray(ids, np.uint32)
    counts = np.bincount(ids, minlength=words)
    offsets = np.asarray(offsets, np.int64)
    return engine.cooccurrence_kl(
        ids, offsets, counts, threads=threads, tick=lambda _: None, window=window
    )


def random_corpus(seed, sentences, longest, words):
    """Zipf-like ids, the small ones frequent; some sentences are empty."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, longest, sentences))])
    ids = np.minimum(rng.geometric(0.08, offsets[-1]) - 1, words - 1)
    return ids.astype(np.uint32), offsets


@pytest.fixture(params=[0, 5, 1024], ids=["no-triangle", "small-triangle", "triangle-for-all"])
def dense(request, monkeypatch):
    """Words whose pairs the triangle counts; the rest are rows of the index."""
    monkeypatch.setattr(engine, "DENSE", request.param)


SHAPES = [
    pytest.param(1, 1, 2, id="one-token"),
    pytest.param(40, 3, 1, id="vocabulary-of-one"),
    pytest.param(7, 12, 13, id="small-prime"),
    pytest.param(300, 40, 60, id="rows-read-in-order"),  # most counters of a row are in use
    pytest.param(60, 4, 60, id="rows-read-by-occurrence"),
    pytest.param(5, 2 * RANKED, 60, id="longer-than-the-rank-sort"),
]


CONTEXTS = [
    pytest.param(0, id="sentence"),
    pytest.param(1, id="neighbours"),
    pytest.param(3, id="window"),
    pytest.param(1000, id="wider-than-texts"),
]


@pytest.mark.usefixtures("dense")
@pytest.mark.parametrize("window", CONTEXTS)
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("sentences", "longest", "words"), SHAPES)
def test_equal_to_brute_force_for_every_word(sentences, longest, words, threads, window):
    ids, offsets = random_corpus(sentences, sentences, longest + 1, words)
    exact = reference.cooccurrence_kl(ids, offsets, words, window or None)
    ours = gains(ids, offsets, words, threads, window)
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("dense")
@pytest.mark.parametrize("window", CONTEXTS)
@pytest.mark.parametrize(("sentences", "longest", "words"), SHAPES)
def test_copies_of_many_chunks_give_what_one_chunk_gives(sentences, longest, words, window):
    """Counts by ranges of rows over chunks, as from disk: integer-valued f, so sums are exact."""
    ids, offsets = random_corpus(sentences, sentences, longest + 1, words)
    counts = np.bincount(ids, minlength=words)
    corpus = engine.Corpus(counts, int(np.diff(offsets).max()), window)
    pairs = reference.cooccurrence_counts(ids, offsets, words, window or None)
    table = integer_table(pairs.max())
    cuts = [0, sentences // 3, sentences // 2, sentences]

    def chunks():
        for low, high in pairwise(cuts):
            first, last = offsets[low], offsets[high]
            yield ids[first:last].copy(), offsets[low : high + 1] - first

    run, counted = engine.Run(2, lambda _: None), engine.empty_counts(corpus)
    for chunk in chunks():
        engine.add_counts(counted, engine.count_chunk(run, corpus, chunk, np.zeros(words))[1])
    sums = engine.sum_triangle(corpus, counted, table)
    middle = (corpus.dense + words) // 2
    for low, high in pairwise(sorted({corpus.dense, middle, words})):
        index = engine.copy_rows(run, corpus, chunks(), (low, high), counted.load)
        sums += engine.sum_rows(run, corpus, index, table)
    np.testing.assert_array_equal(sums, table[pairs].sum(axis=1))
    np.testing.assert_array_equal(counted.terms.company, pairs.sum(axis=1))


def integer_table(largest):
    table = np.random.default_rng(0).integers(0, 1 << 20, largest + 1).astype(np.float64)
    table[:2] = 0  # what the engine may assume of f
    return table


def test_repeats_are_dropped_sentence_by_sentence():
    ids = np.array([3, 3, 1, 3, 1, 1, 2, 2], np.uint32)
    sizes, seen = np.array([4, 0, 2, 2], np.uint32), np.zeros(4, np.int64)
    left = drop_repeats(ids, sizes, seen, 1)
    assert ids[:left].tolist() == [3, 1, 1, 2]
    assert sizes.tolist() == [2, 0, 1, 1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=9), min_size=1, max_size=9))
def test_never_negative_and_equal_to_brute_force(sentences):
    ids = np.array([word for sentence in sentences for word in sentence], np.uint32)
    offsets = np.cumsum([0, *map(len, sentences)])
    ours = gains(ids, offsets, 7)
    np.testing.assert_allclose(ours, reference.cooccurrence_kl(ids, offsets, 7), atol=1e-12)
    assert not np.any(ours < -1e-12)


@pytest.mark.usefixtures("dense")
def test_counts_are_bit_equal_to_scipy_for_every_thread_count():
    """Integer-valued f: sums are exact, so any wrong, lost or doubled pair shows."""
    words = 60
    ids, offsets = random_corpus(3, 500, 30, words)
    matrix = sparse.csr_matrix((np.ones(len(ids), np.int64), ids, offsets), (500, words))
    counts = np.bincount(ids, minlength=words)
    pairs = (matrix.T @ matrix).toarray() - np.diag(counts)
    np.testing.assert_array_equal(pairs, reference.cooccurrence_counts(ids, offsets, words))
    table, log_p = integer_table(pairs.max()), engine.log_shares(counts)
    corpus = engine.Corpus(counts, 30)
    for threads in (1, 2, 3, 8):
        run = engine.Run(threads, lambda _: None)
        sums, counted = engine.pair_sums(corpus, (ids, offsets), run, log_p=log_p, table=table)
        np.testing.assert_array_equal(sums, table[pairs].sum(axis=1))
        np.testing.assert_array_equal(counted.terms.company, pairs.sum(axis=1))
        np.testing.assert_array_equal(counted.terms.own, pairs.diagonal())


def test_runs_are_bitwise_equal():
    ids, offsets = random_corpus(4, 200, 30, 2000)
    first = gains(ids, offsets, 2000, threads=3)
    np.testing.assert_array_equal(gains(ids, offsets, 2000, threads=3), first)


def test_order_of_sentences_and_of_words_does_not_matter():
    ids, offsets = random_corpus(5, 90, 12, 50)
    rng = np.random.default_rng(0)
    sentences = np.split(ids, offsets[1:-1])
    shuffled = [rng.permutation(sentences[i]) for i in rng.permutation(len(sentences))]
    moved = gains(np.concatenate(shuffled), np.cumsum([0, *map(len, shuffled)]), 50)
    np.testing.assert_allclose(moved, gains(ids, offsets, 50), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("dense")
def test_counts_beyond_32_bits():
    """One sentence of 2 x 70,000 tokens: c_01 = 4.9e9, c_00 = 4.9e9 - 70,000."""
    half = 70_000
    ids = np.repeat(np.array([0, 1], np.uint32), half)
    ours = gains(ids, [0, 2 * half], 2)
    beside = np.array([half - 1, half]) / (2 * half - 1)
    np.testing.assert_allclose(ours, np.sum(beside * np.log(2 * beside)), rtol=0, atol=1e-12)


def test_words_and_times_that_need_64_bits_together(monkeypatch):
    """A vocabulary of 2^25 beside a sentence of 200 tokens does not pack into 32 bits."""
    ids, offsets = random_corpus(6, 20, 400, 50)
    monkeypatch.setattr(engine.Corpus, "bits", 27)
    assert engine.Corpus(np.zeros(50), 400).entry is np.uint64
    exact = reference.cooccurrence_kl(ids, offsets, 50)
    np.testing.assert_allclose(gains(ids, offsets, 50, 2), exact, rtol=0, atol=1e-12)


def test_ids_are_left_alone_unless_they_may_be_overwritten():
    ids, offsets = random_corpus(7, 30, 2 * RANKED, 50)
    before, counts = ids.copy(), np.bincount(ids, minlength=50)
    kept = gains(ids, offsets, 50, 2)
    np.testing.assert_array_equal(ids, before)
    options = {"threads": 2, "tick": lambda _: None, "overwrite": True}
    np.testing.assert_array_equal(engine.cooccurrence_kl(ids, offsets, counts, **options), kept)


@pytest.mark.usefixtures("dense")
def test_progress_adds_up_to_the_tokens_without_repeats():
    offsets = np.array([0, 3, 3, 7])
    ids = np.array([0, 1, 6, 0, 1, 2, 5], np.uint32)
    done = []
    counts = np.bincount(ids)
    engine.cooccurrence_kl(ids, offsets, counts, threads=2, tick=done.append)
    assert sum(done) == len(ids)


def test_a_failing_worker_stops_the_others_and_is_heard():
    def work(worker):
        if worker == 1:
            raise KeyError("lost")
        while True:
            yield 1

    with pytest.raises(KeyError, match="lost"):
        run_workers(2, work, lambda _: None)


def test_works_where_nothing_can_be_written(tmp_path):
    """A read-only install without a home: compiled in memory, one short kernel."""
    code = (
        "import numba.core.caching as c\n"
        "def refuse(*a, **k): raise RuntimeError('no locator available')\n"
        "c.FunctionCache.__init__ = refuse\n"
        "from simcse_fast.kernels.text.numba_kernels import same_word\n"
        "import numpy as np\n"
        "data = np.frombuffer(b'abAB', np.uint8)\n"
        "print(same_word(data, 0, data, 2, 2))\n"
    )
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "True"
