"""The loss's two gradient products by torch (cuBLAS): python -m benchmarks.bench_products.

For a panel of C rows and N keys: [C, N] x [N, D], the queries' gradients, and [N, C] x [C, D], what
the panel adds to the keys', in fp32. By C and D, beside a square product of the same type. They
stay with cuBLAS where it reaches 85 % of the square one's rate; the panel is the quickest C, by the
time of both for a row. --rehearse runs all of it on the CPU, at toy sizes.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import bench_gpu, harness
from simcse_fast.kernels.infonce.fused import multiply
from simcse_fast.kernels.infonce.tiles import processors

if TYPE_CHECKING:
    from collections.abc import Callable

KEYS, SQUARE = 65_536, 8192
PANELS, WIDTHS = (4096, 5632, 8192), (384, 768, 1024)
WAVE = 128, 256  # rows and columns of cuBLAS's tiles, in which waves are counted


def steps(
    rows: int, keys: int, width: int, device: torch.device
) -> dict[str, tuple[Callable[[], None], tuple[int, int]]]:
    """Name -> the product, and the shape of its result."""
    panel, key, query = (
        torch.randn(*shape, device=device, dtype=torch.bfloat16)
        for shape in ((rows, keys), (keys, width), (rows, width))
    )
    of_query, of_key = (x.new_zeros(x.shape, dtype=torch.float32) for x in (query, key))
    return {
        "queries": (partial(multiply, panel, key, of_query, add=False), (rows, width)),
        "keys": (partial(multiply, panel.T, query, of_key, add=True), (keys, width)),
    }


def square(count: int, device: torch.device) -> Callable[[], object]:
    """A product that has nothing against it."""
    x, y = (torch.randn(count, count, device=device, dtype=torch.bfloat16) for _ in "xy")
    return partial(torch.mm, x, y)


def waves(shape: tuple[int, int], device: torch.device) -> float:
    """Tiles of the result for each multiprocessor; beyond a whole number some of them are idle."""
    return -(-shape[0] // WAVE[0]) * -(-shape[1] // WAVE[1]) / processors(device)


def measure(device: torch.device, seconds: float, *, toy: bool) -> list[dict[str, Any]]:
    """A row for each product."""
    count = 64 if toy else SQUARE
    found = bench_gpu.timed(square(count, device), device, seconds)
    best = 2e-9 * count**3 / found["ms"]["median"]
    rows = [{"product": "square", "rows": count, "tflops": best} | found]
    keys = 256 if toy else KEYS
    for width, panel in product((32,) if toy else WIDTHS, (64, 96) if toy else PANELS):
        for name, (step, shape) in steps(panel, keys, width, device).items():
            found = bench_gpu.timed(step, device, seconds)
            rate = 2e-9 * panel * keys * width / found["ms"]["median"]
            rows.append(
                {
                    "product": name,
                    "rows": panel,
                    "keys": keys,
                    "width": width,
                    "tflops": rate,
                    "of_square": rate / best,
                    "waves": waves(shape, device),
                    **found,
                }
            )
            print(
                f"{name:8} {panel:5} of {keys:6} x {width:4} {found['ms']['median']:8.3f} ms "
                f"{rate:6.1f} TFLOP/s, {rate / best:5.2f} of the square one's, "
                f"{rows[-1]['waves']:6.2f} waves",
                flush=True,
            )
    return rows


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_products")
    parser.add_argument("--seconds", type=float, default=0.3, help="of timing for a product")
    options = harness.gpu_options(parser)
    rows = measure(options.device, options.seconds, toy=options.rehearse)
    print(harness.save(f"products-{options.name}", rows, options.output))


if __name__ == "__main__":
    main()
