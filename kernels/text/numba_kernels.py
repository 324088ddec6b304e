"""The tokenizer "words" over Arrow's string buffers: bytes in, numbered words out.

One pass splits, lower-cases and looks up. Two spellings that differ in ASCII case alone are one
entry of the hash table; other scripts are lower-cased by Python, on the distinct words only.
Equal to kernels.text.reference on any valid UTF-8.
"""

import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simcse_fast.kernels.numba_threads import Tick, jit, run_workers

Array = NDArray[Any]

SHARD = 64 << 20  # bytes of text to one hash table
POINTS = 0x110000
ASCII, LEAD_3, LEAD_4 = 0x80, 0xE0, 0xF0  # first bytes of characters: bounds by their width
MARKS = (0, 1, 2, 3, 14)  # planes that hold combining marks
# ASCII letters and digits in lower case, 0 for separators; bytes of other characters unchanged.
FOLD = np.array([ord(chr(b).lower()) if chr(b).isalnum() else 0 for b in range(256)], np.uint8)
FOLD[ASCII:] = np.arange(ASCII, 256)
SEED, PRIME, HALF = np.uint64(0xCBF29CE484222325), np.uint64(0x9E3779B97F4A7C15), np.uint64(32)


class Numbered(NamedTuple):
    """Ids of all words in order, the tokens of each text, and the words in order of their ids."""

    ids: NDArray[np.uint32]  # (tokens,) by frequency, 0 the most frequent; ties: seen first
    offsets: NDArray[np.int64]  # (texts + 1,)
    vocabulary: list[str]
    counts: NDArray[np.int64]  # (words,)


class Table(NamedTuple):
    """A hash table of words by their place in the text; half full at most."""

    slots: Array  # (2 * room,) word, -1 where free
    hashes: Array  # (room,)
    first: Array  # (room,) where each word first starts
    stop: Array  # (room,) and stops


@cache
def word_characters() -> NDArray[np.bool_]:  # (POINTS,)
    """Whether each code point is a word character, by Python's own Unicode tables."""
    points = np.arange(POINTS, dtype=np.uint32)
    is_word = np.char.isalnum(points.view("U1"))
    for point in np.flatnonzero(~is_word & np.isin(points >> 16, MARKS)).tolist():
        is_word[point] = unicodedata.category(chr(point))[0] == "M"
    return is_word


@jit
def character_at(data: Array, i: int, is_word: Array) -> Any:
    """Bytes of the character beyond ASCII that starts at data[i]; negative for a separator."""
    lead = np.int64(data[i])
    width = 2 + (lead >= LEAD_3) + (lead >= LEAD_4)
    point = lead & (0x7F >> width)
    for k in range(1, width):
        point = point << 6 | np.int64(data[i + k]) & 0x3F
    return width if is_word[point] else -width


@jit
def same_word(data: Array, a: int, b: int, length: int) -> bool:
    """Whether two words are equal but for ASCII case."""
    for k in range(length):  # noqa: SIM110 - numba compiles no generator here
        if FOLD[data[a + k]] != FOLD[data[b + k]]:
            return False
    return True


def empty_table(words: int) -> Table:
    """Room for `words` words, a power of two."""
    first, stop = np.empty(words, np.int64), np.empty(words, np.int64)
    return Table(np.full(2 * words, -1, np.int32), np.empty(words, np.uint64), first, stop)


@jit
def scan(  # noqa: C901 - one pass over the bytes; numba has no keyword-only arguments
    data: Array,  # (bytes,) valid UTF-8
    starts: Array,  # (texts + 1,) text t is data[starts[t] : starts[t + 1]]
    is_word: Array,  # (POINTS,)
    table: Table,
    known: int,  # words in the table
    range_: tuple[int, int],  # first text and the token it starts with
    ids: Array,  # (>= tokens,) out: words numbered in order of appearance
    sizes: Array,  # (texts,) out: tokens of each text
) -> tuple[int, int, int]:
    """Number the words of the texts until the table is full; returns (known, text, token).

    The table never grows in here: arrays that are rebound inside a loop cost numba a count of
    references at every step (2.1 s instead of 0.3 s on 41 MB).
    """
    text, token = range_
    last = len(table.slots) - 1
    while text < len(sizes):
        i, end, before = starts[text], starts[text + 1], token
        while i < end:
            begin, code, width = i, SEED, 1
            while i < end:
                letter = FOLD[data[i]]
                if letter >= ASCII:
                    width = character_at(data, i, is_word)
                    if width < 0:
                        break
                    for k in range(i + 1, i + width):
                        code = (code ^ np.uint64(data[k])) * PRIME
                    i += width - 1
                elif letter == 0:
                    width = -1
                    break
                code = (code ^ np.uint64(letter)) * PRIME
                i += 1
            if i > begin:
                code ^= code >> HALF  # low bits choose the slot, high bits are mixed best
                slot: Any = np.int64(code & np.uint64(last))
                while True:
                    word: Any = np.int64(table.slots[slot])
                    if word < 0 or (
                        table.hashes[word] == code
                        and table.stop[word] - table.first[word] == i - begin
                        and same_word(data, table.first[word], begin, i - begin)
                    ):
                        break
                    slot = (slot + 1) & last
                if word < 0:
                    if known == len(table.first):
                        return known, text, before
                    word = known
                    table.slots[slot] = word
                    table.hashes[word], table.first[word], table.stop[word] = code, begin, i
                    known += 1
                ids[token] = word
                token += 1
            i -= min(width, 0)  # step over the separator
        sizes[text] = token - before
        text += 1
    return known, text, token


@jit
def move_words(source: Table, target: Table) -> None:
    """Enter the words of a full table into an empty one."""
    size = len(target.slots)
    for word in range(len(source.first)):
        slot = np.int64(source.hashes[word] & np.uint64(size - 1))
        while target.slots[slot] >= 0:
            slot = (slot + 1) & (size - 1)
        target.slots[slot] = word
        target.hashes[word] = source.hashes[word]
        target.first[word], target.stop[word] = source.first[word], source.stop[word]


def scan_all(
    data: Array, starts: Array, is_word: Array, sizes: Array
) -> tuple[Array, NDArray[np.uint8]]:
    """The ids of all texts and the distinct words, one a line."""
    ids = np.empty(int(starts[-1] - starts[0]) // 2 + len(starts), np.int32)
    table, known, text, token = empty_table(1 << 12), 0, 0, 0
    while True:
        known, text, token = scan(data, starts, is_word, table, known, (text, token), ids, sizes)
        if text == len(sizes):
            return ids[:token], join_words(data, table.first[:known], table.stop[:known])
        full, table = table, empty_table(4 * known)
        move_words(full, table)


@jit
def join_words(data: Array, first: Array, stop: Array) -> Array:
    """The distinct words, ASCII lower-cased, one a line."""
    out = np.empty(np.sum(stop - first) + len(first), np.uint8)
    end = 0
    for word in range(len(first)):
        for i in range(first[word], stop[word]):
            out[end] = FOLD[data[i]]
            end += 1
        out[end] = 10
        end += 1
    return out


def shards(starts: Array, threads: int) -> list[tuple[int, int]]:
    """Ranges of texts with about equal numbers of bytes, a multiple of `threads` of them."""
    rounds = 1 + int(starts[-1] - starts[0]) // (SHARD * threads)
    cuts = np.linspace(starts[0], starts[-1], threads * rounds + 1)[1:-1]
    return list(pairwise([0, *np.searchsorted(starts, cuts).tolist(), len(starts) - 1]))


def number_words(
    data: NDArray[np.uint8],  # (bytes,) valid UTF-8: nothing here checks it
    starts: NDArray[np.int64],  # (texts + 1,)
    *,
    threads: int,
    tick: Tick,  # called with numbers of bytes that are done
) -> Numbered:
    """Split, lower-case and number the words of all texts."""
    ranges = shards(starts, threads)
    is_word = word_characters() if data.max(initial=0) > ASCII - 1 else np.zeros(128, bool)
    parts: list[Any] = [None] * len(ranges)
    sizes = np.zeros(len(starts) - 1, np.int64)

    def work(worker: int) -> Iterator[int]:
        for shard in range(worker, len(ranges), threads):
            low, high = ranges[shard]
            extent = int(starts[high] - starts[low])
            ids, lines = scan_all(data, starts[low : high + 1], is_word, sizes[low:high])
            # A line break ends a word for `lower` too, so each is lower-cased by itself.
            parts[shard] = ids, lines.tobytes().decode().lower().split("\n")[:-1]
            yield extent

    run_workers(threads, work, tick)
    return merge(parts, np.concatenate([[0], np.cumsum(sizes)]))


def merge(parts: list[tuple[Array, list[str]]], offsets: Array) -> Numbered:
    """One numbering, by frequency, for shards that each numbered their own words."""
    number: dict[str, int] = {}
    maps = [
        np.array([number.setdefault(word, len(number)) for word in words], np.int64)
        for _, words in parts
    ]
    counts = np.zeros(len(number), np.int64)
    for (ids, words), common in zip(parts, maps, strict=True):
        np.add.at(counts, common, np.bincount(ids, minlength=len(words)))
    order = np.argsort(-counts, kind="stable")
    rank = np.empty(len(order), np.uint32)
    rank[order] = np.arange(len(order), dtype=np.uint32)
    numbered = [rank[common][ids] for (ids, _), common in zip(parts, maps, strict=True)]
    vocabulary = list(number)
    return Numbered(
        np.concatenate(numbered), offsets, [vocabulary[i] for i in order.tolist()], counts[order]
    )
