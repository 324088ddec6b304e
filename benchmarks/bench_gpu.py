"""The loss on a GPU beside its floor and its peers: python -m benchmarks.bench_gpu.

Unattended and without a network, in nine minutes: the most important problem first, then those that
differ from it in one thing, in two, ... Every row is written as soon as it is measured. A method
that is absent, fails, takes too long or has wrong gradients gets a row that says so.
--rehearse runs all of it on the CPU at toy sizes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import threading
import time
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import cache, partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import gpu_peers, harness, peers
from benchmarks.bench_info_nce import gradients
from simcse_fast import set_workspace_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

GATE_ROWS = 2048  # the textbook loss in fp64 at this size takes milliseconds
GATE = 0.1  # relative error of the gradients, above which a method computes something else, ...
UNTRAINED = 3.0  # ... for keys so noisy that no positive is certain, which hides all roundings


@dataclass(frozen=True)
class Problem:
    """N pairs of width D."""

    rows: int
    width: int
    dtype: str
    symmetric: bool
    backward: bool

    @property
    def products(self) -> int:
        """Similarity products that the plan needs: the count behind every TFLOP/s."""
        return (4 if self.symmetric else 3) if self.backward else 1

    def __str__(self) -> str:
        """For a line of output."""
        direction = "symmetric" if self.symmetric else "row-only"
        return f"{self.rows:7} x {self.width:4} {self.dtype} {direction:9} " + (
            "full   " if self.backward else "forward"
        )


@dataclass(frozen=True)
class Sizes:
    """What is measured; the first of each is the most important problem."""

    rows: tuple[int, ...]
    widths: tuple[int, ...]
    panels: tuple[int, ...]
    square: int
    most: int  # rows of the largest problem, measured once
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    leading: tuple[Problem, ...] = ()  # before all others
    parts: dict[str, tuple[Problem, ...]] = field(default_factory=dict)  # measured alone


SINGLE = (
    *(Problem(4096, 768, "float32", both, True) for both in (False, True)),
    *(Problem(n, 768, "float32", False, True) for n in (512, 2048, 16384)),
)
LARGE = tuple(  # enough tiles for every cluster
    Problem(n, width, "bfloat16", both, True)
    for n, width in ((65536, 768), (16384, 768), (65536, 384), (65536, 1024), (8192, 768))
    for both in (False, True)
)
GPU = Sizes(
    rows=(65536, 64, 128, 256, 512, 1024, 2048, 131072, 4096, 8192, 16384, 32768),
    widths=(768, 128, 256, 384, 1024),
    panels=(5632, 4096, 8192),
    square=8192,
    most=1 << 20,
    leading=(
        *(Problem(65536, 768, "bfloat16", both, True) for both in (False, True)),
        *(Problem(65536, width, "bfloat16", False, True) for width in (128, 256)),
        *(Problem(n, 768, "bfloat16", both, True) for n in (512, 2048) for both in (False, True)),
        *SINGLE,
    ),
    parts={"fp32": SINGLE, "cuda": LARGE},
)
# fp16 in the rehearsal, because Triton's interpreter does not multiply bf16.
LARGE_AFTER = 10  # problems that tell more are measured first
TOY = Sizes(
    rows=(40, 24),
    widths=(16,),
    panels=(36, 32),
    square=32,
    most=60,
    dtypes=("float16", "float32"),
    parts={
        "fp32": (Problem(24, 16, "float32", True, True),),
        "cuda": (Problem(40, 16, "float16", False, True),),
    },
)
WITHOUT_PEERS = {  # in a part
    "fp32": ("simcse_fast triton", "eager", "torch.compile"),
    "cuda": ("simcse_fast cuda", "simcse_fast triton"),
}
MOST_WORKSPACE = 10 << 30  # bytes of the largest problem's panel


def products_of(problem: Problem, sizes: Sizes) -> list[str]:
    """The bare products in panels, and whole where those are larger."""
    panels = [n for n in sizes.panels if n < problem.rows] or [problem.rows]
    return [f"products in panels of {n}" for n in panels]


def part(name: str, sizes: Sizes) -> Iterator[tuple[Problem, list[str]]]:
    """A few problems, without peers."""
    for problem in sizes.parts[name]:
        yield problem, [*products_of(problem, sizes)[:1], *WITHOUT_PEERS[name]]


def plan(sizes: Sizes) -> Iterator[tuple[Problem, list[str]]]:
    """Problems and the names of their methods, the most important first."""
    for dtype in sizes.dtypes:
        yield Problem(sizes.square, sizes.square, dtype, False, False), ["square product"]
    kinds = product(sizes.rows, sizes.dtypes, (True, False), sizes.widths, (False, True))
    problems = [Problem(n, d, dtype, both, full) for n, dtype, full, d, both in kinds]
    first = astuple(problems[0])
    problems.sort(key=lambda p: sum(a != b for a, b in zip(astuple(p), first, strict=True)))
    problems.sort(key=lambda p: p not in sizes.leading)
    for number, problem in enumerate(problems):
        if number == LARGE_AFTER:
            most = Problem(sizes.most, sizes.widths[0], sizes.dtypes[0], False, True)
            yield most, [f"products in panels of {min(4096, sizes.most)}", "simcse_fast triton"]
        names = products_of(problem, sizes)
        if problem.products == 3:
            names.append(names[0].replace("products", "products and a pass"))
        losses = [*gpu_peers.LOSSES]
        if problem.dtype == "float32":  # there the two are one
            losses.remove("simcse_fast cuda")
        yield problem, [*names, *losses]


def step_of(name: str, problem: Problem, query: Tensor, key: Tensor) -> Callable[[], Any]:
    """One evaluation of a method."""
    if name not in gpu_peers.LOSSES:
        panel = re.search(r"panels of (\d+)", name)
        return gpu_peers.products(
            query,
            key,
            rows=int(panel[1]) if panel else problem.rows,
            count=problem.products,
            **({"between": gpu_peers.exponentials} if "a pass" in name else {}),
        )
    loss = gpu_peers.LOSSES[name](problem.symmetric)
    backward = peers.backward_of(loss)

    def full() -> None:
        query.grad = key.grad = None
        backward(query, key)

    return full if problem.backward else torch.no_grad()(lambda: loss(query, key))


@cache
def gradient_error(name: str, problem: Problem, device: torch.device, noise: float) -> float:
    """Relative error of both gradients against fp64."""
    dtype = getattr(torch, problem.dtype)
    query, key = peers.pair(problem.rows, problem.width, dtype, device, noise)
    wide = [x.detach().double().requires_grad_() for x in (query, key)]
    exact = gradients(peers.backward_of(gpu_peers.exact(name, problem.symmetric)), *wide)
    loss = gpu_peers.LOSSES[name](problem.symmetric)
    found = gradients(peers.backward_of(loss), query, key)
    return max(float((x - y).norm() / y.norm()) for x, y in zip(found, exact, strict=True))


def seconds_of(step: Callable[[], Any], device: torch.device) -> float:
    """Time of one call, by the device's own clock."""
    if device.type == "cpu":
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin
    event = partial(torch.cuda.Event, enable_timing=True)
    before, after = event(), event()
    before.record()
    step()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1e3


def timed(step: Callable[[], Any], device: torch.device, seconds: float) -> dict[str, Any]:
    """Median and quartiles of warm calls, and the memory that one adds to its inputs."""
    found: dict[str, Any] = {}
    held = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    step()  # compiles
    end = time.perf_counter() + seconds / 5
    while time.perf_counter() < end:
        seconds_of(step, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    once = seconds_of(step, device)
    if device.type == "cuda":
        found["peak_mib"] = round((torch.cuda.max_memory_allocated() - held) / 2**20, 1)
    rounds = min(200, max(5 if once < 1 else 2, int(seconds / once)))
    return found | {"ms": harness.summary([seconds_of(step, device) for _ in range(rounds)])}


def outcome(name: str, problem: Problem, device: torch.device, seconds: float) -> dict[str, Any]:
    """What is known of a method on a problem: its figures, or the reason why there are none."""
    found: dict[str, Any] = {}
    try:
        if name in gpu_peers.LOSSES:
            small = replace(problem, rows=min(problem.rows, GATE_ROWS), backward=True)
            found["gradient_error"] = float(f"{gradient_error(name, small, device, 1.0):.3g}")
            error = gradient_error(name, small, device, UNTRAINED)
            if not error < GATE:
                return found | {"reason": f"gradient error {error:.2g} against fp64: not timed"}
        dtype = getattr(torch, problem.dtype)
        query, key = peers.pair(problem.rows, problem.width, dtype, device)
        large = problem.rows in (GPU.most, TOY.most)
        set_workspace_limit(MOST_WORKSPACE if large else None)
        found |= timed(step_of(name, problem, query, key), device, seconds)
    except Exception as error:  # whatever a peer raises becomes its row
        text = " ".join(str(error).split())
        last = {"last": True} if isinstance(error, ImportError) else {}
        return found | {"reason": f"{type(error).__name__}: {text[:300]}"} | last
    operations = problem.products * 2 * problem.rows**2 * problem.width
    return found | {"tflops": operations / found["ms"]["median"] * 1e-9}


def usable(device: torch.device) -> bool:
    """Give memory back; False when a kernel's fault took the CUDA context with it."""
    if device.type == "cpu":
        return True
    gc.collect()
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


FIELDS = tuple(Problem.__dataclass_fields__)


def line(row: dict[str, Any]) -> str:
    """A row for the screen."""
    problem = Problem(*(row[field] for field in FIELDS))
    if "reason" in row:
        return f"{problem} {row['method']:34} {row['reason'][:80]}"
    memory = f"{row['peak_mib'] / 1024:7.2f} GiB" if "peak_mib" in row else ""
    figures = f"{row['ms']['median']:10.3f} ms {row['tflops']:7.1f} TFLOP/s {memory:11}"
    if "gradient_error" in row:
        figures += f" error {row['gradient_error']:.1e}"
    return f"{problem} {row['method']:34} {figures}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing for a row")
    parser.add_argument(
        "--longest", type=float, default=60.0, help="seconds until a row is given up"
    )
    parser.add_argument(
        "--part", choices=WITHOUT_PEERS, help="a few problems alone, without peers: 2 minutes"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the rows in DIR")
    return harness.gpu_options(parser)


def restart(end: float) -> None:
    """Go on in a new process: a fault or a hanging kernel leaves no other way."""
    left = f"{(end - time.monotonic()) / 60:.2f}"
    command = [sys.executable, "-m", "benchmarks.bench_gpu", *sys.argv[1:]]
    os.execv(sys.executable, [*command, "--resume", "--minutes", left])  # noqa: S606


def measure_all(
    options: argparse.Namespace,
    device: torch.device,
    rows: list[dict[str, Any]],
    write: Callable[[list[dict[str, Any]]], Path],
) -> None:
    """Measure, print and write row after row until the time is up."""
    end = time.monotonic() + 60 * options.minutes
    done = {(*(row[field] for field in FIELDS), row["method"]) for row in rows}
    over = {row["method"] for row in rows if row.get("last")}  # not tried on further problems

    def record(problem: Problem, name: str, found: dict[str, Any]) -> None:
        rows.append(asdict(problem) | {"method": name} | found)
        write(rows)
        print(line(rows[-1]), flush=True)

    def give_up(problem: Problem, name: str, limit: float) -> None:
        record(problem, name, {"reason": f"took more than {limit:.0f} s", "last": True})
        restart(end)

    sizes = TOY if options.rehearse else GPU
    for problem, names in part(options.part, sizes) if options.part else plan(sizes):
        for name in names:
            if name in over or (*astuple(problem), name) in done:
                continue
            left = end - time.monotonic()
            if left <= 0:
                print(f"time is up at {problem}")
                return
            limit = min(options.longest, max(left, 5.0))
            watch = threading.Timer(limit, give_up, (problem, name, limit))
            watch.start()
            found = outcome(name, problem, device, options.seconds)
            watch.cancel()
            alive = usable(device)
            if "last" in found or not alive:
                over.add(name)
                found["last"] = True
            record(problem, name, found)
            if not alive:
                restart(end)


def main() -> None:
    """Measure, then show the most important problems once more."""
    options = arguments()
    if options.rehearse:
        torch.compiler.set_stance("force_eager")
        torch.set_num_threads(1)
    torch._dynamo.config.cache_size_limit = 64  # noqa: SLF001  # one entry a shape
    write = partial(harness.save, f"info_nce-{options.name}", folder=options.output)
    path = options.output / f"info_nce-{options.name}.json"
    rows = json.loads(path.read_text())["rows"] if options.resume and path.exists() else []
    measure_all(options, options.device, rows, write)
    sizes = TOY if options.rehearse else GPU
    best = (sizes.rows[0], sizes.widths[0], sizes.dtypes[0])
    shown = [row for row in rows if (row["rows"], row["width"], row["dtype"]) == best]
    print("", *(line(row) for row in shown if row["backward"]), path, sep="\n")


if __name__ == "__main__":
    main()
