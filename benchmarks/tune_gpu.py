"""Tiles of the Triton kernels, timed on the GPU at hand: python -m benchmarks.tune_gpu.

For each entry of kernels/infonce/tiles.py, LEAD of the products in CUDA C++ among them: the
candidates, their medians, and which is fastest, as rows of benchmarks/results/tiles-<device>.json.
What it finds is written into the table by hand, after tests/test_triton_compiled.py has seen it.
--rehearse runs all of it on the CPU, at toy sizes, in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import bench_gpu, harness, peers
from simcse_fast import info_nce
from simcse_fast.kernels.infonce import tiles
from simcse_fast.kernels.infonce.tiles import Tile

if TYPE_CHECKING:
    from collections.abc import Iterator

PANELS_ABOVE = tiles.PANELS_ABOVE
ORIGINAL = tiles.product_tile, tiles.attention_tiles
FLAT = False, True
# Rows, columns, depth, warps, stages, descriptors, halves, resident, flat.
ALL = 1 << 20  # resident: a program for each tile
PRODUCTS = [
    Tile(128, 256, 64, 8, 3, True),
    *(Tile(128, 256, 64, 8, stages, True, True, 1, flat) for stages in (3, 4) for flat in FLAT),
    *(Tile(256, 128, 64, 8, stages, True, True, 1, flat) for stages in (3, 4) for flat in FLAT),
    *(Tile(128, 128, 64, warps, 3, True, True, 2, flat) for warps in (4, 8) for flat in FLAT),
    *(Tile(128, 128, 64, warps, 3, True, True, ALL) for warps in (4, 8)),
    *(Tile(128, 128, 64, 8, stages, True, False, 1, flat) for stages in (3, 4) for flat in FLAT),
    *(Tile(m, n, 64, 4, 4, True) for m, n in ((128, 64), (64, 128), (64, 64))),
    Tile(64, 128, 64, 4, 3, True, True, 3),
    *(Tile(128, n, 64, 8, 3) for n in (128, 256)),
    Tile(64, 64, 64, 4, 3),
]
ATTENTION = [
    Tile(m, n, 256, warps, stages)
    for (m, n), warps, stages in product(
        ((128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (32, 64), (16, 64), (16, 32)),
        (4, 8),
        (2, 3),
    )
]
SIDES = "queries", "keys"  # the kernels shaped like attention, in the order of a pair
LEADS = [{"lead": lead} for lead in range(8)]  # of csrc/cuda
KINDS: dict[str, dict[str, Any]] = {  # losses in which one kind of product tells tiles apart
    "plain": {},
    "columns": {"symmetric": True},
    "gradients": {"symmetric": True},
    "full": {"label_smoothing": 0.1},
}


def problems(toy: bool) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """Kind, rows, width and options of the losses that are timed, the most telling first."""
    if toy:
        yield from ((kind, 70, 64, {}) for kind in ("plain", "lead", *SIDES, "crossover"))
        return
    for width, options in ((768, {}), (768, {"symmetric": True}), (384, {})):
        yield "lead", 16384, width, options | {"backend": "cuda"}
    for kind in ("plain", "columns", "gradients"):
        yield kind, 16384, 768, KINDS[kind]
    yield from ((side, 32768, width, {}) for width in (128, 256) for side in SIDES)
    yield "full", 16384, 768, KINDS["full"]
    for width, rows in product((128, 256, 384, 768, 1024), (256, 1024, 2048, 8192, 32768)):
        yield "crossover", rows, width, {}
    yield from ((kind, 2048, 768, options) for kind, options in KINDS.items())
    for width, rows in ((64, 32768), (64, 8192), (128, 8192), (256, 8192)):
        yield from ((side, rows, width, {}) for side in SIDES)


def candidates(kind: str) -> list[Any]:
    """Tiles, leads, or with and without panels."""
    if kind in SIDES:
        return list(ATTENTION)
    if kind == "lead":
        return LEADS
    return ["attention", "panels"] if kind == "crossover" else list(PRODUCTS)


def install(kind: str, candidate: Any) -> None:
    """Have the launchers take a candidate, and everything else from the table."""
    product_tile, attention_tiles = ORIGINAL

    def chosen(unit: Any, wanted: str, *sizes: int) -> Tile:
        found: Tile = candidate if wanted == kind else product_tile(unit, wanted, *sizes)
        return found

    def pairs(unit: Any, *sizes: int) -> Any:
        if kind not in SIDES and candidate != "attention":
            return None
        found: Any = attention_tiles(unit, *sizes)
        return tuple(candidate if kind == s else t for s, t in zip(SIDES, found, strict=True))

    without_panels = kind in SIDES or kind == "crossover"
    tiles.PANELS_ABOVE = (
        dict.fromkeys(PANELS_ABOVE, (tiles.EVERY,) * 2) if without_panels else PANELS_ABOVE
    )
    if kind == "lead":
        tiles.LEAD = candidate["lead"]
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
        info_nce(query, key, temperature=0.05, **{"backend": "triton"} | options).backward()

    try:
        return bench_gpu.timed(step, device, seconds)
    except Exception as error:  # a tile that does not fit the device
        return {"reason": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def compiled(task: tuple[str, int, int, dict[str, Any], Any]) -> str:
    """Run a candidate in a process of its own: its kernels are on the disk; or why not."""
    kind, rows, width, options, candidate = task
    install(kind, candidate)
    return str(timed(rows, width, options, torch.device("cuda"), 0.0).get("reason", ""))


def compile_all(wanted: list[tuple[str, int, int, dict[str, Any]]], jobs: int) -> None:
    """All candidates, in parallel: compilation takes longer than the measurements."""
    tasks = [(*problem, c) for problem in wanted for c in candidates(problem[0])]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool:
        waiting = [pool.submit(compiled, task) for task in tasks]
        failed = [f for f in waiting if f.exception() or f.result()]
    print(f"{len(tasks)} candidates compiled, {len(failed)} of them cannot run", flush=True)


def main() -> None:
    """Time, print the fastest of each entry, write all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune_gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--seconds", type=float, default=0.25, help="of timing for a candidate")
    parser.add_argument("--entries", type=int, help="that are timed, the most telling first")
    parser.add_argument("--jobs", type=int, default=0, help="processes that compile beforehand")
    arguments = harness.gpu_options(parser)
    end, rows = time.monotonic() + 60 * arguments.minutes, []
    wanted = [*problems(arguments.rehearse)][: arguments.entries]
    if arguments.jobs and not arguments.rehearse:
        compile_all(wanted, arguments.jobs)
    for kind, count, width, options in wanted:
        if time.monotonic() > end:
            print(f"time is up at {kind} {count} x {width}")
            break
        times: list[tuple[float, str]] = []
        for candidate in candidates(kind)[: 2 if arguments.rehearse else None]:
            install(kind, candidate)
            found = timed(count, width, options, arguments.device, arguments.seconds)
            shown = list(astuple(candidate)) if isinstance(candidate, Tile) else candidate
            row = {"kind": kind, "rows": count, "width": width, "tiles": [shown]}
            rows.append(row | found)
            if "ms" in found:
                times.append((found["ms"]["median"], str(shown)))
        for rank, (milliseconds, tile) in enumerate(sorted(times)[:3]):
            title = f"{kind:10} {count:6} x {width:4}" if rank == 0 else ""
            print(f"{title:24} {milliseconds:9.3f} ms  {tile}", flush=True)
    fields = ", ".join(asdict(PRODUCTS[0]))
    print(f"a tile: {fields}")
    print(harness.save(f"tiles-{arguments.name}", rows, arguments.output))


if __name__ == "__main__":
    main()
