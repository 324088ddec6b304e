"""Text to table in a fresh process: python -m benchmarks.information_memory FILE --threads 2.

Prints JSON: seconds, and bytes at the peak and before. What the libraries and the compiled kernels
keep for good is there before, by a tiny corpus.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from simcse_fast import information_gain
from simcse_fast.information import counting, gain
from simcse_fast.memory import resident_memory, return_free_pages

if TYPE_CHECKING:
    from collections.abc import Callable

    from simcse_fast.information.counting import Gains

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
COUNTED = ("company", "own", "triangle", "load")
SUMS, TABLE = "counted.npz", "table.parquet"
# The second text's counts do not fit 32 bits; one-word sentences bring no pairs.
TINY = (["salt and pepper", "salt and sugar, or salt"], ["salt " * 66_000])


def measure(path: Path, **options: Any) -> dict[str, Any]:
    """What a process of its own prints; `error` where the package refused."""
    words = [str(path)]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    command = [sys.executable, "-m", "benchmarks.information_memory", *words]
    run = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def compare(folder: Path, other: Path) -> dict[str, Any]:
    """How far two kept results are apart; counts must be equal."""
    tables = [pq.read_table(place / TABLE) for place in (folder, other)]
    sums = [np.load(place / SUMS) for place in (folder, other)]
    for name in ("word", "count"):
        assert tables[0][name].equals(tables[1][name]), f"{name} differs"
    for name in COUNTED:
        np.testing.assert_array_equal(sums[0][name], sums[1][name], name)
    values = [table["information_gain"].to_numpy() for table in tables]
    np.testing.assert_allclose(*values, rtol=0, atol=1e-9)  # a bar asks for less
    return {"words": len(values[0]), "apart": float(np.nanmax(np.abs(values[0] - values[1])))}


def watched(found: dict[str, Any]) -> Callable[[], Gains]:
    """Note passes over the text; the function returned gives what was counted."""
    copy, count, last = counting.engine.copy_rows, gain.count_pairs, []
    found["passes"] = 0

    def copied(*arguments: Any) -> Any:
        found["passes"] += 1
        return copy(*arguments)

    def counted(*arguments: Any, **options: Any) -> Gains:
        last.append(count(*arguments, **options))
        return last[-1]

    counting.engine.copy_rows, gain.count_pairs = copied, counted
    return last.pop


def keep(folder: Path, table: Any, gains: Gains) -> None:
    """The table, and the counts that it does not show."""
    folder.mkdir(parents=True)
    table.to_parquet(folder / TABLE)
    triangle, load, terms = gains.counted
    np.savez(folder / SUMS, company=terms.company, own=terms.own, triangle=triangle, load=load)


def warm_up(options: dict[str, Any]) -> None:
    """Compile, on disk as in memory."""
    with tempfile.TemporaryDirectory() as place:
        for number, texts in enumerate(TINY):
            path = Path(place) / f"{number}.txt"
            path.write_text("\n".join(texts), encoding="utf-8")
            information_gain(str(path), **options)


def parse() -> argparse.Namespace:
    """What is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.information_memory")
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-limit")
    parser.add_argument("--min-count", type=int, default=10)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="of the table and the counts")
    return parser.parse_args()


def main() -> None:
    """Print the peak, and what was resident before."""
    given, found = parse(), {}
    options = {"threads": given.threads, "cache": False, "progress": False}
    warm_up(options | {"memory_limit": given.memory_limit, "min_count": 1})
    last = watched(found)
    return_free_pages()
    found["before"] = resident_memory()
    RESET.write_text("5")
    begin = time.perf_counter()
    options |= {"memory_limit": given.memory_limit, "min_count": given.min_count}
    try:
        table = information_gain(str(given.path), **options)
    except ValueError as error:
        found["error"] = str(error)
    found["s"] = round(time.perf_counter() - begin, 3)
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM"))
    found["peak"] = int(line.split()[1]) * 1024
    if "error" not in found:
        gains = last()
        found |= {"tokens": table.tokens, "sentences": table.sentences}
        found["company"] = int(gains.counted.terms.company.sum())
        if given.keep:
            keep(given.keep, table, gains)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
