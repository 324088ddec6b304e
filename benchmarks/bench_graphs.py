"""Small batches on a GPU, with CUDA graphs and without: python -m benchmarks.bench_graphs.

Forward and backward of one loss in bf16, beside eager torch and torch.compile, in two minutes; then
where the host's time goes in a replayed call. --rehearse runs it on the CPU, without graphs.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import gpu_peers, harness, peers
from benchmarks.bench_gpu import seconds_of
from simcse_fast import set_workspace_limit
from simcse_fast.kernels.infonce import graphs

if TYPE_CHECKING:
    from collections.abc import Callable

SWITCH = "SIMCSE_FAST_CUDA_GRAPHS"
OURS, DIRECT = "simcse_fast triton", "simcse_fast triton without graphs"
METHODS = (OURS, DIRECT, "eager", "torch.compile")
ROWS, WIDTH, TOY = (64, 512, 2048), 768, (16,)
CALLS = 100  # of each part of a replayed call; between them the device is waited for


def step_of(method: str, rows: int, symmetric: bool, device: torch.device) -> Callable[[], Any]:
    """Forward and backward."""
    name = OURS if method == DIRECT else method
    name = "simcse_fast torch" if name == OURS and device.type == "cpu" else name
    query, key = peers.pair(rows, WIDTH, torch.bfloat16, device)
    backward = peers.backward_of(gpu_peers.LOSSES[name](symmetric))

    def step() -> None:
        query.grad = key.grad = None
        backward(query, key)

    return step


def measured(
    method: str, rows: int, symmetric: bool, device: torch.device, seconds: float
) -> dict[str, Any]:
    """Milliseconds of a call by the device's clock, which sees the host's launches between."""
    os.environ[SWITCH] = "0" if method == DIRECT else "1"
    step = step_of(method, rows, symmetric, device)
    for _ in range(20):
        step()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        times.append(seconds_of(step, device))
    problem = {"rows": rows, "width": WIDTH, "symmetric": symmetric}
    return problem | {"method": method, "ms": harness.summary(times)}


def host_time(part: Callable[[], Any]) -> float:
    """Median microseconds until a part returns, the device idle before it."""
    times = []
    for _ in range(CALLS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        part()
        times.append(time.perf_counter() - begin)
    return round(1e3 * harness.summary(times)["median"], 1)


def breakdown(rows: int, symmetric: bool, device: torch.device) -> dict[str, Any]:
    """Microseconds of the host in each part of a replayed call."""
    os.environ[SWITCH] = "1"
    set_workspace_limit(None)  # drops the graphs of other problems
    step = step_of(OURS, rows, symmetric, device)
    for _ in range(graphs.DIRECT + 2):
        step()
    replays = graphs.of(device)
    problem = {"rows": rows, "width": WIDTH, "symmetric": symmetric, "method": "host time"}
    if not replays.graphs:
        return problem | {"reason": "nothing was captured"}
    (graph,) = replays.graphs.values()
    query, key = peers.pair(rows, WIDTH, torch.bfloat16, device)
    loss = gpu_peers.LOSSES[OURS](symmetric)
    with torch.no_grad():
        inputs = [None if x is None else x.clone() for x in graph.inputs]
        parts = {
            "copy in": partial(graph.take, inputs),
            "replay": graph.replay,
            "copy out": graph.give,
            "order of streams": lambda: (replays.recorder.begin(), replays.recorder.end()),
        }
        found = {name: host_time(part) for name, part in parts.items()}
    found["forward"] = host_time(lambda: loss(query, key))
    found["forward and backward"] = host_time(step)
    return problem | {"us": found}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_graphs", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing for a row")
    return harness.gpu_options(parser)


def main() -> None:
    """Measure, print and write row after row."""
    options = arguments()
    if options.rehearse:
        torch.compiler.set_stance("force_eager")
    rows: list[dict[str, Any]] = []
    for count in TOY if options.rehearse else ROWS:
        for symmetric in (False, True):
            problem = count, symmetric, options.device
            for method in METHODS:
                rows.append(measured(method, *problem, options.seconds))
                print(rows[-1], flush=True)
            if not options.rehearse:
                rows.append(breakdown(*problem))
                print(rows[-1], flush=True)
            path = harness.save(f"graphs-{options.name}", rows, folder=options.output)
    print(path)


if __name__ == "__main__":
    main()
