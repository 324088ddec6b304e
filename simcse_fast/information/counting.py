"""Pairs of a numbered corpus: at once where it fits in memory, else in passes over ranges of rows.

A pass reads the ids from disk, keeps what stands beside the words of its range, and is saved when
it is done: a run that was cut off goes on after the last one.
"""

from __future__ import annotations

import errno
import sys
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from simcse_fast.errors import InputError
from simcse_fast.files import written_whole
from simcse_fast.information.ids import BYTES_OF_ID, CHUNK, LOCK, PASSES, lock
from simcse_fast.kernels.cooccurrence import engine
from simcse_fast.kernels.cooccurrence.engine import BITS_32, Corpus, Counted, Index, Run, Terms
from simcse_fast.kernels.cooccurrence.numba_rows import entropy_table
from simcse_fast.kernels.cooccurrence.numba_windows import add_company
from simcse_fast.memory import resident_memory, return_free_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from simcse_fast.information.ids import Disk, Numbered
    from simcse_fast.kernels.numba_threads import Tick

    Visit = Callable[[Index, Corpus], object]

SPAN = 8  # bytes
OF_CHUNK = 24  # bytes a token of a chunk that is being read takes, bags and sizes included


@dataclass(frozen=True)
class How:
    """How pairs are counted."""

    window: int  # positions to either side; 0: the whole sentence
    marginal: bool  # P(v) is v's share of all company, not of all tokens
    threads: int
    memory_limit: int | None  # bytes
    tick: Tick
    visit: Visit | None = None  # gets the index of every range of rows

    @property
    def limit(self) -> int:
        """Bytes that the process may take."""
        return sys.maxsize if self.memory_limit is None else self.memory_limit


@dataclass(frozen=True)
class Gains:
    """What counting gives, per word."""

    gain: NDArray[np.float64]  # KL(w), NaN without company
    counted: Counted
    share: NDArray[np.float64]  # P(w)


def count_pairs(numbered: Numbered, how: How, *, resumable: bool = False) -> Gains:
    """KL(w) of every word of a corpus, whose ids may be overwritten.

    Args:
        numbered: the corpus, in memory or on disk.
        how: context, comparison and means.
        resumable: passes are kept beside the ids, and those of an earlier run are taken.

    Raises:
        InputError: the limit is too low, or a pass cannot be saved.
    """
    pa.default_memory_pool().release_unused()  # of reading and numbering
    return_free_pages()
    corpus = Corpus(numbered.counts, numbered.longest, how.window)
    run, table = Run(how.threads, how.tick), entropy_table()
    share_of = company(numbered, how.window) if how.marginal else numbered.counts
    log_p = engine.log_shares(share_of)
    if in_memory(numbered, corpus, how):
        tables: Any = {"log_p": log_p, "table": table, "overwrite": True, "visit": how.visit}
        sums, counted = engine.pair_sums(corpus, whole(numbered), run, **tables)
    else:
        with passes_of(numbered.disk if resumable else None) as place:
            sums, counted = count_in_passes(numbered, corpus, run, how, (log_p, table), place)
        sums += engine.sum_triangle(corpus, counted, table)
    share = share_of / max(int(share_of.sum()), 1)
    return Gains(engine.divergence(sums, counted.terms), counted, share)


@contextmanager
def passes_of(disk: Disk | None) -> Iterator[Path | None]:
    """Where passes are kept; None where they are not, or another process keeps its own there."""
    try:
        file = lock(disk.folder / LOCK) if disk else None
    except OSError:
        file = None
    try:
        yield disk.folder if disk and file else None
    finally:
        if file:
            file.close()


def company(numbered: Numbered, window: int) -> NDArray[np.int64]:
    """R_w of every word."""
    beside = np.zeros(len(numbered.counts), np.int64)
    for ids, offsets in numbered.chunks():
        add_company(ids, offsets, window, beside)
    return beside


def fixed_bytes(corpus: Corpus, how: How) -> int:
    """What counting holds whatever the length of the corpus."""
    words, triangle = len(corpus.counts), corpus.dense * corpus.dense // 2
    # Of each worker: terms, load, sums and counters; twice the spans of rows when they are copied.
    return how.threads * (words * 80 + triangle * 8) + words * 120


def in_memory(numbered: Numbered, corpus: Corpus, how: How) -> bool:
    """Whether all bags and spans may be there at once."""
    if numbered.disk is None:
        return True
    rare = int(numbered.counts[corpus.dense :].sum())
    entries = np.dtype(corpus.entry).itemsize
    ids = 0 if entries == BYTES_OF_ID else BYTES_OF_ID  # bags take the memory of ids if they can
    needed = numbered.tokens * (ids + entries) + rare * SPAN + numbered.sentences * 12
    return resident_memory() + fixed_bytes(corpus, how) + needed <= how.limit


def whole(numbered: Numbered) -> engine.Chunk:
    """All chunks as one."""
    if numbered.ids is not None and numbered.offsets is not None and numbered.source is None:
        return numbered.ids, numbered.offsets
    ids, offsets = np.empty(numbered.tokens, np.uint32), np.zeros(numbered.sentences + 1, np.int64)
    token, sentence = 0, 0
    for some, starts in numbered.chunks():
        ids[token : token + len(some)] = some
        offsets[sentence + 1 : sentence + len(starts)] = starts[1:] + token
        token, sentence = token + len(some), sentence + len(starts) - 1
    return ids, offsets


def count_in_passes(
    numbered: Numbered,
    corpus: Corpus,
    run: Run,
    how: How,
    tables: tuple[Any, Any],
    place: Path | None,
) -> tuple[NDArray[np.float64], Counted]:
    """Sums over the rows of all words, a range of rows at a time."""
    room = room_for_rows(corpus, how, numbered.tokens) - fixed_bytes(corpus, how)
    if room < 0:
        raise too_few(corpus, how, -room)
    key = f"{how.window} {how.marginal} {corpus.dense} {numbered.disk and numbered.disk.digest}"
    state = load_state(place, key) if place else None
    if state is None:
        counted = engine.empty_counts(corpus)
        for chunk in numbered.chunks():
            parts = engine.count_chunk(run, corpus, chunk, tables[0], overwrite=True)[1]
            engine.add_counts(counted, parts)
        state = State(counted, np.zeros(len(numbered.counts)), corpus.dense)
        save_state(place, key, state)
    else:
        how.tick(numbered.tokens - int(state.counted.load[state.row - corpus.dense :, 0].sum()))
    counted, sums, row = state.counted, state.sums, state.row
    while row < len(numbered.counts):
        return_free_pages()
        last = end_of_pass(corpus, how, numbered.tokens, counted.load, row)
        index = engine.copy_rows(run, corpus, numbered.chunks(), (row, last), counted.load)
        if how.visit:
            how.visit(index, corpus)
        sums, row = sums + engine.sum_rows(run, corpus, index, tables[1]), last
        del index
        save_state(place, key, State(counted, sums, row))
    return sums, counted


def room_for_rows(corpus: Corpus, how: How, tokens: int) -> int:
    """Bytes that a pass may take beside what is there and what reading and adding up take."""
    words = len(corpus.counts)
    # Of each worker: sums and counters; and, in turn, the spans that its share of a chunk has.
    working = how.threads * words * 16 + (2 * how.threads + 3) * words * 8
    chunk = min(tokens, max(CHUNK, corpus.longest)) * OF_CHUNK
    return how.limit - resident_memory() - working - chunk


def too_few(corpus: Corpus, how: How, more: int) -> InputError:
    """What is said of a limit that is too low by so many bytes."""
    return InputError(
        f"memory_limit: {how.limit:,} bytes are too few for this corpus of {len(corpus.counts):,} "
        f"words; expected at least {how.limit + more:,}"
    )


def end_of_pass(corpus: Corpus, how: How, tokens: int, load: NDArray[np.int64], first: int) -> int:
    """The end of the longest range of rows from `first` on that fits into memory."""
    room = room_for_rows(corpus, how, tokens)
    rows = load[first - corpus.dense :]
    occurrences, entries = np.cumsum(rows[:, 0]), np.cumsum(rows.sum(axis=1))
    size = np.dtype(corpus.entry).itemsize
    span = SPAN if tokens < BITS_32 else 2 * SPAN
    if how.visit:
        span += 2 * SPAN  # what it reads is counted, pair by pair
    needed = occurrences * span + np.minimum(entries, tokens) * size
    taken = int(np.searchsorted(needed, room, "right"))
    if not taken:
        raise too_few(corpus, how, int(needed[0]) - room)
    return first + taken


@dataclass(frozen=True)
class State:
    """Passes up to the row `row` are done."""

    counted: Counted
    sums: NDArray[np.float64]
    row: int


def save_state(place: Path | None, key: str, state: State) -> None:
    """Beside the ids, whole or not at all."""
    if place is None:
        return
    triangle, load, terms = state.counted
    arrays = {"triangle": triangle, "load": load, "sums": state.sums, **terms._asdict()}
    path = place / PASSES
    try:
        with written_whole(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, key=np.array(key), row=np.array(state.row), **arrays)
    except OSError as error:
        advice = "; the passes before it are kept" * (error.errno == errno.ENOSPC)
        reason = error.strerror or str(error)
        raise InputError(f"cache: {path} cannot be written: {reason}{advice}") from error


def load_state(place: Path, key: str) -> State | None:
    """What an earlier run finished; None where it is of another count, or torn."""
    try:
        with np.load(place / PASSES) as kept:
            if str(kept["key"]) != key:
                return None
            terms = Terms(*(kept[name] for name in Terms._fields))
            counted = Counted(kept["triangle"], kept["load"], terms)
            return State(counted, kept["sums"], int(kept["row"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
