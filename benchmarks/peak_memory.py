"""MiB that a step adds to a process: python -m benchmarks.peak_memory METHOD N D."""

import re
import sys
from pathlib import Path

from benchmarks.peers import MAKERS, pair


def resident(field: str) -> float:
    """MiB, from /proc/self/status."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    """Run a small step first, so that code and thread pools are not counted."""
    method, rows, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    step = MAKERS[method]()
    step(*pair(64, width))
    query, key = pair(rows, width)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    step(query, key)
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main()
