"""Timing side by side, peak memory, and where a result came from."""

from __future__ import annotations

import json
import math
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from simcse_fast.kernels import native

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    *("torch", "sentence-transformers", "cut-cross-entropy", "triton", "numba", "scipy"),
    *("memeff", "siglip-kernel", "inf-cl", "liger-kernel", "transformers", "captum", "shap"),
    "scikit-learn",
)


def interleaved(
    steps: dict[str, Callable[[], Any]], *, seconds: float, least: int = 5
) -> dict[str, list[float]]:
    """Seconds of each step in rounds of one call each, so that noise meets all alike.

    The order is drawn anew each round: whoever runs second finds warm caches.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    order, shuffle = list(steps), random.Random(0).shuffle  # noqa: S311  # not for secrets
    end = time.perf_counter() + seconds
    while len(times[order[0]]) < least or time.perf_counter() < end:
        shuffle(order)
        for name in order:
            begin = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - begin)
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds, and the number of rounds."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    milliseconds = {"median": median, "low": low, "high": high}
    return {k: round(1e3 * v, 4) for k, v in milliseconds.items()} | {"rounds": len(times)}


def speed_up(peer: list[float], ours: list[float]) -> float:
    """A peer's time over ours, the median of the rounds' ratios: a slow round slows both."""
    return statistics.median(a / b for a, b in zip(peer, ours, strict=True))


def peak_memory(method: str, rows: int, width: int) -> float | None:
    """MiB that one step of a method adds to a fresh process with its inputs; None: not run."""
    command = [sys.executable, "-m", "benchmarks.peak_memory", method, str(rows), str(width)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    found = float(run.stdout.split()[-1])
    return None if math.isnan(found) else round(found, 1)


def processor() -> str:
    """The processor's name, with AMD's generation where virtual machines leave it out."""
    path = Path("/proc/cpuinfo")
    info = path.read_text() if path.exists() else ""
    found = re.search(r"family\s*: (\d+)(?s:.*?)model name\s*: (.*)", info)
    if not found:
        return platform.processor() or platform.machine()
    family, name = found.groups()
    generations = {"25": "Zen 4" if "avx512f" in info else "Zen 3", "26": "Zen 5"}
    return f"{name} {generations[family]}" if "AMD" in name and family in generations else name


def instruction_set() -> str:
    """Of the native library; torch's where there is none."""
    try:
        return native.instruction_set()
    except OSError:
        return torch.backends.cpu.get_cpu_capability().lower()


def machine() -> str:
    """Processor and instruction set, as part of a file's name: intel-xeon-amx."""
    name = re.sub(r"\((R|TM)\)|\b(CPU|Processor)\b", "", processor())
    words = re.findall(r"\w+", f"{name} {instruction_set()}")
    return "-".join(words).lower()


def gpu() -> str:
    """The GPU, as part of a file's name: nvidia-h200."""
    return re.sub(r"\W+", "-", torch.cuda.get_device_name()).lower()


def gpu_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line of a benchmark on a GPU; `device`, and `name` for its file, come with it."""
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at toy sizes")
    found = parser.parse_args()
    if not found.rehearse and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --rehearse runs on the CPU")
    found.device = torch.device("cpu") if found.rehearse else torch.device("cuda", 0)
    found.name = "rehearsal" if found.rehearse else gpu()
    return found


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of packages that are installed, and of those that are not."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@cache
def provenance() -> dict[str, Any]:
    """Versions, processor, threads and commit of a result."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    git = shutil.which("git") and subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False
    )
    module = sys.modules["__main__"].__spec__
    program = f"python -m {module.name}" if module else Path(sys.argv[0]).name
    return {
        "processor": processor(),
        "capability": instruction_set(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
        "commit": git.stdout.strip() if git else "",
        "command": " ".join([program, *sys.argv[1:]]),
    }


def save(name: str, rows: list[dict[str, Any]], folder: Path = RESULTS) -> Path:
    """Write a result under benchmarks/results, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps({"provenance": provenance(), "rows": rows}, indent=1) + "\n")
    temporary.replace(path)
    return path
