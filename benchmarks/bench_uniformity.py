"""Uniformity beside torch.pdist, forward and backward: python -m benchmarks.bench_uniformity.

With `memory METHOD N` it is the process that one step's memory is measured in.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import harness
from benchmarks.peak_memory import resident
from simcse_fast import uniformity
from simcse_fast.kernels.infonce.cpu import multiply

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH, T = 384, 2.0
ROWS = (128, 512, 2048, 10_000)
LARGE = 100_000
OURS, PDIST, MATRIX, FLOOR = "simcse_fast", "torch.pdist", "N x N matrix", "products"


def pdist(x: Tensor) -> Tensor:
    """As Wang and Isola publish it, normalised."""
    return torch.pdist(F.normalize(x, dim=-1), p=2).pow(2).mul(-T).exp().mean().log()


def matrix(x: Tensor) -> Tensor:
    """By one product, as is often written instead; its diagonal counts as pairs no more."""
    unit = F.normalize(x, dim=-1)
    potentials = (2 * T * (unit @ unit.T - 1)).exp()
    pairs = len(x) * (len(x) - 1)
    return ((potentials.sum() - potentials.diagonal().sum()) / pairs).log()


METHODS: dict[str, Callable[[Tensor], Tensor]] = {OURS: uniformity, PDIST: pdist, MATRIX: matrix}


def embeddings(rows: int, width: int = WIDTH) -> Tensor:
    """Rows about a common direction, as an encoder's are."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(width, generator=g) + torch.randn(rows, width, generator=g)


def step(method: str, x: Tensor) -> None:
    """Value and gradient."""
    x.grad = None
    METHODS[method](x).backward()


def products(rows: int) -> Callable[[], None]:
    """One and a half square products of rows, by torch or ours, whichever is quicker here.

    Half a product for the similarities of pairs and a whole one for the gradient.
    """
    x, out, back = torch.randn(rows, WIDTH), torch.empty(512, rows), torch.empty(rows, WIDTH)

    def run() -> None:
        for begin in range(0, rows, 512):
            mine, theirs = x[begin : begin + 512], x[begin:]
            tile = out[: len(mine), : len(theirs)]
            multiply(mine, theirs.T, tile, add=False)
            multiply(tile, theirs, back[begin : begin + 512], add=True)
            multiply(tile.T, mine, back[begin:], add=True)

    return run


def errors(rows: int) -> dict[str, dict[str, float]]:
    """Of value and gradient, against fp64."""
    x = embeddings(rows)
    exact = x.double().requires_grad_()
    value = pdist(exact)
    value.backward()
    found = {}
    for name, method in METHODS.items():
        mine = x.clone().requires_grad_()
        ours = method(mine)
        ours.backward()
        difference = (mine.grad.double() - exact.grad).norm() / exact.grad.norm()
        found[name] = {
            "value": abs(ours.item() - value.item()),
            "gradient": float(difference),
        }
    return found


def memory(method: str, rows: int) -> float:
    """MiB that a step adds to a fresh process."""
    command = [sys.executable, "-m", "benchmarks.bench_uniformity", "memory", method, str(rows)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return round(float(run.stdout.split()[-1]), 1)


def measure_memory(method: str, rows: int) -> None:
    """In this process; a smaller step first, so that code and thread pools are not counted."""
    step(method, embeddings(2100).requires_grad_())
    x = embeddings(rows).requires_grad_()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    step(method, x)
    print(resident("VmHWM") - before)


def measure(rows: int) -> dict[str, Any]:
    """One size: errors, then times, then memory."""
    found = errors(min(rows, 2048))
    assert found[OURS]["gradient"] <= found[PDIST]["gradient"]
    x = embeddings(rows).requires_grad_()
    steps: dict[str, Callable[[], Any]] = {
        name: lambda name=name: step(name, x) for name in METHODS
    }
    times = harness.interleaved(steps | {FLOOR: products(rows)}, seconds=3, least=5)
    mib = {name: [memory(name, rows) for _ in range(3)] for name in METHODS}
    return {
        "rows": rows,
        "width": WIDTH,
        "ms": {name: harness.summary(values) for name, values in times.items()},
        "speed_up": {n: round(harness.speed_up(times[n], times[OURS]), 2) for n in (PDIST, MATRIX)},
        "share_of_floor": round(harness.speed_up(times[FLOOR], times[OURS]), 3),
        "error": found,
        "mib": {name: max(values) if name == OURS else min(values) for name, values in mib.items()},
    }


def exact(x: Tensor, block: int = 2000) -> float:
    """The value by blocks in fp64."""
    unit = F.normalize(x.double(), dim=-1)
    total = 0.0
    for begin in range(0, len(x), block):
        for column in range(begin, len(x), block):
            potentials = (
                2 * T * (unit[begin : begin + block] @ unit[column : column + block].T - 1)
            ).exp_()
            total += float(potentials.triu(1).sum() if column == begin else potentials.sum())
    return math.log(total / (len(x) * (len(x) - 1) / 2))


def measure_large() -> dict[str, Any]:
    """A size whose pairs fit nowhere."""
    x = embeddings(LARGE)
    begin = time.perf_counter()
    value = uniformity(x).item()
    forward = time.perf_counter() - begin
    begin = time.perf_counter()
    step(OURS, x.requires_grad_())
    both = time.perf_counter() - begin
    return {
        "rows": LARGE,
        "width": WIDTH,
        "seconds": {"forward": round(forward, 1), "forward and backward": round(both, 1)},
        "value": value,
        "exact": exact(x.detach()),
        "mib": {OURS: memory(OURS, LARGE)},
    }


def main() -> None:
    """Measure and save."""
    torch.set_num_threads(min(torch.get_num_threads(), 2))
    if sys.argv[1:2] == ["memory"]:
        measure_memory(sys.argv[2], int(sys.argv[3]))
        return
    rows = []
    for size in ROWS:
        rows.append(measure(size))
        print(rows[-1], flush=True)
    rows.append(measure_large())
    print(rows[-1], flush=True)
    print(harness.save(f"uniformity-cpu-{harness.machine()}", rows))


if __name__ == "__main__":
    main()
