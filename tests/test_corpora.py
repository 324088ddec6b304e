"""What passes for a corpus beside lists of sentences, and what is said of what does not."""

import numpy as np
import pyarrow as pa
import pytest

from simcse_fast.information import information_gain


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        pytest.param(([0, 1, 2], [0, 3]), [0, 1, 2], id="ids-as-lists"),
        pytest.param((pa.array([0, 1]), pa.array([0, 2])), [0, 1], id="ids-of-arrow"),
        pytest.param(tuple(np.array(["a b", "c"])), ["a", "b", "c"], id="two-numpy-strings"),
        pytest.param(
            ["a notes.txt", "b c.txt"], ["a", "b", "c", "notes", "txt"], id="ends-as-a-file"
        ),
        pytest.param(
            pa.table({"text": pa.array(["a b", "a b"]).dictionary_encode()}),
            ["a", "b"],
            id="categories",
        ),
    ],
)
def test_unusual_corpora(corpus, words):
    table = information_gain(corpus, min_count=1, progress=False)
    assert sorted(table.arrow["word"].to_pylist()) == words


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (r'{"text": "\ud800"}', "line 3: a lone surrogate"),
        ("1" * 5000, "line 3: not JSON"),
        ("[" * 200_000, "line 3: not JSON"),
    ],
    ids=["surrogate", "digits", "nesting"],
)
def test_a_bad_line_of_json_is_named(line, message, tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('"a b"\n\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        information_gain(path)


def test_a_sentence_is_no_file_however_long():
    with pytest.raises(ValueError, match="put a single sentence in a list"):
        information_gain("word " * 100)


def test_the_only_word_tells_nothing():
    table = information_gain(["a a"], min_count=1, progress=False)
    assert str(table.column("self_information").item()) == "0.0"
    with pytest.raises(ValueError, match="top: expected rows >= 0"):
        table.top(-1)
