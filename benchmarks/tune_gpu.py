"""Tiles of the Triton kernels, timed on the GPU at hand: python -m benchmarks.tune_gpu.

For each entry of kernels/infonce/tiles.py: the candidates, their medians, and which is fastest, as
rows of benchmarks/results/tiles-<device>.json. What it finds is written into the table by hand,
after tests/test_triton_compiled.py has seen it. --rehearse runs all of it on the CPU, at toy sizes,
in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import asdict, astuple
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import bench_gpu, harness, peers
from simcse_fast import info_nce
from simcse_fast.kernels.infonce import tiles
from simcse_fast.kernels.infonce.tiles import Tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FEW_SIMILARITIES = tiles.FEW_SIMILARITIES
# Rows, columns, depth, warps, stages, descriptors, halves, resident.
PRODUCTS = [
    *(Tile(128, 256, 64, 8, stages, True, stages == 4) for stages in (3, 4)),
    *(Tile(128, 128, 64, warps, 3, True, True, 2) for warps in (4, 8)),
    *(Tile(128, 128, 64, warps, stages, True) for warps, stages in ((4, 3), (8, 3), (8, 4))),
    *(Tile(m, n, 64, 4, 4, True) for m, n in ((128, 64), (64, 128), (64, 64))),
    *(Tile(128, 256, 64, 8, stages) for stages in (3, 4)),
    *(Tile(128, 128, depth, 8, stages) for depth, stages in ((64, 3), (64, 4), (32, 4))),
    *(Tile(64, 64, 64, 4, stages) for stages in (3, 5)),
]
ATTENTION = [
    (Tile(m, n, 256, warps, stages), Tile(n, m, 256, warps, stages))
    for (m, n), warps, stages in product(
        ((128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (32, 64), (16, 64), (16, 32)),
        (4, 8),
        (2, 3),
    )
]
KINDS: dict[str, dict[str, Any]] = {  # losses in which one kind of product tells tiles apart
    "plain": {},
    "columns": {"symmetric": True},
    "gradients": {"symmetric": True},
    "full": {"label_smoothing": 0.1},
}


def problems(toy: bool) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """Kind, rows, width and options of the losses that are timed."""
    if toy:
        yield from (("plain", 70, 32, {}), ("attention", 70, 64, {}), ("crossover", 70, 32, {}))
        return
    for rows in (16384, 2048):
        yield from ((kind, rows, 768, options) for kind, options in KINDS.items())
    for width, rows in product((64, 128, 256), (32768, 8192)):
        yield "attention", rows, width, {}
    for width, rows in product((128, 256, 384, 768, 1024), (64, 256, 1024, 2048, 8192, 32768)):
        yield "crossover", rows, width, {}


def candidates(kind: str) -> list[Any]:
    """Tiles, pairs of them, or with and without panels."""
    if kind == "attention":
        return list(ATTENTION)
    return ["attention", "panels"] if kind == "crossover" else list(PRODUCTS)


def install(kind: str, candidate: Any, original: tuple[Callable[..., Any], ...]) -> None:
    """Have the launchers take a candidate, and everything else from the table."""
    product_tile, attention_tiles = original

    def chosen(unit: Any, wanted: str, *sizes: int) -> Tile:
        found: Tile = candidate if wanted == kind else product_tile(unit, wanted, *sizes)
        return found

    def pairs(unit: Any, *sizes: int) -> Any:
        if kind == "attention":
            return candidate
        if candidate == "attention":
            return attention_tiles(unit, *sizes)
        return None

    tiles.FEW_SIMILARITIES = 1 << 62 if kind == "crossover" else FEW_SIMILARITIES
    tiles.product_tile = chosen if isinstance(candidate, Tile) else product_tile
    tiles.attention_tiles = pairs


def timed(
    rows: int, width: int, options: dict[str, Any], device: torch.device, seconds: float
) -> dict[str, Any]:
    """Forward and backward with the tiles that are installed, or why there is no time."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    query, key = peers.pair(rows, width, dtype, device)

    def step() -> None:
        query.grad = key.grad = None
        info_nce(query, key, temperature=0.05, backend="triton", **options).backward()

    try:
        return bench_gpu.timed(step, device, seconds)
    except Exception as error:  # a tile that does not fit the device
        return {"reason": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def main() -> None:
    """Time, print the fastest of each entry, write all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune_gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--seconds", type=float, default=0.3, help="of timing for a candidate")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, metavar="DIR")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at toy sizes")
    arguments = parser.parse_args()
    if not arguments.rehearse and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --rehearse runs on the CPU")
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    name = "rehearsal" if arguments.rehearse else torch.cuda.get_device_name()
    end, rows = time.monotonic() + 60 * arguments.minutes, []
    original = tiles.product_tile, tiles.attention_tiles
    for kind, count, width, options in problems(arguments.rehearse):
        if time.monotonic() > end:
            print(f"time is up at {kind} {count} x {width}")
            break
        best: tuple[float, str] = (float("inf"), "none ran")
        for candidate in candidates(kind)[: 2 if arguments.rehearse else None]:
            install(kind, candidate, original)
            found = timed(count, width, options, device, arguments.seconds)
            several = candidate if isinstance(candidate, tuple) else [candidate]
            shown = [list(astuple(c)) if isinstance(c, Tile) else c for c in several]
            row = {"kind": kind, "rows": count, "width": width, "tiles": shown}
            rows.append(row | found)
            if "ms" in found:
                best = min(best, (found["ms"]["median"], str(shown)))
        print(f"{kind:10} {count:6} x {width:4} {best[0]:9.3f} ms  {best[1]}", flush=True)
    fields = ", ".join(asdict(PRODUCTS[0]))
    print(f"a tile: {fields}")
    print(harness.save(f"tiles-{re.sub(r'[^a-z0-9]+', '-', name.lower())}", rows, arguments.output))


if __name__ == "__main__":
    main()
