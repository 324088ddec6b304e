"""A count under a memory limit that is killed or interrupted at a given point."""

import os
import signal
import sys
from pathlib import Path

from simcse_fast import information_gain
from simcse_fast.information import counting, ids, numbering, readers

POINTS = {
    "splitting": (numbering.Reader, "number"),
    "finishing": (ids.FileSink, "finish"),
    "counting": (counting.engine, "count_chunk"),
    "first-pass": (counting.engine, "sum_rows"),
}


def stop_at(point: str, how: str) -> None:
    """Die, or raise what Ctrl-C raises, at the second call of what the point names."""
    place, name = POINTS.get(point, (counting, "save_state"))
    original, calls = getattr(place, name), 0
    turns = 2 if point in {"splitting", "counting"} else 1
    turns = {"after-counting": 2, "after-two-passes": 4}.get(point, turns)

    def stopping(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == turns:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        return original(*arguments, **options)

    setattr(place, name, stopping)


if __name__ == "__main__":
    path, rows_of_a_pass, point, how = sys.argv[1:]
    ids.CHUNK, readers.BLOCK = 500, 1 << 12
    end = int(rows_of_a_pass)
    counting.end_of_pass = lambda corpus, how, tokens, load, first: min(  # noqa: ARG005
        first + end, len(corpus.counts)
    )
    counting.in_memory = lambda *_: False
    counting.engine.DENSE = 16
    if point != "none":
        stop_at(point, how)
    table = information_gain(Path(path), min_count=1, memory_limit="8 GB", threads=2)
    table.to_parquet(f"{path}.table.parquet")
