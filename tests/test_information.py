"""information_gain: every kind of corpus, the table, and what bad input says."""

# ruff: noqa: S106 - a token of text is no password

import json
import os

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from simcse_fast.information import InformationTable, information_gain
from simcse_fast.kernels.cooccurrence import reference
from simcse_fast.kernels.text.reference import number_words

SENTENCES = [
    "Red wine and white wine.",
    "The red ink, the white paper",
    "alone",
    "",
    "Wine on paper: the ink!",
]


def gain(corpus, **options):
    return information_gain(corpus, **({"min_count": 1, "progress": False} | options))


def by_word(table):
    return dict(zip(table.column("word"), table.column("information_gain"), strict=True))


def assert_same(table, other):
    assert table.arrow["word"].to_pylist() == other.arrow["word"].to_pylist()
    for name in ("count", "probability", "self_information", "information_gain"):
        np.testing.assert_allclose(table.column(name), other.column(name), rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def expected():
    return gain(SENTENCES)


def test_values_are_the_definition_for_every_word(expected):
    ids, offsets, vocabulary = number_words(SENTENCES)
    exact = reference.cooccurrence_kl(ids, offsets, len(vocabulary))
    assert len(expected) == len(vocabulary)
    assert (expected.tokens, expected.sentences) == (len(ids), len(SENTENCES))
    for i, word in enumerate(vocabulary):
        row, count = expected.lookup(word), int(np.sum(ids == i))
        assert row["count"] == count
        assert row["probability"] == count / len(ids)
        assert row["self_information"] == pytest.approx(-np.log(count / len(ids)), abs=1e-15)
        assert row["information_gain"] == pytest.approx(exact[i], abs=1e-12, nan_ok=True)
    assert np.isnan(expected.lookup("alone")["information_gain"])


# Corpora


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_in_memory_corpora_agree(expected):
    strings = pa.array(SENTENCES)
    for corpus in (
        tuple(SENTENCES),
        iter(SENTENCES),
        strings,
        pa.array(["not this", *SENTENCES], pa.large_string())[1:],
        pa.chunked_array([strings[:2], strings[2:]]),
        strings.dictionary_encode(),
        pa.table({"n": range(5), "sentence": strings}),
        datasets.Dataset.from_dict({"text": SENTENCES, "title": [""] * 5}),
        datasets.Dataset.from_dict({"text": ["x", *SENTENCES]}).select(range(1, 6)),
    ):
        assert_same(gain(corpus), expected)


def test_files_agree(expected, tmp_path):
    write(tmp_path / "unix.txt", "\n".join(SENTENCES))
    write(tmp_path / "windows.txt", "\ufeff" + "\r\n".join(SENTENCES) + "\r\n")
    pq.write_table(pa.table({"text": SENTENCES}), tmp_path / "a.parquet")
    lines = [json.dumps(text) for text in SENTENCES]
    objects = [json.dumps({"id": str(i), "text": text}) for i, text in enumerate(SENTENCES)]
    write(tmp_path / "strings.jsonl", "\n".join(lines))
    write(tmp_path / "objects.jsonl", "\n\n".join(objects))
    for path in sorted(tmp_path.iterdir()):
        assert_same(gain(path), expected)
        assert_same(gain(str(path)), expected)


def test_parts_add_up_to_the_whole(expected, tmp_path):
    first, second = "\n".join(SENTENCES[:2]), "\n".join(SENTENCES[2:])
    paths = [write(tmp_path / "1.txt", first), write(tmp_path / "2.txt", second)]
    assert_same(gain(paths), expected)
    assert_same(gain([str(path) for path in paths]), expected)
    assert_same(gain(f"{tmp_path}/*.txt"), expected)


def test_token_ids_with_and_without_a_vocabulary(expected):
    ids, offsets, vocabulary = number_words(SENTENCES)
    assert_same(gain((ids, offsets, vocabulary)), expected)
    sparse_ids = ids.astype(np.int64) * 10 + 3  # ids between them never occur
    table = gain((sparse_ids, offsets))
    assert len(table) == len(expected)
    for i, word in enumerate(vocabulary):
        row = table.lookup(i * 10 + 3)
        assert row["information_gain"] == pytest.approx(
            expected.lookup(word)["information_gain"], abs=1e-12, nan_ok=True
        )


def test_order_and_threads_do_not_matter(expected):
    assert_same(gain(SENTENCES[::-1]), expected)
    for threads in (1, 2, 7):
        assert_same(gain(SENTENCES, threads=threads), expected)


def test_rare_words_are_hidden_but_stay_context(expected):
    table = gain(SENTENCES, min_count=3)
    assert table.arrow["word"].to_pylist() == ["the", "wine"]
    assert_same(table, expected.head(2))
    assert (table.tokens, table.vocabulary_size) == (expected.tokens, expected.vocabulary_size)
    assert len(gain(SENTENCES, min_count=100)) == 0


def test_one_long_line(tmp_path):
    """A sentence of 1.2 M tokens: work grows with its distinct words, not with their repeats."""
    words = [f"w{i}" for i in range(40)]
    line = " ".join(words * 30_000)
    table = gain(write(tmp_path / "long.txt", line))
    tokens = 40 * 30_000
    beside = np.array([29_999] + [30_000] * 39) / (tokens - 1)
    np.testing.assert_allclose(
        table.column("information_gain"), np.sum(beside * np.log(40 * beside)), atol=1e-12
    )


# Tokenizers


def word_level(words):
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize("wrap", [False, True], ids=["tokenizers", "transformers"])
def test_tokenizers_count_every_token_and_no_padding(wrap):
    tokenizer = word_level(["[PAD]", "[UNK]", "red", "wine", "ink"])
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(1)
    if wrap:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=2
        )
    table = gain(["red wine red", "wine ink", "tea wine"], tokenizer=tokenizer)
    whole = gain(["red wine red", "wine ink", "tea wine"])
    ours, words = by_word(table), by_word(whole)
    words["[UNK]"] = words.pop("tea")
    assert ours == pytest.approx(words, abs=1e-12)


# The table


def test_columns_lookup_and_order(expected, tmp_path):
    assert expected.arrow.column_names == [
        *("word", "count", "probability", "self_information", "information_gain")
    ]
    counts = expected.column("count")
    assert np.all(np.diff(counts) <= 0)
    assert expected.head(2).arrow["word"].to_pylist() == ["the", "wine"]  # 3 and 3, in order
    best = expected.top(3)
    finite = np.sort(expected.column("information_gain"))
    np.testing.assert_array_equal(
        best.column("information_gain"), finite[np.isfinite(finite)][::-1][:3]
    )
    assert "wine" in expected
    assert "Wine" not in expected
    assert 3 not in expected
    with pytest.raises(KeyError, match="'beer' is not among the 9 words"):
        expected.lookup("beer")
    frame = expected.to_pandas()
    assert frame.set_index("word").loc["wine", "count"] == 3
    expected.to_parquet(tmp_path / "table.parquet")
    assert_same(InformationTable(pq.read_table(tmp_path / "table.parquet"), 17, 5, 9), expected)


def test_repr_names_sizes_and_rows(expected):
    lines = repr(expected).splitlines()
    assert lines[0] == "InformationTable: 9 of 9 words, 17 tokens in 5 sentences"
    assert lines[2].split()[:2] == ["the", "3"]
    assert repr(gain(SENTENCES, min_count=99)).startswith("InformationTable: 0 of 9 words")


def test_plot_draws_every_word(expected):
    axes = expected.plot()
    points = axes.collections[0].get_offsets()
    np.testing.assert_array_equal(points[:, 0], expected.column("count"))
    np.testing.assert_array_equal(points[:, 1], expected.column("information_gain"))
    assert "wine" in {text.get_text() for text in axes.texts}


# Bad input


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"\n \r\n", "is empty", id="blank"),
        pytest.param(b"\x89PNG\0\0", "binary file .a NUL at byte 4.", id="binary"),
        pytest.param("text".encode("utf-16"), "binary file", id="utf-16"),
        pytest.param(b"... !\n", "no words in 1 sentences", id="no-words"),
    ],
)
def test_bad_text_files(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        gain(write(tmp_path / "bad.txt", content))
    assert "no words" in message or "bad.txt" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param('"fine"\n{"text": ', "line 2: not JSON", id="cut"),
        pytest.param('{"text": "a"}\n{"text": 3}', "line 2: expected a string", id="number"),
        pytest.param('{"a": "x", "b": "y"}', "line 1: .*named text or sentence", id="which"),
    ],
)
def test_bad_jsonl(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        gain(write(tmp_path / "bad.jsonl", content))


def test_bad_paths(tmp_path):
    for path, message in (
        ("missing.txt", "corpus: no file 'missing.txt'"),
        ("nothing-*.txt", "corpus: no file"),
        ("a sentence", "put a single sentence in a list"),
        (tmp_path, "expected .txt, .parquet, .jsonl"),
        (write(tmp_path / "a.csv", "x"), "ends in '.csv'"),
        (write(tmp_path / "a.parquet", "x"), "is not a Parquet file"),
    ):
        with pytest.raises(ValueError, match=message):
            gain(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file(tmp_path):
    path = write(tmp_path / "a.txt", "x")
    path.chmod(0)
    with pytest.raises(ValueError, match="cannot be read: Permission denied"):
        gain(path)


@pytest.mark.parametrize(
    ("corpus", "kind", "message"),
    [
        pytest.param([], ValueError, "corpus: no words in 0 sentences", id="empty"),
        pytest.param(["", ""], ValueError, "corpus: no words in 2 sentences", id="blank"),
        pytest.param(pa.array([], pa.string()), ValueError, "no words in 0", id="empty-arrow"),
        pytest.param(["a", 3], TypeError, "entry 1 is int .3.; expected str", id="int"),
        pytest.param(["a", b"b"], TypeError, "entry 1 is bytes", id="bytes"),
        pytest.param(["a", None], TypeError, "entry 1 is NoneType", id="none"),
        pytest.param(["a", "\ud800"], ValueError, "entry 1 holds a lone surrogate", id="surrogate"),
        pytest.param(3, TypeError, "corpus: expected .*; got int", id="number"),
        pytest.param({"text": ["a"]}, TypeError, "corpus: expected .*; got dict", id="dict"),
        pytest.param(pa.array([1]), TypeError, "array of strings, got type int64", id="arrow-int"),
        pytest.param(pa.array(["a", None]), ValueError, "row 1 is null", id="null"),
        pytest.param(
            pa.table({"a": ["x"], "b": ["y"]}), ValueError, "found 2 among a, b", id="columns"
        ),
        pytest.param(
            datasets.DatasetDict(a=datasets.Dataset.from_dict({"text": ["a"]})),
            TypeError,
            "pass one split",
            id="splits",
        ),
    ],
)
def test_bad_corpora(corpus, kind, message):
    with pytest.raises(kind, match=message):
        gain(corpus)


IDS = np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        pytest.param((IDS[None], [0, 3]), r"ids must be .*shape \(1, 3\)", id="shape"),
        pytest.param((IDS / 2, [0, 3]), "ids must be .*dtype float64", id="float"),
        pytest.param((IDS, [0.0, 3.0]), "offsets must be .*dtype float64", id="float-offsets"),
        pytest.param((IDS, [0, 2]), "offsets must run from 0 to .* = 3; got 0 ... 2", id="short"),
        pytest.param((IDS, []), "offsets must run .*; got nothing", id="no-offsets"),
        pytest.param((IDS, [0, 2, 1, 3]), r"offsets\[2\] = 1 after 2", id="fall"),
        pytest.param(
            (IDS - 1, [0, 3]), r"1 of 3 ids are outside .*position 0 \(value -1", id="low"
        ),
        pytest.param(
            (IDS, [0, 3], ["a", "b"]), r"outside \[0, 2\): first at position 2", id="high"
        ),
        pytest.param((IDS, [0, 3], ["a", "b", "a"]), r"vocabulary\[2\] repeats", id="twice"),
    ],
)
def test_bad_token_ids(corpus, message):
    with pytest.raises(ValueError, match=message):
        gain(corpus)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"context": "page"}, ValueError, "context: expected .*'page'"),
        ({"context": 0}, ValueError, "context: expected at least 1, got 0"),
        ({"context": True}, ValueError, "context: expected .*True"),
        ({"correction": "none"}, ValueError, "correction: expected None, .null. or .*'none'"),
        ({"probability": "uniform"}, ValueError, "probability: expected .unigram. or .*'uniform'"),
        ({"engine": "dask"}, ValueError, "engine: expected .local. or .spark.; got 'dask'"),
        ({"presence": 1}, TypeError, "presence: expected True or False, got 1"),
        ({"presence": True, "context": 3}, ValueError, "presence: .* no meaning .*context=3"),
        ({"presence": True, "correction": "shuffle"}, ValueError, "correction: .shuffle. would"),
        ({"split_sentences": "English"}, ValueError, "split_sentences: .*'English'"),
        (
            {"split_sentences": True, "context": "document"},
            ValueError,
            "split_sentences: .*whole texts",
        ),
        ({"memory_limit": "much"}, ValueError, "memory_limit: expected bytes or .*2 GB"),
        ({"memory_limit": 0}, ValueError, "memory_limit: expected at least 1, got 0"),
        ({"memory_limit": 1.5}, TypeError, "memory_limit: expected an int, got float"),
        ({"cache": 3}, TypeError, "cache: expected True, False or a path, got 3"),
        ({"return_counts": 3}, TypeError, "return_counts: expected True, False or a path"),
        ({"rounds": 0}, ValueError, "rounds: expected at least 1, got 0"),
        ({"seed": -1}, ValueError, "seed: expected at least 0, got -1"),
        ({"engine": "spark", "context": 3}, ValueError, "context: engine=.spark. takes"),
        ({"min_count": 0}, ValueError, "min_count: expected at least 1, got 0"),
        ({"min_count": 1.5}, TypeError, "min_count: expected an int, got float"),
        ({"threads": 0}, ValueError, "threads: expected at least 1, got 0"),
        ({"threads": True}, TypeError, "threads: expected an int, got bool"),
        ({"tokenizer": "bert"}, TypeError, "tokenizer: expected .words. or .*'bert'"),
        ({"tokenizer": 3}, TypeError, "tokenizer: expected .words. or .* got int"),
    ],
)
def test_bad_options(options, kind, message):
    with pytest.raises(kind, match=message):
        gain(SENTENCES, **options)


def test_a_tokenizer_for_ids_is_refused():
    with pytest.raises(ValueError, match="tokenizer: the corpus is token ids already"):
        gain((IDS, [0, 3]), tokenizer=word_level(["[UNK]"]))


def test_wikipedia_against_scipy(shared_data):
    """20,000 real sentences: every word, to 1e-12 of the definition on scipy's counts."""
    from scipy import sparse  # noqa: PLC0415 - for this test alone

    texts = pq.read_table(shared_data / "wiki_sentences.parquet")["text"][:20_000]
    table = gain(texts, threads=2)
    ids, offsets, vocabulary = number_words(texts.to_pylist())
    matrix = sparse.csr_matrix(
        (np.ones(len(ids), np.int64), ids, offsets), (len(offsets) - 1, len(vocabulary))
    )
    counts = np.bincount(ids)
    pairs = (matrix.T @ matrix - sparse.diags_array(counts, dtype=np.int64)).tocoo()
    pairs.eliminate_zeros()
    company = np.bincount(pairs.row, pairs.data, len(counts))
    share = pairs.data / company[pairs.row]
    exact = np.bincount(
        pairs.row, share * np.log(share * len(ids) / counts[pairs.col]), len(counts)
    )
    ours = by_word(table)
    np.testing.assert_allclose([ours[word] for word in vocabulary], exact, rtol=0, atol=1e-11)
