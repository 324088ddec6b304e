"""The tokenizer "words" over Arrow's string buffers: bytes in, numbered words out.

One pass splits, lower-cases and hashes; the words of a block are then looked up together, so that
the hash table's cache lines arrive in time. Two spellings that differ in ASCII case alone are one
entry; other scripts are left to whoever reads the distinct words.
Equal to kernels.text.reference on any valid UTF-8.
"""

import unicodedata
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simcse_fast.kernels.numba_threads import jit, prefetch

Array = NDArray[Any]

POINTS = 0x110000
ASCII, LEAD_3, LEAD_4 = 0x80, 0xE0, 0xF0  # first bytes of characters: bounds by their width
MARKS = (0, 1, 2, 3, 14)  # planes that hold combining marks
# ASCII letters and digits in lower case, 0 for separators; bytes of other characters unchanged.
FOLD = np.array([ord(chr(b).lower()) if chr(b).isalnum() else 0 for b in range(256)], np.uint8)
FOLD[ASCII:] = np.arange(ASCII, 256)
SEED, PRIME, HALF = np.uint64(0xCBF29CE484222325), np.uint64(0x9E3779B97F4A7C15), np.uint64(32)
LOW = np.uint64(0xFFFFFFFF)
BLOCK = 256  # words between finding and looking up
AHEAD = 8  # lookups ahead of which the next one's slot is asked for
ROOM, LETTERS = 1 << 12, 1 << 16  # words and bytes of a new table


class Table(NamedTuple):
    """A hash table of words, half full at most, and their letters one after the other."""

    slots: Array  # (2 * room,) high half of the hash | word + 1; 0 where free
    hashes: Array  # (room,)
    ends: Array  # (room + 1,) word w is letters[ends[w] : ends[w + 1]]
    letters: Array  # (bytes,) ASCII in lower case
    counts: Array  # (room,) occurrences


class Block(NamedTuple):
    """Words that were found and not yet looked up."""

    begin: Array  # (BLOCK,)
    stop: Array  # (BLOCK,)
    code: Array  # (BLOCK,) their hashes


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
def same_word(letters: Array, known: int, data: Array, begin: int, length: int) -> bool:
    """Whether a word in lower case and a word of the text are equal but for ASCII case."""
    for k in range(length):  # noqa: SIM110 - numba compiles no generator here
        if letters[known + k] != FOLD[data[begin + k]]:
            return False
    return True


@jit
def find_words(
    data: Array,  # (bytes,) valid UTF-8
    starts: Array,  # (texts + 1,) text t is data[starts[t] : starts[t + 1]]
    is_word: Array,  # (POINTS,)
    place: tuple[int, int],  # text and byte to go on from
    block: Block,
    sizes: Array,  # (texts,) in and out: words found in each text
) -> tuple[int, int, int]:
    """Fill a block with the next words; returns (words, text, byte), fewer words at the end."""
    text, i = place
    found, room = 0, len(block.begin)
    while text < len(sizes):
        end, before = starts[text + 1], found
        while i < end and found < room:
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
                block.begin[found], block.stop[found] = begin, i
                block.code[found] = code ^ code >> HALF  # low bits choose the slot: mix them
                found += 1
            i -= min(width, 0)  # step over the separator
        sizes[text] += found - before
        if i < end:
            break
        text += 1
    return found, text, i


@jit
def number_block(
    data: Array, block: Block, range_: tuple[int, int], table: Table, known: int, ids: Array
) -> tuple[int, int]:
    """Number words of a block until the table is full; returns (words known, next of the block).

    The table never grows in here: arrays that are rebound inside a loop cost numba a count of
    references at every step (2.1 s instead of 0.3 s on 41 MB).
    """
    slots, hashes, ends, letters, counts = table
    last = np.uint64(len(slots) - 1)
    first, stop = range_
    for k in range(first, min(first + AHEAD, stop)):
        prefetch(slots, np.int64(block.code[k] & last))
    for k in range(first, stop):
        prefetch(slots, np.int64(block.code[min(k + AHEAD, stop - 1)] & last))
        code = block.code[k]
        begin, length = block.begin[k], block.stop[k] - block.begin[k]
        slot: Any = code & last
        while True:
            entry = slots[slot]
            word: Any = np.int64(entry & LOW) - 1
            if word < 0 or (
                entry >> HALF == code >> HALF
                and ends[word + 1] - ends[word] == length
                and same_word(letters, ends[word], data, begin, length)
            ):
                break
            slot = (slot + np.uint64(1)) & last
        if word < 0:
            end = ends[known]
            if known == len(hashes) or end + length > len(letters):
                return known, k
            word = known
            slots[slot] = code & ~LOW | np.uint64(word + 1)
            hashes[word], ends[word + 1] = code, end + length
            for i in range(length):
                letters[end + i] = FOLD[data[begin + i]]
            known += 1
        counts[word] += 1
        ids[k] = word
    return known, stop


@jit
def scan(
    data: Array,
    starts: Array,
    is_word: Array,
    table: Table,
    block: Block,
    state: Array,  # (6,) in and out: words known, text, byte, token, words in block, next in block
    ids: Array,  # (>= tokens,) out: words numbered in order of appearance
    sizes: Array,  # (texts,) out, zero at first: tokens of each text
) -> bool:
    """Number the words of the texts; False when the table is full and work is left."""
    known, text, i, token, found, done = state
    while True:
        known, stop = number_block(data, block, (done, found), table, known, ids[token - done :])
        token += stop - done
        if stop < found or text == len(sizes):
            state[:] = known, text, i, token, found, stop
            return bool(stop == found)
        found, text, i = find_words(data, starts, is_word, (text, i), block, sizes)
        done = 0


@jit
def move_words(source: Table, known: int, target: Table) -> None:
    """Enter the words of a table into an empty one."""
    last = np.uint64(len(target.slots) - 1)
    for word in range(known):
        code = source.hashes[word]
        slot = code & last
        while target.slots[slot] > 0:
            slot = (slot + np.uint64(1)) & last
        target.slots[slot] = code & ~LOW | np.uint64(word + 1)
        target.hashes[word], target.counts[word] = code, source.counts[word]
        target.ends[word + 1] = source.ends[word + 1]
    size = source.ends[known]
    target.letters[:size] = source.letters[:size]


def empty_table(words: int, letters: int) -> Table:
    """Room for `words` words, a power of two, of so many bytes in all."""
    return Table(
        np.zeros(2 * words, np.uint64),
        np.empty(words, np.uint64),
        np.zeros(words + 1, np.int64),
        np.empty(letters, np.uint8),
        np.zeros(words, np.int64),
    )


class Words:
    """The words that one worker has met so far, in order of their first appearance."""

    def __init__(self) -> None:
        self.table, self.known = empty_table(ROOM, LETTERS), 0
        self.block = Block(*(np.empty(BLOCK, of) for of in (np.int64, np.int64, np.uint64)))

    def number(
        self,
        data: NDArray[np.uint8],  # (bytes,) valid UTF-8: nothing here checks it
        starts: NDArray[np.int64],  # (texts + 1,)
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Split, lower-case and number; ids (tokens,) and the number of tokens of each text."""
        sizes = np.zeros(len(starts) - 1, np.uint32)
        ids = np.empty(int(starts[-1] - starts[0]) // 2 + len(starts), np.uint32)
        state = np.array([self.known, 0, starts[0], 0, 0, 0], np.int64)
        is_word = word_characters()
        while not scan(data, starts, is_word, self.table, self.block, state, ids, sizes):
            self.known = int(state[0])
            waiting = int(state[5])
            self.grow(int(self.block.stop[waiting] - self.block.begin[waiting]))
        self.known = int(state[0])
        return ids[: state[3]].copy(), sizes

    def grow(self, length: int) -> None:
        """Make room for more words, or for more letters, at least `length` of them."""
        full = self.table
        used = int(full.ends[self.known])
        words = len(full.hashes) * (2 if self.known == len(full.hashes) else 1)
        letters = len(full.letters)
        self.table = empty_table(words, letters if used + length <= letters else 2 * used + length)
        move_words(full, self.known, self.table)

    def counts(self) -> NDArray[np.int64]:  # (words,)
        """How often each word occurred."""
        return self.table.counts[: self.known]
