"""The tokenizer "words": Numba against its written-out reference."""

# ruff: noqa: RUF001 - letters that look alike are the point

import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simcse_fast.information.corpus import Text
from simcse_fast.information.ids import MemorySink
from simcse_fast.information.lower_case import in_lower_case
from simcse_fast.information.numbering import Plan, number_text
from simcse_fast.information.sentences import Part, Sentences
from simcse_fast.kernels.text import numba_kernels, reference

# Characters on both sides of every rule: case, marks, digits, separators, widths of 1 to 4 bytes.
ALPHABET = "aZ09 _-'\t\r\n\0éÉßΣσςİıK\u0301\u093f\u200d\u2019ǅ½²日本، 🙂𝒜\U000e0100\U0010ffff"


def buffers(texts):
    encoded = [text.encode() for text in texts]
    starts = np.cumsum([0, *map(len, encoded)])
    return np.frombuffer(b"".join(encoded), np.uint8), starts.astype(np.int64)


def numbered(texts, threads=1, part=1 << 20):
    """Split and numbered, `part` texts at a time."""
    data, starts = buffers(texts)
    parts = (
        Part(Sentences(data, starts[first : first + part + 1]), int(starts[first]))
        for first in range(0, len(texts), part)
    )
    plan = Plan(encoder=None, presence=False, language=None, threads=threads)
    return number_text(Text(parts, None), plan, MemorySink(threads), lambda *_: None)


def assert_equal_to_reference(texts, threads=1, part=1 << 20):
    ids, offsets, vocabulary = reference.number_words(texts)
    ours = numbered(texts, threads, part)
    assert ours.vocabulary.to_pylist() == vocabulary
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
    assert_equal_to_reference(texts, threads, part=2)


def test_splits_as_documented():
    assert reference.split_words("Don't stop_at x-ray 3½, naïve हिन्दी 日本語。テスト") == [
        *("don", "t", "stop", "at", "x", "ray", "3½", "naïve", "हिन्दी", "日本語", "テスト")
    ]


def test_line_breaks_of_all_kinds_separate():
    assert numbered(["a\r\nb\nc\rd\u2028e\u0085f"]).vocabulary.to_pylist() == list("abcdef")


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


def test_parts_merge_to_the_whole():
    texts = [f"Shared word{i % 7} É{i % 3} é{i % 3}" for i in range(100)]
    whole = numbered(texts)
    for threads in (1, 2, 5):
        parts = numbered(texts, threads, part=3)
        assert parts.vocabulary.equals(whole.vocabulary)
        np.testing.assert_array_equal(parts.ids, whole.ids)
        np.testing.assert_array_equal(parts.offsets, whole.offsets)


def test_a_word_longer_than_all_letters_so_far():
    long = "x" * (3 * numba_kernels.LETTERS)
    ours = numbered(["a " + long, long + " b"])
    assert ours.vocabulary.to_pylist() == [long, "a", "b"]


def test_a_slice_of_a_buffer_is_read_from_its_start():
    data, starts = buffers(["skipped", "kept one", "kept"])
    words = numba_kernels.Words()
    ids, sizes = words.number(data, starts[1:])
    assert in_lower_case(words).to_pylist() == ["kept", "one"]
    assert ids.tolist() == [0, 1, 0]
    assert sizes.tolist() == [2, 1]


def test_progress_adds_up_to_what_was_read():
    data, starts = buffers(["one two", "three", ""])
    done = []
    parts = iter([Part(Sentences(data, starts[:2]), 8), Part(Sentences(data, starts[1:]), 20)])
    plan = Plan(encoder=None, presence=False, language=None, threads=2)
    number_text(Text(parts, 20), plan, MemorySink(2), lambda *counts: done.append(counts))
    assert done == [(8, 2), (12, 1)]


def test_a_part_that_cannot_be_read_stops_all_workers():
    def parts():
        yield Part(Sentences(*buffers(["a b"])), 1)
        raise OSError("gone")

    plan = Plan(encoder=None, presence=False, language=None, threads=3)
    with pytest.raises(OSError, match="gone"):
        number_text(Text(parts(), None), plan, MemorySink(3), lambda *_: None)
