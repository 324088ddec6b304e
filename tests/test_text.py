"""The tokenizer "words": Numba against its written-out reference."""

# ruff: noqa: RUF001 - letters that look alike are the point

import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simcse_fast.kernels.text import numba_kernels, reference

# Characters on both sides of every rule: case, marks, digits, separators, widths of 1 to 4 bytes.
ALPHABET = "aZ09 _-'\t\r\n\0éÉßΣσςİıK\u0301\u093f\u200d\u2019ǅ½²日本، 🙂𝒜\U000e0100\U0010ffff"


def buffers(texts):
    encoded = [text.encode() for text in texts]
    starts = np.cumsum([0, *map(len, encoded)])
    return np.frombuffer(b"".join(encoded), np.uint8), starts.astype(np.int64)


def numbered(texts, threads=1):
    return numba_kernels.number_words(*buffers(texts), threads=threads, tick=lambda _: None)


def assert_equal_to_reference(texts, threads=1):
    ids, offsets, vocabulary = reference.number_words(texts)
    ours = numbered(texts, threads)
    assert ours.vocabulary == vocabulary
    np.testing.assert_array_equal(ours.ids, ids)
    np.testing.assert_array_equal(ours.offsets, offsets)
    np.testing.assert_array_equal(ours.counts, np.bincount(ids, minlength=len(vocabulary)))


@settings(max_examples=150, deadline=None)
@example(["ΑΣ ΑΣ.Β", "ας"], 2)  # the final sigma depends on the word alone
@example(["É é e\u0301 E\u0301"], 1)  # two normal forms, each folded
@example(["K k İ i̇"], 1)  # lower case of other length, or in ASCII
@example(["a" * 300, "A" * 300], 3)
@given(
    st.lists(st.one_of(st.text(ALPHABET, max_size=30), st.text(max_size=10)), max_size=8),
    st.integers(1, 3),
)
def test_equal_to_the_reference_on_any_text(texts, threads):
    assert_equal_to_reference(texts, threads)


def test_splits_as_documented():
    assert reference.split_words("Don't stop_at x-ray 3½, naïve हिन्दी 日本語。テスト") == [
        *("don", "t", "stop", "at", "x", "ray", "3½", "naïve", "हिन्दी", "日本語", "テスト")
    ]


def test_line_breaks_of_all_kinds_separate():
    assert numbered(["a\r\nb\nc\rd\u2028e\u0085f"]).vocabulary == list("abcdef")


def test_word_characters_are_those_of_the_reference_in_all_of_unicode():
    expected = np.fromiter(
        (c.isalnum() or unicodedata.category(c)[0] == "M" for c in map(chr, range(0x110000))), bool
    )
    np.testing.assert_array_equal(numba_kernels.word_characters(), expected)


@pytest.mark.parametrize(
    "distinct",
    [
        pytest.param(4096, id="table-just-full"),
        pytest.param(4097, id="one-word-over"),
        pytest.param(40_000, id="grown-twice"),
    ],
)
def test_tables_that_grow_keep_every_word(distinct):
    words = [f"w{i}" for i in range(distinct)]
    assert_equal_to_reference([" ".join(words), " ".join(reversed(words)).upper(), "w7"])


def test_shards_merge_to_the_whole(monkeypatch):
    texts = [f"Shared word{i % 7} É{i % 3} é{i % 3}" for i in range(100)]
    whole = numbered(texts)
    monkeypatch.setattr(numba_kernels, "SHARD", 64)  # some forty shards
    for threads in (1, 2, 5):
        parts = numbered(texts, threads)
        assert parts.vocabulary == whole.vocabulary
        np.testing.assert_array_equal(parts.ids, whole.ids)
        np.testing.assert_array_equal(parts.offsets, whole.offsets)


def test_a_slice_of_a_buffer_is_read_from_its_start():
    data, starts = buffers(["skipped", "kept one", "kept"])
    ours = numba_kernels.number_words(data, starts[1:], threads=2, tick=lambda _: None)
    assert ours.vocabulary == ["kept", "one"]


def test_progress_adds_up_to_the_bytes():
    data, starts = buffers(["one two", "three", ""])
    done = []
    numba_kernels.number_words(data, starts, threads=2, tick=done.append)
    assert sum(done) == len(data)
