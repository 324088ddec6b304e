"""MiB that a step adds to a process: python -m benchmarks.peak_memory METHOD N D."""

import re
import sys
from pathlib import Path

import psutil

from benchmarks.peers import MAKERS, pair

LONGEST_CACHED = 16384  # rows; beyond, a step takes minutes


def resident(field: str) -> float:
    """MiB, from /proc/self/status."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    """Run a small step first, so that code and thread pools are not counted."""
    method, rows, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    cached = "cached" in method
    # Six N x N matrices is what the methods that hold them have been seen to take.
    holds_matrices = method != "simcse_fast" and not cached
    if holds_matrices and 24 * rows * rows > psutil.virtual_memory().available:
        print(float("nan"))
        return
    if cached and rows > LONGEST_CACHED:
        print(float("nan"))
        return
    step = MAKERS[method]()
    step(*pair(64, width))
    query, key = pair(rows, width)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    step(query, key)
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main()
