"""The information benchmark by itself: phases, memory, length, limits, correction, kept ids."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import information_gates, information_memory
from benchmarks.information_data import Texts, Zipf, numbered
from benchmarks.information_phases import phases
from benchmarks.information_rows import bar, compare, engine, timed, to_table

if TYPE_CHECKING:
    from benchmarks.information_rows import Rows, Size, Steps

BANDS = (20, 50, 100, 1_000, 10_000, 1 << 62)  # counts
THREADS = {1: "1 thread", 2: "2 threads"}
ALLOWED = 64_000_000  # bytes whatever the length


def where_time_goes(size: Size, texts: Texts) -> Rows:
    """Shares of the phases, and increments a second."""
    path = texts.file(size.sentences)
    exact = to_table(str(path), min_count=1).column("information_gain")
    return [phases(path, size.rounds, exact)]


def memory(size: Size, texts: Texts) -> Rows:
    """Peak of a fresh process, text to table."""
    rows, path = [], texts.file(size.sentences)
    for threads, said in THREADS.items():
        found = information_memory.measure(path, threads=threads)
        taken = found["peak"] - found["before"]
        row = {"kind": "memory", "threads": threads, **found, "taken": taken}
        row["bytes_per_token"] = round((taken - ALLOWED) / found["tokens"], 3)
        name = f"bytes a token beyond 64 MB, {said}"
        rows.append(row | {"bars": [bar(name, row["bytes_per_token"], most=12)]})
    return rows


def scaling(size: Size, texts: Texts) -> Rows:
    """Rates by the length of the corpus."""
    rows = []
    for count in size.lengths:
        array = texts.array(count)
        ids = numbered(array)
        steps: Steps = {f"counting, {name}": engine(ids, n) for n, name in THREADS.items()}
        information_gates.same_gain(steps)
        steps |= {
            f"text to table, {name}": partial(to_table, array, n) for n, name in THREADS.items()
        }
        facts = {"sentences": len(array), "words": len(ids.counts)}
        rows.append(compare("scaling", ids.tokens, steps, 2 * size.rounds, **facts))
    counting = next(iter(rows[-1]["two_threads"].values()))
    rows[-1]["bars"] = [bar("two threads over one", counting, least=1.8)]
    return rows


def invented(size: Size, texts: Texts) -> Rows:
    """A corpus larger than the memory that is allowed; the same table as without a limit."""
    path, folder = texts.folder / "zipf.txt", texts.folder
    facts = Zipf(size.words).write(size.tokens, path)
    rows = []
    for number, limit in enumerate((None, *size.limits)):
        options: dict[str, Any] = {} if limit is None else {"memory_limit": limit}
        found = information_memory.measure(
            path, threads=2, min_count=1, keep=folder / f"zipf-{number}", **options
        )
        row = {"kind": "zipf", "limit": limit, **facts, **found}
        if "error" not in found:
            assert all(found[name] == value for name, value in facts.items()), (found, facts)
            row["M tokens/s"] = round(found["tokens"] / found["s"] / 1e6, 3)
        if limit is not None and "error" not in found:
            row |= information_memory.compare(folder / "zipf-0", folder / f"zipf-{number}")
            under = f"under memory_limit={limit!r}"
            row["bars"] = [
                bar(f"GB at the peak {under}", found["peak"] / 1e9, most=float(limit.split()[0])),
                bar(f"nats from the table without a limit, {under}", row["apart"], most=1e-11),
            ]
        rows.append(row)
    path.unlink()
    return rows


def correction(size: Size, texts: Texts) -> Rows:
    """Expected gain in closed form against shuffled corpora, by count."""
    rows = []
    for count in (size.few, size.sentences):
        path, options = str(texts.file(count)), {"min_count": BANDS[0]}
        null, took = timed(partial(to_table, path, 2, correction="null", **options))
        shuffled, longer = timed(
            partial(to_table, path, 2, correction="shuffle", rounds=size.shuffles, **options)
        )
        counts = null.column("count")
        apart = null.column("null") / shuffled.column("null") - 1
        bands = {}
        for low, high in pairwise(BANDS):
            chosen = apart[(counts >= low) & (counts < high)]
            if len(chosen):
                bands[low] = {"words": len(chosen), **apart_by(chosen)}
        row = {"kind": "correction", "sentences": null.sentences, "tokens": null.tokens}
        row |= {"s": {"null": took, "shuffle": longer}, "rounds": size.shuffles}
        row |= {"words": len(apart), **apart_by(apart), "bands": bands}
        name = f"null against {size.shuffles} shuffles, {null.sentences:,} sentences, median"
        rows.append(row | {"bars": [bar(name, row["median_apart"], most=0.02)]})
    return rows


def apart_by(values: Any) -> dict[str, float]:
    """Median of the relative difference, and of its size."""
    return {
        "median": round(float(np.median(values)), 5),
        "median_apart": round(float(np.median(np.abs(values))), 5),
    }


def kept_ids(size: Size, texts: Texts) -> Rows:
    """A run that keeps its ids, and the next."""
    path, folder = str(texts.file(size.sentences)), texts.folder / "kept"
    kept = partial(to_table, path, cache=folder)

    def first() -> Any:
        for file in folder.glob("*/*"):
            file.unlink()
        return kept()

    steps: Steps = {"not kept": partial(to_table, path), "first run": first, "second run": kept}
    tables = [step() for step in steps.values()]
    information_gates.same_tables(*tables)
    facts = {"sentences": tables[0].sentences}
    return [compare("cache", tables[0].tokens, steps, 3, **facts)]
