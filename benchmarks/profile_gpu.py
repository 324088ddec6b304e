"""Where a loss's time goes on a GPU, kernel by kernel: python -m benchmarks.profile_gpu.

Torch's profiler over a few warm steps of forward and backward. A launch-bound batch shows as steps
that take longer than their kernels.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import gpu_peers, harness, peers

STEPS = 5
# Rows, width, type, symmetric.
PROBLEMS = [
    (65536, 768, "bfloat16", False),
    (65536, 768, "bfloat16", True),
    (65536, 128, "bfloat16", False),
    (65536, 256, "bfloat16", False),
    (2048, 768, "bfloat16", False),
    (512, 768, "bfloat16", False),
    (512, 768, "bfloat16", True),
]


def kernels_of(name: str, rows: int, width: int, dtype: str, symmetric: bool) -> dict[str, Any]:
    """Milliseconds of a step, and of each kernel in it with its launches."""
    device = torch.device("cuda")
    query, key = peers.pair(rows, width, getattr(torch, dtype), device)
    backward = peers.backward_of(gpu_peers.LOSSES[name](symmetric))

    def step() -> None:
        query.grad = key.grad = None
        backward(query, key)

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(STEPS):
        step()
    launched = time.perf_counter() - begin
    torch.cuda.synchronize()
    took = time.perf_counter() - begin
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as run:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    events = [e for e in run.key_averages() if e.self_device_time_total > 0]
    events = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda e: -e.self_device_time_total)
    return {
        "method": name,
        "problem": [rows, width, dtype, symmetric],
        "ms": 1e3 * took / STEPS,
        "launching_ms": 1e3 * launched / STEPS,
        "kernels": [
            {
                "kernel": e.key[:120],
                "ms": round(e.self_device_time_total / 1e3 / STEPS, 4),
                "launches": e.count / STEPS,
            }
            for e in events[:20]
        ],
    }


def main() -> None:
    """Profile, print, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_gpu", description=__doc__)
    parser.add_argument("--methods", nargs="*", default=["simcse_fast triton"], metavar="NAME")
    parser.add_argument("--problems", type=int, metavar="N", help="the first N alone")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, metavar="DIR")
    options = parser.parse_args()
    found = []
    for problem in PROBLEMS[: options.problems]:
        for name in options.methods:
            found.append(kernels_of(name, *problem))
            row = found[-1]
            print(f"{problem} {name}: {row['ms']:.3f} ms, launched in {row['launching_ms']:.3f}")
            for kernel in row["kernels"][:8]:
                print(
                    f"   {kernel['ms']:9.4f} ms {kernel['launches']:6.1f} x {kernel['kernel'][:85]}"
                )
            torch.cuda.empty_cache()
    print(harness.save(f"kernels-{harness.gpu()}", found, options.output))


if __name__ == "__main__":
    main()
