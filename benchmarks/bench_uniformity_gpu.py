"""Uniformity on a GPU beside torch.pdist: python -m benchmarks.bench_uniformity_gpu.

Value alone, and value with gradient; the bare products are half a square product of the rows, and
one and a half. What does not fit or fails gets a row that says so. --rehearse runs all of it on the
CPU, at toy sizes.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product
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


def gradient_error(method: str, x: Tensor) -> float:
    """Relative, against fp64."""
    exact, mine = x.double().requires_grad_(), x.clone().requires_grad_()
    pdist(exact).backward()
    step(method, mine, backward=True)
    assert exact.grad is not None
    assert mine.grad is not None
    return float((mine.grad.double() - exact.grad).norm() / exact.grad.norm())


def measure(method: str, x: Tensor, *, backward: bool) -> dict[str, Any]:
    """Times of a method, or the reason why there are none."""
    found: dict[str, Any] = {}
    try:
        if method == FLOOR:
            run = products(x, backward=backward)
        else:
            run = partial(step, method, x.clone().requires_grad_(), backward=backward)
            found["gradient_error"] = gradient_error(method, x[:GATE_ROWS])
        found |= bench_gpu.timed(run, x.device, 0.5 if x.is_cuda else 0.0)
    except RuntimeError as error:  # out of memory, most often
        found["reason"] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    bench_gpu.usable(x.device)
    return found


def main() -> None:
    """Measure, print, save."""
    options = harness.gpu_options(
        argparse.ArgumentParser(prog="python -m benchmarks.bench_uniformity_gpu")
    )
    rows, toy = [], options.rehearse
    width = 48 if toy else WIDTH
    for count, dtype in product((200, 300) if toy else ROWS, DTYPES):
        x = embeddings(count, width).to(options.device, getattr(torch, dtype))
        for backward, method in product((True, False), (FLOOR, *METHODS)):
            found = measure(method, x, backward=backward)
            problem = {"rows": count, "width": width, "dtype": dtype, "backward": backward}
            rows.append(problem | {"method": method} | found)
            told = f"{found['ms']['median']:10.3f} ms" if "ms" in found else found["reason"]
            title = "both" if backward else "value"
            print(f"{count:7} x {width} {dtype:8} {title:5} {method:14} {told}", flush=True)
    print(harness.save(f"uniformity-{options.name}", rows, options.output))


if __name__ == "__main__":
    main()
