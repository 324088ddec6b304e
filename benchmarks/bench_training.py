"""Whole training steps beside others' cached losses: python -m benchmarks.bench_training [N ...].

A step embeds both columns of a batch, computes the loss and ends in the encoder's gradients. Rounds
are interleaved. The gate comes first: without dropout, a method whose gradients are not those of
the uncached loss is not timed.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from benchmarks import harness, training_data, training_peers
from benchmarks.peak_memory import resident

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTHS = (32, 128)
BATCHES = {256: 3, 1024: 2, 4096: 1}  # and rounds
# Methods that are worth their minutes at the largest batch.
LARGE = (training_peers.OURS, training_peers.KEPT, training_peers.STOCK)
LARGEST, TYPICAL, FEW = 4096, 1024, 64
ON_GPU = (1024, 4096, 16384, 65536)
GATE = 1e-4  # relative, of fp32 gradients at 64 pairs
LOSS = 4096, 384  # rows and width


def step_of(loss: training_peers.Loss, model: nn.Module, columns: list[Any]) -> Callable[[], None]:
    """One step from fresh gradients; modules write into what they are given."""
    device = next(model.parameters()).device

    def step() -> None:
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            value = loss([dict(column) for column in columns], None)
        value.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def gradients(model: nn.Module) -> torch.Tensor:
    """All of them, end to end."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def few(columns: list[Any]) -> list[Any]:
    """The first rows of a batch."""
    return [{k: v[:FEW] for k, v in c.items() if isinstance(v, torch.Tensor)} for c in columns]


def gate(name: str, model: nn.Module, columns: list[Any]) -> float:
    """Relative distance of a method's gradients from the uncached loss's, dropout off."""
    found = []
    model.eval()
    for method in (name, training_peers.PLAIN):
        step_of(training_peers.MAKERS[method](model), model, few(columns))()
        found.append(gradients(model).double())
    model.train()
    error = float((found[0] - found[1]).norm() / found[1].norm())
    if not error < (GATE if columns[0]["input_ids"].device.type == "cpu" else 5e-2):
        raise RuntimeError(f"{name}: gradients are {error:.1e} off")
    return error


def tokens(name: str, columns: list[Any]) -> dict[str, int]:
    """Tokens of one embedding pass, real and padded."""
    counting = training_peers.Padding()
    with torch.no_grad():
        training_peers.MAKERS[name](counting)([dict(column) for column in columns], None)
    return {"real": counting.real, "padded": counting.padded}


def in_turn(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step; without a first round for warmth, which the gate has given."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    if kept := steps.get(training_peers.KEPT):
        kept()  # takes its memory, once in a training
    order = list(steps)
    for number in range(rounds):
        random.Random(number).shuffle(order)  # noqa: S311  # not for secrets
        for name in order:
            begin = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - begin)
    return times


def encoder(
    model: nn.Module, columns: list[Any], names: list[str], rounds: int, title: str
) -> dict[str, Any]:
    """One row of the result: a batch, all methods."""
    rows = len(columns[0]["input_ids"])
    errors = {name: gate(name, model, columns) for name in names}
    steps = {name: step_of(training_peers.MAKERS[name](model), model, columns) for name in names}
    times = in_turn(steps, rounds)
    result: dict[str, Any] = {
        name: {
            "s": [round(t, 3) for t in times[name]],
            "sentences_per_s": round(2 * rows / statistics.median(times[name]), 1),
            "gradient_error": float(f"{errors[name]:.2g}"),
        }
        for name in names
    }
    medians = {name: statistics.median(times[name]) for name in names}
    against = training_peers.STOCK
    ratios = {name: f"{medians[against] / medians[name]:.2f}" for name in names}
    print(f"{title}, {rows} pairs: x {against}:", ratios, flush=True)
    return {"encoder": title, "rows": rows, "methods": result}


def loss_part(device: torch.device, rows: int, width: int) -> dict[str, Any]:
    """The loss of so many pairs of embeddings alone."""
    torch.manual_seed(0)
    query = torch.randn(rows, width, device=device)
    pair = [x.requires_grad_() for x in (query, query + torch.randn_like(query))]
    model = nn.Sequential(nn.Identity())
    cached = {
        "simcse_fast": training_peers.ours(model, 0.0),
        "stock cached 32": training_peers.stock(model, mini_batch_size=32),
    }

    def of(loss: Any) -> Callable[[], None]:
        def step() -> None:
            pair[0].grad = pair[1].grad = None
            loss.calculate_loss([[x] for x in pair], with_backward=True)

        return step

    def eager() -> None:
        pair[0].grad = pair[1].grad = None
        plain = training_peers.originals.MultipleNegativesRankingLoss(model)
        plain.compute_loss_from_embeddings(pair, None).backward()

    steps = {**{name: of(loss) for name, loss in cached.items()}, "eager": eager}
    times = harness.interleaved(steps, seconds=2)
    result = {name: harness.summary(values) for name, values in times.items()}
    print("loss part, ms:", {k: v["median"] for k, v in result.items()}, flush=True)
    return {"loss_part": [rows, width], "ms": result}


def memory(name: str, rows: int, longest: int) -> float:
    """MiB that one step adds to a fresh process."""
    command = [sys.executable, "-m", "benchmarks.bench_training", "--memory", name]
    command += ["--rows", str(rows), "--longest", str(longest)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    found = re.search(r"MiB ([\d.]+)", run.stdout)
    return float(found[1]) if found else float("nan")


def measure_memory(name: str, rows: int, longest: int) -> None:
    """In the fresh process: a small step, then the one that counts."""
    model = training_data.minilm(torch.device("cpu"))
    columns = training_data.real_columns(model, rows, longest)
    loss = training_peers.MAKERS[name]
    step_of(loss(model), model, few(columns))()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    step_of(loss(model), model, columns)()
    print("MiB", round(resident("VmHWM") - before, 1))


def on_cpu(sizes: list[int], names: list[str]) -> list[dict[str, Any]]:
    """MiniLM on real sentences."""
    found = [loss_part(torch.device("cpu"), *LOSS)]
    model = training_data.minilm(torch.device("cpu"))
    for longest in LENGTHS:
        for rows in sizes:
            columns = training_data.real_columns(model, rows, longest)
            chosen = [name for name in names if rows < LARGEST or name in LARGE]
            title = f"MiniLM, {longest} tokens"
            row = encoder(model, columns, chosen, BATCHES.get(rows, 2), title)
            for name in chosen:
                row["methods"][name] |= tokens(name, columns)
                if rows == TYPICAL:
                    row["methods"][name]["mib"] = memory(name, rows, longest)
            found.append(row)
    return found


def on_gpu(device: torch.device, rehearse: bool) -> list[dict[str, Any]]:
    """Random weights, random tokens, bf16; what does not fit is left out and says so."""
    found: list[dict[str, Any]] = [
        loss_part(device, 64, 48) if rehearse else loss_part(device, *LOSS)
    ]
    for name in ("tiny",) if rehearse else ("minilm", "bert-base"):
        model = training_data.random_model(name, device)
        for longest in LENGTHS:
            for rows in (64,) if rehearse else ON_GPU:
                columns = training_data.drawn_columns(rows, longest, device)
                title = f"{name}, {longest} tokens"
                fitting = []
                for method in training_peers.MAKERS:
                    try:
                        step_of(training_peers.MAKERS[method](model), model, columns)()
                        fitting.append(method)
                    except torch.OutOfMemoryError:
                        found.append({"encoder": title, "rows": rows, "absent": method})
                        torch.cuda.empty_cache()
                found.append(encoder(model, columns, fitting, 3, title))
    return found


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_training")
    parser.add_argument("sizes", type=int, nargs="*", help="pairs in a batch; saves nothing")
    parser.add_argument("--methods", nargs="*", help="saves nothing", metavar="NAME")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rehearse", action="store_true", help="the GPU's part, tiny")
    parser.add_argument("--memory", metavar="METHOD")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--longest", type=int, default=32)
    parser.add_argument("--output", type=Path, default=harness.RESULTS, metavar="DIR")
    options = parser.parse_args()
    if options.memory:
        measure_memory(options.memory, options.rows, options.longest)
        return
    harness.provenance()  # of the code that is measured, whatever is committed meanwhile
    device = torch.device(options.device)
    if options.rehearse or device.type == "cuda":
        found, where = on_gpu(device, options.rehearse), "gpu"
        if device.type == "cuda":
            where = re.sub(r"\W+", "-", torch.cuda.get_device_name().lower())
    else:
        names = options.methods or list(training_peers.MAKERS)
        found = on_cpu(options.sizes or list(BATCHES), names)
        where = f"cpu-{harness.machine()}"
    if not (options.sizes or options.methods):
        print(harness.save(f"training-{where}", found, options.output))


if __name__ == "__main__":
    main()
