"""Milliseconds that `import simcse_fast` and its first loss add to `import torch`.

Each measurement is a new process; the median of several is printed. The bar is 100 ms.
"""

import statistics
import subprocess
import sys

ROUNDS = 11
STATEMENTS = (
    "import simcse_fast",
    "from simcse_fast import info_nce",
    "from simcse_fast import info_nce, InfoNCELoss, backends; backends()",
)


def milliseconds(statement: str) -> float:
    """Time of a statement in a new process that has torch already."""
    code = (
        f"import time, torch; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    )
    run = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return 1e3 * float(run.stdout)


def main() -> None:
    """Print median, smallest and largest of the rounds."""
    for statement in STATEMENTS:
        times = [milliseconds(statement) for _ in range(ROUNDS)]
        spread = f"{min(times):.1f} ... {max(times):.1f}"
        print(f"{statistics.median(times):7.1f} ms  ({spread})  {statement}")


if __name__ == "__main__":
    main()
