"""Attention of short sequences beside torch's: python -m benchmarks.bench_attention.

Forward and backward of a chunk of about a thousand tokens in fp32, as word weights call it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import harness
from simcse_fast.attribution.short_attention import ShortAttention
from simcse_fast.kernels.attention import reference

LENGTHS = (8, 14, 16, 24, 32, 48, 64, 96, 128)
DEPTHS = (32, 64)  # of a head: MiniLM, BERT-base
HEADS, TOKENS = 12, 1024
OURS, TORCH = "simcse_fast", "torch"


def gradients(inputs: list[torch.Tensor], upstream: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients, by whatever attention is in force."""
    out = scaled_dot_product_attention(*inputs)
    return [out, *torch.autograd.grad(out, inputs, upstream)]


def ours(inputs: list[torch.Tensor], upstream: torch.Tensor) -> list[torch.Tensor]:
    """The same by the native kernel."""
    with ShortAttention():
        return gradients(inputs, upstream)


def exact(inputs: list[torch.Tensor], upstream: torch.Tensor) -> list[torch.Tensor]:
    """The same in fp64, written out."""
    wide = [x.detach().double().requires_grad_() for x in inputs]
    out = reference.attention(*wide, None, wide[0].shape[3] ** -0.5)
    return [out.detach(), *torch.autograd.grad(out, wide, upstream.double())]


def measure(length: int, depth: int) -> dict[str, Any]:
    """One shape: errors, then times."""
    batch = TOKENS // length
    torch.manual_seed(0)
    drawn = [torch.randn(batch, length, HEADS * depth) for _ in range(4)]
    *inputs, upstream = (x.view(batch, length, HEADS, depth).transpose(1, 2) for x in drawn)
    inputs = [x.requires_grad_() for x in inputs]
    wanted = exact(inputs, upstream)
    steps = {OURS: ours, TORCH: gradients}
    errors = {
        name: max(
            float((a.detach() - b).abs().max() / b.abs().max())
            for a, b in zip(step(inputs, upstream), wanted, strict=True)
        )
        for name, step in steps.items()
    }
    times = harness.interleaved(
        {name: lambda step=step: step(inputs, upstream) for name, step in steps.items()},
        seconds=2,
        least=20,
    )
    return {
        "length": length,
        "depth": depth,
        "heads": HEADS,
        "batch": batch,
        "ms": {name: harness.summary(values) for name, values in times.items()},
        "speed_up": round(harness.speed_up(times[TORCH], times[OURS]), 2),
        "error": errors,
    }


def main() -> None:
    """Measure and save."""
    torch.set_num_threads(min(torch.get_num_threads(), 2))
    rows = []
    for depth in DEPTHS:
        for length in LENGTHS:
            rows.append(measure(length, depth))
            print(rows[-1], flush=True)
    print(harness.save(f"attention-cpu-{harness.machine()}", rows))


if __name__ == "__main__":
    main()
