"""Steps and rows of the information benchmark."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import harness
from benchmarks.information_data import silent
from simcse_fast import information_gain
from simcse_fast.kernels.cooccurrence.engine import cooccurrence_kl

if TYPE_CHECKING:
    from collections.abc import Callable

    from simcse_fast.information.ids import Numbered

    Steps = dict[str, Callable[[], Any]]
    Rows = list[dict[str, Any]]

ONE, TWO = "ours, 1 thread", "ours, 2 threads"


@dataclass(frozen=True)
class Size:
    """Sentences of each part, and rounds."""

    sentences: int | None  # None: the whole sample
    some: int
    few: int  # with the slower peers
    fewest: int  # with the slowest
    lengths: tuple[int | None, ...]
    tokens: int  # of the invented corpus
    words: int
    limits: tuple[str, ...]
    rounds: int
    shuffles: int


def bar(name: str, found: float, *, least: float | None = None, most: float | None = None) -> Any:
    """What was asked for, and what was found."""
    met = found >= least if least is not None else found <= (most or 0)
    asked = {"least": least} if least is not None else {"most": most}
    return {"bar": name, "found": float(f"{found:.4g}"), **asked, "met": bool(met)}


def compare(kind: str, tokens: int, steps: Steps, rounds: int, **facts: Any) -> dict[str, Any]:
    """Times, rates, and every method's time over the first one's, in the same rounds."""
    times = harness.interleaved(steps, seconds=0, least=rounds)
    first = next(iter(times.values()))
    row = {
        "kind": kind,
        **facts,
        "tokens": tokens,
        "ms": {name: harness.summary(took) for name, took in times.items()},
        "rate": {
            name: round(tokens / statistics.median(took) / 1e6, 3) for name, took in times.items()
        },
        "time_over_first": {
            name: round(harness.speed_up(took, first), 3) for name, took in times.items()
        },
    }
    for name in times:
        two = name.replace("1 thread", "2 threads")
        if two != name and two in times:
            row.setdefault("two_threads", {})[name] = round(
                harness.speed_up(times[name], times[two]), 3
            )
    return row


def with_peers(steps: Steps, makers: dict[str, Callable[[], Steps]]) -> dict[str, str]:
    """Add the peers that are there; returns those that are not."""
    absent = {}
    for package, make in makers.items():
        try:
            steps |= make()
        except ImportError:
            absent[package] = "not installed"
    return absent


def fastest(row: dict[str, Any], name: str) -> float:
    """The smallest ratio of a peer that was timed in more than one way; infinite without it."""
    ratios = [value for key, value in row["time_over_first"].items() if name in key]
    return min(ratios, default=float("inf"))


def engine(ids: Numbered, threads: int = 1, window: int = 0) -> Callable[[], Any]:
    """Counting and KL from the same ids every time."""
    return partial(
        *(cooccurrence_kl, ids.ids, ids.offsets, ids.counts),
        threads=threads,
        tick=silent,
        window=window,
    )


def to_table(corpus: Any, threads: int = 1, **options: Any) -> Any:
    """Text to table, without a bar and without ids from before."""
    options = {"cache": False, "progress": False, "threads": threads, **options}
    return information_gain(corpus, **options)


def timed(step: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and seconds."""
    begin = time.perf_counter()
    found = step()
    return found, round(time.perf_counter() - begin, 3)
