"""What is counted (windows, sets, margins), the matrix of counts, and what chance gives."""

import errno
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_information import SENTENCES, assert_same, by_word, gain

from simcse_fast.information import corrections
from simcse_fast.kernels.cooccurrence import reference
from simcse_fast.kernels.text.reference import number_words, split_words

TEXTS = [*SENTENCES, "the the red wine the", "ink ink ink", "Ünï ünï ÜNÏ wine", "ΑΣ ας"]


def random_texts(sentences, words=60, seed=0):
    rng = np.random.default_rng(seed)
    return [
        " ".join(f"w{word}" for word in rng.zipf(1.4, rng.integers(0, 25)) % words)
        for _ in range(sentences)
    ]


def assert_is_reference(table, texts, **options):
    ids, offsets, vocabulary = number_words(texts)
    exact = reference.cooccurrence_kl(ids, offsets, len(vocabulary), **options)
    assert table.arrow["word"].to_pylist() == vocabulary
    np.testing.assert_allclose(table.column("information_gain"), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("texts", [TEXTS, random_texts(200)], ids=["few", "random"])
@pytest.mark.parametrize("window", [1, 2, 7, 1000])
def test_windows_count_positions_to_either_side(texts, window):
    assert_is_reference(gain(texts, context=window), texts, window=window)
    marginal = gain(texts, context=window, probability="marginal")
    assert_is_reference(marginal, texts, window=window, marginal=True)


@pytest.mark.parametrize("window", [2**62, 2**63 - 1, 10**19])
def test_windows_of_any_width(window):
    assert_same(gain(TEXTS, context=window), gain(TEXTS, context=1000))


def test_documents_are_whole_texts():
    assert_same(gain(TEXTS, context="document"), gain(TEXTS))


@pytest.mark.parametrize("texts", [TEXTS, random_texts(200)], ids=["few", "random"])
def test_presence_counts_sets_of_words(texts):
    sets = [" ".join(dict.fromkeys(split_words(text))) for text in texts]
    table = gain(texts, presence=True)
    assert_is_reference(table, sets)
    assert table.tokens == sum(len(text.split()) for text in sets)
    assert_same(gain(texts, presence=True, threads=3), table)
    ids, offsets, vocabulary = number_words(texts)
    assert_same(gain((ids, offsets, vocabulary), presence=True), table)


def test_marginal_shares_are_those_of_the_matrix():
    texts = random_texts(200)
    table = gain(texts, probability="marginal")
    assert_is_reference(table, texts, marginal=True)
    ids, offsets, vocabulary = number_words(texts)
    beside = reference.cooccurrence_counts(ids, offsets, len(vocabulary)).sum(axis=1)
    np.testing.assert_array_equal(table.column("probability"), beside / beside.sum())
    lonely = gain(["a b", "lonely"], probability="marginal").lookup("lonely")
    assert (lonely["probability"], lonely["self_information"]) == (0, np.inf)


# The matrix of counts


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dense", [0, 7, 1024])
@pytest.mark.parametrize("options", [{}, {"context": 2}, {"presence": True}], ids=str)
def test_the_matrix_is_counted_exactly(options, dense, threads, monkeypatch):
    monkeypatch.setattr("simcse_fast.kernels.cooccurrence.engine.DENSE", dense)
    monkeypatch.setattr("simcse_fast.information.pairs.MOST", 50)
    texts = random_texts(150)
    table, matrix = gain(texts, threads=threads, return_counts=True, **options)
    assert_same(table, gain(texts, **options))
    if "presence" in options:
        texts = [" ".join(dict.fromkeys(text.split())) for text in texts]
    ids, offsets, vocabulary = number_words(texts)
    exact = reference.cooccurrence_counts(ids, offsets, len(vocabulary), options.get("context"))
    np.testing.assert_array_equal(matrix.toarray(), exact)
    assert matrix.nnz == np.count_nonzero(exact)
    assert table.arrow["word"].to_pylist() == vocabulary


def test_the_matrix_has_the_rows_of_the_table(tmp_path):
    texts = random_texts(150)
    table, matrix = gain(texts, min_count=20, return_counts=True)
    _, whole = gain(texts, return_counts=True)
    shown = len(table)
    assert shown < whole.shape[0]
    np.testing.assert_array_equal(matrix.toarray(), whole.toarray()[:shown, :shown])
    path = tmp_path / "pairs.parquet"
    assert gain(texts, min_count=20, return_counts=str(path))[1] == path
    number = {word: i for i, word in enumerate(table.column("word"))}
    found = np.zeros((shown, shown), np.int64)
    for row in pq.read_table(path).to_pylist():
        found[number[row["word"]], number[row["other"]]] += row["count"]
    np.testing.assert_array_equal(found + np.tril(found, -1).T, matrix.toarray())


def test_no_word_is_frequent_enough_for_a_matrix(tmp_path):
    table, matrix = gain(["a b"], min_count=9, return_counts=True)
    assert (len(table), matrix.shape) == (0, (0, 0))
    path = tmp_path / "pairs.parquet"
    gain(["a b"], min_count=9, return_counts=path)
    assert pq.read_table(path).num_rows == 0


def test_a_matrix_that_cannot_be_written_replaces_nothing(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no/pairs.parquet cannot be written: .*No such file"):
        gain(["a b"], return_counts=tmp_path / "no" / "pairs.parquet")
    with pytest.raises(ValueError, match=r"return_counts: .*: no regular file; name another file"):
        gain(["a b"], return_counts=tmp_path)
    path = tmp_path / "pairs.parquet"
    path.write_text("an older one")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(ValueError, match="No space left on device; free some, or name another"):
        gain(["a b"], return_counts=path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "an older one"


# Chance


def poisson_excess(x, counts=3000):
    """E[c log c] - x log x in long doubles, term by term."""
    c = np.arange(1, counts, dtype=np.longdouble)
    chance = np.exp(c * np.log(np.longdouble(x)) - x - np.cumsum(np.log(c)))
    return float(np.sum(chance * c * np.log(c)) - x * np.log(np.longdouble(x)))


@pytest.mark.parametrize("x", [1e-9, 1e-3, 0.5, 1.0, 3.7, 50.0, 199.0, 201.0, 1000.0])
def test_excess_is_its_definition(x):
    ours = corrections.excess(np.array([x])).item()
    assert ours == pytest.approx(poisson_excess(x), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 2000), st.floats(0.5, 2.0), st.integers(0, 9))
def test_null_is_its_sum_over_the_vocabulary(words, exponent, seed):
    """Interpolated in R and x: to 1e-3 of the sum of the definition."""
    share = np.arange(1, words + 1) ** -exponent
    share /= share.sum()
    company = np.random.default_rng(seed).integers(1, 10**6, words)
    ours = corrections.null_gain(share, company)
    for word in range(0, words, max(1, words // 3)):
        exact = sum(corrections.excess(company[word] * share)) / company[word]
        assert ours[word] == pytest.approx(exact, rel=1e-3)


def test_null_is_what_shuffling_gives():
    """Words drawn at random: raw, null and shuffled agree, and nothing is left."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, 3001)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(5, 40, 6000))])
    ids = rng.choice(3000, offsets[-1], p=share / share.sum())
    null = gain((ids, offsets), correction="null", min_count=20)
    shuffled = gain((ids, offsets), correction="shuffle", rounds=20, min_count=20)
    ratio = shuffled.column("null") / null.column("null")
    assert abs(np.median(ratio) - 1) < 0.005
    assert np.median(np.abs(ratio - 1)) < 0.02  # what is left scatters among the shuffles
    # A word of an eighth of all tokens: its pairs come in clumps, Poisson would be 23 % off.
    assert np.max(np.abs(ratio - 1)[null.column("count") > 2000]) < 0.03
    raw = null.column("information_gain") / null.column("null")
    assert abs(np.median(raw) - 1) < 0.01
    np.testing.assert_array_equal(
        null.column("corrected"), null.column("information_gain") - null.column("null")
    )


@pytest.mark.parametrize("context", ["sentence", 2])
def test_shuffling_keeps_tokens_and_lengths_and_depends_on_its_seed(context):
    texts = random_texts(100)
    one = gain(texts, correction="shuffle", rounds=2, seed=3, context=context)
    same = gain(texts, correction="shuffle", rounds=2, seed=3, context=context, threads=3)
    other = gain(texts, correction="shuffle", rounds=2, seed=4, context=context)
    np.testing.assert_allclose(one.column("null"), same.column("null"), rtol=0, atol=1e-12)
    assert not np.array_equal(one.column("null"), other.column("null"))
    assert_same(one, gain(texts, context=context))


def test_shuffled_chunks_are_a_permutation(monkeypatch):
    monkeypatch.setattr("simcse_fast.information.ids.CHUNK", 100)
    ids, offsets, vocabulary = number_words(random_texts(80))
    counts = np.bincount(ids)
    numbered = corrections_numbered(ids, offsets, counts)
    chunks = list(corrections.shuffled(numbered, (0, 0)))
    assert len(chunks) > 3
    np.testing.assert_array_equal(np.bincount(np.concatenate([c for c, _ in chunks])), counts)
    sizes = np.concatenate([np.diff(starts) for _, starts in chunks])
    np.testing.assert_array_equal(sizes, np.diff(offsets))
    assert len(vocabulary) == len(counts)


def corrections_numbered(ids, offsets, counts):
    from simcse_fast.information.ids import Numbered  # noqa: PLC0415 - beside its only use

    sizes = np.diff(offsets)
    return Numbered(None, counts, len(ids), len(sizes), sizes.max(), offsets, ids)


def test_too_many_tokens_to_shuffle_are_refused(monkeypatch):
    monkeypatch.setattr(corrections, "MOST_DRAWN", 10)
    with pytest.raises(ValueError, match=r"fewer than 10 tokens, this has .*; expected .null."):
        gain(TEXTS, correction="shuffle")


def test_words_without_company_have_no_null():
    table = gain(["a b", "lonely"], correction="null")
    assert np.isnan(table.lookup("lonely")["null"])
    assert np.isnan(table.lookup("lonely")["corrected"])
    alone = gain(["lonely"], correction="null")
    assert np.isnan(alone.column("null")).all()
    for rounds in (1, 3):
        again = gain(["lonely", "word"], correction="shuffle", rounds=rounds)
        assert np.isnan(again.column("null")).all()


def test_bands_and_bottom():
    table = gain(random_texts(300))
    counts = [band.column("count") for band in table.bands()]
    assert np.concatenate(counts).tolist() == table.column("count").tolist()
    for band in counts:
        assert len({len(str(count)) for count in band.tolist()}) == 1
    lowest = sorted(value for value in by_word(table).values() if not np.isnan(value))[:3]
    assert table.bottom(3).column("information_gain").tolist() == lowest
    with pytest.raises(ValueError, match=r"bottom: expected rows >= 0 .*got 2, 'word'"):
        table.bottom(2, by="word")


def test_plots_show_chance():
    table = gain(random_texts(300), correction="null")
    axes = table.plot()
    curve = axes.lines[0].get_xydata()
    assert np.all(np.diff(curve[:, 0]) > 0)
    null = table.column("null")
    assert null.min() <= curve[:, 1].min()
    assert curve[:, 1].max() <= null.max()
    corrected = table.plot(corrected=True).collections[0].get_offsets()
    np.testing.assert_array_equal(corrected[:, 1], table.column("corrected"))


class Bar:
    """What tqdm is told."""

    def __init__(self, **options):
        self.options, self.updates, self.told = options, [], []
        self.format_dict = {"elapsed": 2.0}
        BARS.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, count):
        self.updates.append(count)

    def set_postfix_str(self, text, **_):
        self.told.append(text)


BARS = []


@pytest.mark.parametrize("threads", [1, 3])
def test_bars_tell_bytes_tokens_and_their_rate(threads, tmp_path, monkeypatch):
    monkeypatch.setattr("tqdm.tqdm", Bar)
    BARS.clear()
    path = tmp_path / "a.txt"
    path.write_text("\n".join(random_texts(500)))
    table = gain(path, progress=True, threads=threads, correction="shuffle", rounds=2)
    reading, counting, shuffling = BARS
    assert reading.options["total"] == sum(reading.updates) == path.stat().st_size
    assert reading.told[-1] == f"{table.tokens / 1e6:.1f} M tokens, {table.tokens / 2e6:.1f} M/s"
    assert counting.options["total"] == sum(counting.updates) == table.tokens
    assert shuffling.options["total"] == sum(shuffling.updates) == 2 * table.tokens
    assert [bar.options["desc"] for bar in BARS] == ["splitting", "counting", "shuffling"]
    assert {bar.options["disable"] for bar in BARS} == {None}  # silent where no terminal is
