"""The loss on a CPU beside its floor and its peers: python -m benchmarks.bench_info_nce [N ...].

Forward and backward of N pairs in fp32. The gate comes first: a method whose gradients are wrong
is not timed.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks import harness, peers
from simcse_fast.kernels import native
from simcse_fast.kernels.infonce import cpu, torch_ops

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
WIDTHS = (128, 384, 768, 1024)
HALF = (128, 512, 1024, 4096, 8192)  # rows, at D = 768, of inputs with 16 bits
MEMORY = ((4096, 768), (8192, 768), (16384, 768), (32768, 256))


def gradients(step: peers.Step, query: Tensor, key: Tensor) -> list[Tensor]:
    """Gradients of one step, in float64."""
    query.grad = key.grad = None
    step(query, key)
    return [x.grad.double().clone() for x in (query, key) if x.grad is not None]


def gradient_error(step: peers.Step, query: Tensor, key: Tensor) -> float:
    """Relative error of both gradients against the textbook loss in fp64."""
    wide = [x.detach().double().requires_grad_() for x in (query, key)]
    exact = gradients(peers.backward_of(peers.textbook), *wide)
    found = gradients(step, query, key)
    return max(float((x - y).norm() / y.norm()) for x, y in zip(found, exact, strict=True))


def fresh(step: peers.Step, query: Tensor, key: Tensor) -> Callable[[], None]:
    """A step without the gradients of the last one."""

    def run() -> None:
        query.grad = key.grad = None
        step(query, key)

    return run


def measure(rows: int, width: int, methods: dict[str, peers.Step]) -> dict[str, Any]:
    """One row of the result."""
    query, key = peers.pair(rows, width)
    errors, steps = {}, {}
    for name, step in methods.items():
        if "cached" in name and rows > 8192:
            continue  # half a minute a step, as the smaller sizes foretell
        if rows <= 2048:  # fp64 takes minutes beyond
            errors[name] = gradient_error(step, query, key)
            if not errors[name] < 1e-2:
                raise RuntimeError(f"{name}: gradient error {errors[name]:.1e} at {rows} x {width}")
        steps[name] = fresh(step, query, key)
    steps["three bare products"] = peers.bare_products(query, key, torch_ops.multiply)
    if native.load().sf_outruns_blas():
        steps["three of our products"] = peers.bare_products(query, key, cpu.multiply)
    times = harness.interleaved(steps, seconds=2.0, least=5 if rows <= 4096 else 3)
    result = {name: harness.summary(values) for name, values in times.items()}
    for name, error in errors.items():
        result[name]["gradient_error"] = float(f"{error:.3g}")
    ours, eager = result["simcse_fast"]["median"], result["eager"]["median"]
    bare = result["three bare products"]["median"]
    line = f"{rows:6} x {width:5}  {ours:10.3f} ms  {eager / ours:5.2f} x eager  {bare / ours:.3f}"
    print(line, "of the floor", flush=True)
    return {"rows": rows, "width": width, "ms": result}


def half(rows: int, width: int = 768) -> dict[str, Any]:
    """Ours and the textbook loss for inputs of 16 bits."""
    steps = {}
    for dtype in (torch.bfloat16, torch.float16):
        query, key = peers.pair(rows, width, dtype)
        for name in ("simcse_fast", "eager"):
            step = fresh(peers.MAKERS[name](), query, key)
            steps[f"{name} {str(dtype).removeprefix('torch.')}"] = step
    times = harness.interleaved(steps, seconds=2.0)
    result = {name: harness.summary(values) for name, values in times.items()}
    print(f"{rows:6} x {width:5}  ", {k: v["median"] for k, v in result.items()}, flush=True)
    return {"rows": rows, "width": width, "half_ms": result}


def without_amx() -> peers.Step:
    """Ours with the products and vectors of AVX-512."""
    library, ours = native.load(), peers.MAKERS["simcse_fast"]()

    def step(query: Tensor, key: Tensor) -> None:
        library.sf_use_instruction_set(b"avx512")
        ours(query, key)
        library.sf_use_instruction_set(b"amx")

    return step


def memory(rows: int, width: int) -> dict[str, Any]:
    """Peak memory of each method in a process of its own."""
    found = {name: harness.peak_memory(name, rows, width) for name in peers.MAKERS}
    print(f"{rows:6} x {width:5}  MiB {found}", flush=True)
    return {"rows": rows, "width": width, "mib": found}


def main() -> None:
    """Measure, print, save."""
    harness.provenance()  # of the code that is measured, whatever is committed meanwhile
    sizes = [int(x) for x in sys.argv[1:]] or SIZES
    methods, absent = {}, {}
    for name, make in peers.MAKERS.items():
        try:
            methods[name] = make()
        except ImportError as error:
            absent[name] = f"not measured: {error}"
    if native.instruction_set() == "amx":
        methods["simcse_fast without AMX"] = without_amx()
    torch._dynamo.config.cache_size_limit = 64  # noqa: SLF001  # one entry a shape
    rows = [measure(n, d, methods) for d in WIDTHS for n in sizes]
    rows += [half(n) for n in HALF if not sys.argv[1:] or n in sizes]
    rows += [memory(n, d) for n, d in MEMORY if not sys.argv[1:] or n in sizes]
    rows += [{"absent": absent}] if absent else []
    if not sys.argv[1:]:
        print(harness.save(f"info_nce-cpu-{harness.machine()}", rows))


if __name__ == "__main__":
    main()
