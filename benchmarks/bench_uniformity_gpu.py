"""Uniformity on a GPU beside torch.pdist: python -m benchmarks.bench_uniformity_gpu.

Value alone, and value with gradient; the bare products are half a square product of the rows, and
one and a half. What does not fit or fails gets a row that says so. --rehearse runs all of it on the
CPU, at toy sizes.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import bench_gpu, harness
from benchmarks.bench_uniformity import FLOOR, METHODS, PDIST, embeddings, pdist
from simcse_fast.kernels.infonce.fused import multiply

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

ROWS, WIDTH, BLOCK = (16_384, 131_072), 768, 8192
DTYPES = "bfloat16", "float32"
GATE_ROWS = 2048


def step(method: str, x: Tensor, *, backward: bool) -> None:
    """Value, and gradient if wanted."""
    x.grad = None
    value = METHODS[method](x.float() if method == PDIST else x)  # which takes no bf16
    if backward:
        value.backward()


def products(x: Tensor, *, backward: bool) -> Callable[[], None]:
    """The products that no exact method avoids, in blocks."""
    x = x.detach()
    tile = x.new_empty(min(BLOCK, len(x)), len(x))
    back = torch.zeros(x.shape, device=x.device)

    def run() -> None:
        for begin in range(0, len(x), BLOCK):
            mine, theirs = x[begin : begin + BLOCK], x[begin:]
            part = tile[: len(mine), : len(theirs)]
            torch.mm(mine, theirs.T, out=part)
            if backward:
                multiply(part, theirs, back[begin : begin + len(mine)], add=True)
                multiply(part.T, mine, back[begin:], add=True)

    return run


def gradient_error(method: str, rows: int, width: int, dtype: torch.dtype, device: str) -> float:
    """Relative, against fp64."""
    x = embeddings(rows, width).to(device, dtype)
    exact, mine = x.double().requires_grad_(), x.requires_grad_()
    pdist(exact).backward()
    step(method, mine, backward=True)
    assert exact.grad is not None
    assert mine.grad is not None
    return float((mine.grad.double() - exact.grad).norm() / exact.grad.norm())


def measure(
    method: str, rows: int, width: int, dtype: torch.dtype, device: str, *, backward: bool
) -> dict[str, Any]:
    """Times of a method, or the reason why there are none."""
    found: dict[str, Any] = {}
    try:
        x = embeddings(rows, width).to(device, dtype).requires_grad_()
        run = products(x, backward=backward)
        if method != FLOOR:
            run = partial(step, method, x, backward=backward)
            gate = min(rows, GATE_ROWS)
            found["gradient_error"] = gradient_error(method, gate, width, dtype, device)
        seconds = 0.5 if device == "cuda" else 0.0
        found |= bench_gpu.timed(run, torch.device(device), seconds)
    except RuntimeError as error:  # out of memory, most often
        found["reason"] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    bench_gpu.usable(torch.device(device))
    return found


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_uniformity_gpu")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, metavar="DIR")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at toy sizes")
    options = parser.parse_args()
    toy = options.rehearse
    if not toy and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --rehearse runs on the CPU")
    rows, device, width = [], "cpu" if toy else "cuda", 48 if toy else WIDTH
    sizes = product((200, 300) if toy else ROWS, DTYPES, (True, False), (FLOOR, *METHODS))
    for count, dtype, backward, method in sizes:
        found = measure(method, count, width, getattr(torch, dtype), device, backward=backward)
        problem = {"rows": count, "width": width, "dtype": dtype, "backward": backward}
        rows.append(problem | {"method": method} | found)
        told = f"{found['ms']['median']:10.3f} ms" if "ms" in found else found["reason"]
        title = "both" if backward else "value"
        print(f"{count:7} x {width} {dtype:8} {title:5} {method:14} {told}", flush=True)
    print(harness.save(f"uniformity-{'rehearsal' if toy else harness.gpu()}", rows, options.output))


if __name__ == "__main__":
    main()
