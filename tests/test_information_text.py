"""Text in, part by part: packed files, streams, columns, running text, and what is broken."""

import gzip
import os
import re
import sqlite3
import warnings

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_information import SENTENCES, assert_same, gain, write

from simcse_fast.information import corpus as corpora
from simcse_fast.information import readers

LINES = "\n".join(SENTENCES).encode()


@pytest.fixture(scope="module")
def expected():
    return gain(SENTENCES)


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of a few bytes and rows, so that every sentence meets a border."""
    for module in (readers, corpora):
        monkeypatch.setattr(module, "BLOCK", 7)
        monkeypatch.setattr(module, "ROWS", 2)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("a.txt", LINES, id="txt"),
        pytest.param("a.txt", LINES + b"\n", id="txt-ends-with-a-line"),
        pytest.param("a.txt", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n"), id="windows"),
        pytest.param("a.txt.gz", gzip.compress(LINES), id="gzip"),
        pytest.param("a.gz", gzip.compress(LINES), id="gzip-of-no-ending"),
        pytest.param("a.txt.gz", gzip.compress(LINES[:30]) + gzip.compress(LINES[30:]), id="two"),
        pytest.param("a.txt.zst", pa.compress(LINES, "zstd", asbytes=True), id="zstd"),
        pytest.param(
            "a.jsonl.gz",
            gzip.compress(b"\n".join(b'{"text": "%s"}' % s.encode() for s in SENTENCES)),
            id="jsonl",
        ),
    ],
)
def test_packed_and_plain_files_agree(name, content, expected, tmp_path):
    assert_same(gain(write(tmp_path / name, content), threads=2), expected)


@pytest.mark.usefixtures("small_parts")
def test_streams_tables_and_frames_agree(expected, tmp_path):
    rows = [{"title": "t", "text": text} for text in SENTENCES]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    streaming = datasets.IterableDataset.from_generator(lambda: iter(rows))
    for corpus in (
        streaming,
        datasets.Dataset.from_list(rows),
        pd.DataFrame(rows),
        pa.Table.from_pylist(rows),
        pa.chunked_array([SENTENCES[:3], SENTENCES[3:]]),
        (text for text in SENTENCES),
        pa.Table.from_pylist(rows).to_reader(),
        tmp_path / "a.parquet",
    ):
        assert_same(gain(corpus, threads=2), expected)


def test_a_column_of_any_name(expected, tmp_path):
    rows = [{"body": text, "text": "no"} for text in SENTENCES]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet")
    lines = pd.DataFrame(rows).to_json(orient="records", lines=True)
    write(tmp_path / "a.jsonl", lines)
    for corpus in (table, tmp_path / "a.parquet", tmp_path / "a.jsonl"):
        assert_same(gain(corpus, column="body"), expected)
        with pytest.raises(ValueError, match="column 'boby' is not there; found body, text"):
            gain(corpus, column="boby")
    with pytest.raises(ValueError, match="column 'n' holds no strings; found n, text"):
        gain(pa.table({"n": [1], "text": ["a"]}), column="n")


def test_running_text_is_split_into_sentences():
    texts = ["Dr. Smith drank wine. He did not like it! \n\nInk is red.", "The end"]
    split = ["Dr. Smith drank wine.", "He did not like it!", "Ink is red.", "The end"]
    for code in (True, "en"):
        assert_same(gain(texts, split_sentences=code), gain(split))
    assert gain(texts, split_sentences=True).sentences == 4
    assert gain(texts, context="document").sentences == 2


def test_a_line_of_100_megabytes(tmp_path):
    """One line over many blocks; its words are counted like any others."""
    words = [f"w{i}" for i in range(100)]
    line = " ".join(words) + " "
    repeats = 100_000_000 // len(line) + 1
    with (tmp_path / "long.txt").open("w") as file:
        file.write("a short one\n")
        file.writelines(line for _ in range(repeats))
        file.write("\na short one")
    table = gain(tmp_path / "long.txt")
    assert table.tokens == 100 * repeats + 6
    assert (table.sentences, table.vocabulary_size) == (3, 103)
    assert table.lookup("short")["information_gain"] == pytest.approx(
        np.log(table.tokens / 4), abs=1e-9
    )


def test_a_stream_is_read_by_the_thread_that_owns_it():
    """As cursors of sqlite3 demand."""
    connection = sqlite3.connect(":memory:")
    connection.execute("create table t (text)")
    connection.executemany("insert into t values (?)", [(text,) for text in SENTENCES])
    rows = (row[0] for row in connection.execute("select text from t"))
    assert_same(gain(rows, threads=3), gain(SENTENCES))


def test_a_stream_that_begins_like_a_path_is_a_stream():
    texts = ["notes.txt", "more words", "and others"]
    assert gain(iter(texts)).tokens == 6


@pytest.mark.parametrize("vocabulary", [{"b": 1, "a": 0}, {"a", "b"}], ids=["dict", "set"])
def test_a_vocabulary_without_order_is_refused(vocabulary):
    with pytest.raises(TypeError, match="vocabulary must be a list, the word of id 0 first"):
        gain(([0, 1], [0, 2], vocabulary))
    assert gain(([0, 1], [0, 2], pa.array(["a", "b"]))).arrow["word"].to_pylist() == ["a", "b"]


def test_lines_have_no_columns(tmp_path):
    with pytest.raises(ValueError, match=r"a.txt: column 'text': lines of text have none"):
        gain(write(tmp_path / "a.txt", "a b"), column="text")


# Broken text


def replaced(corpus):
    """The table, and the one warning that came with it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = gain(corpus)
    assert len(caught) == 1
    return table, str(caught[0].message)


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        pytest.param(b"fine\r\n\xc3\xa9\nb \xff\n", "b fine é", "once in .*, line 3", id="byte"),
        pytest.param(b"cut \xc3", "cut", "once in .*, line 1", id="cut-character"),
        pytest.param(b"a\xed\xa0\x80b", "a b", "3 times, first in .*, line 1", id="surrogate"),
        pytest.param(b"a\n\xff\xfe\nb\xff", "a b", "3 times, first in .*, line 2", id="many"),
        pytest.param("\ufffd ok\n".encode() + b"\xff", "ok", "once in .*, line 2", id="own"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_invalid_utf8_is_replaced_and_told_once(content, words, message, pack, tmp_path):
    name = "bad.txt" if pack is bytes else "bad.txt.gz"
    table, told = replaced(write(tmp_path / name, pack(content)))
    assert sorted(table.arrow["word"].to_pylist()) == words.split()
    assert re.search(f"corpus: invalid UTF-8 was replaced by U.FFFD {message}", told)


def test_invalid_utf8_is_told_again_where_ids_are_kept(tmp_path):
    path = write(tmp_path / "bad.txt", b"a \xff\nb")
    for _ in range(2):
        with pytest.warns(UserWarning, match="replaced by U.FFFD once in .*bad.txt, line 1"):
            gain(path, cache=True)


def test_invalid_utf8_in_arrow_is_replaced(tmp_path):
    array = pa.array([b"a", b"b\xff\xef\xbf\xbd", b"\xffc"]).view(pa.string())
    pq.write_table(pa.table({"text": array}), tmp_path / "a.parquet")
    for corpus in (array, tmp_path / "a.parquet"):
        table, told = replaced(corpus)
        assert table.arrow["word"].to_pylist() == ["a", "b", "c"]
        assert re.search("2 times, first in .*row 1", told)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("a.txt.gz", b"", "is empty", id="no-bytes"),
        pytest.param("a.txt.gz", gzip.compress(b""), "is empty", id="empty-gzip"),
        pytest.param(
            *("a.txt.gz", gzip.compress(os.urandom(9999).hex().encode())[:-50]),
            *("a.txt.gz cannot be read: Truncated",),
            id="truncated-gzip",
        ),
        pytest.param("a.txt.gz", b"no gzip at all", "cannot be read: zlib", id="no-gzip"),
        pytest.param("a.txt.zst", b"no zstd at all", "cannot be read: ZSTD", id="no-zstd"),
        pytest.param("a.txt.gz", gzip.compress(b"a\0b"), "binary file .a NUL at byte 1", id="nul"),
        pytest.param("a.parquet", b"", "is not a Parquet file", id="no-parquet"),
        pytest.param("a.txt.bz2", b"BZh9", "ends in '.bz2'", id="other-packing"),
    ],
)
def test_broken_files_are_named(name, content, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        gain(write(tmp_path / name, content))
    assert name in str(error.value)


def test_a_truncated_parquet_file_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": SENTENCES * 1000}), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"a.parquet is not a Parquet file"):
        gain(path)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("name", ["a.txt", "a.parquet"])
@pytest.mark.parametrize(
    ("event", "message"),
    [
        (lambda path: os.truncate(path, path.stat().st_size // 2), "changed while it was read"),
        (lambda path: path.unlink(), "cannot be read: No such file"),
    ],
    ids=["shrinks", "vanishes"],
)
def test_a_file_that_changes_while_it_is_read(name, event, message, tmp_path):
    """The first part is in hand when it happens."""
    path = tmp_path / name
    if name == "a.txt":
        path.write_bytes(LINES * 50)
    else:
        pq.write_table(pa.table({"text": SENTENCES * 50}), path, row_group_size=10)
    parts = corpora.open_corpus(path).parts
    next(parts)
    event(path)
    with pytest.raises(ValueError, match=message) as error:
        list(parts)
    assert name in str(error.value)


def test_an_iterable_that_fails_midway_is_heard():
    def texts():
        yield "a b"
        raise ConnectionError("the stream broke")

    with pytest.raises(ConnectionError, match="the stream broke"):
        gain(texts(), threads=2)
