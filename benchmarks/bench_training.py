"""Whole training steps beside others' cached losses: python -m benchmarks.bench_training [N ...].

A step embeds both columns of a batch, computes the loss and ends in the encoder's gradients. On a
CPU each method has a process of its own. Rounds are interleaved. The gate comes first: without
dropout, a method whose gradients are not those of the uncached loss is not timed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from benchmarks import harness, training_data, training_peers
from benchmarks.training_step import AbsentError, Worker, gate, step_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LENGTHS = (32, 128)
BATCHES = {256: 2, 1024: 4, 4096: 1}  # and rounds
# The rest embeds row by row as these do: its time by the sentence is the same at every batch.
LARGE = (training_peers.OURS, training_peers.KEPT, training_peers.STOCK)
SMALLEST = 256
PLAIN_TOKENS = 8192  # of a column; its graphs take 0.2 MiB each and more, twice
ON_GPU = (1024, 4096, 16384, 65536)
LOSS = 4096, 384  # rows and width


def in_turn(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step; without a first round for warmth, which the gate has given."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for number in range(rounds):
        random.Random(number).shuffle(order)  # noqa: S311  # not for secrets
        for name in order:
            times[name].append(steps[name]())
    return times


def result(
    title: str, rows: int, times: dict[str, list[float]], errors: dict[str, float]
) -> dict[str, Any]:
    """One row: a batch, all methods."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    methods = {
        name: {
            "s": [round(t, 3) for t in values],
            "sentences_per_s": round(2 * rows / medians[name], 1),
            "gradient_error": float(f"{errors[name]:.2g}"),
        }
        for name, values in times.items()
    }
    if stock := times.get(training_peers.STOCK):
        ratios = {name: f"{harness.speed_up(stock, own):.2f}" for name, own in times.items()}
        print(f"{title}, {rows} pairs: x {training_peers.STOCK}:", ratios, flush=True)
    return {"encoder": title, "rows": rows, "methods": methods}


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


def on_cpu(sizes: list[int], names: list[str]) -> Iterator[dict[str, Any]]:
    """MiniLM on real sentences."""
    yield loss_part(torch.device("cpu"), *LOSS)
    workers: dict[str, Worker] = {}
    for rows in sizes:
        for longest in LENGTHS:
            chosen = [name for name in names if rows <= SMALLEST or name in LARGE]
            if rows * longest > PLAIN_TOKENS:
                chosen = [name for name in chosen if name != training_peers.PLAIN]
            for name in set(workers) - set(chosen):
                workers.pop(name).close()
            workers |= {name: Worker(name) for name in chosen if name not in workers}
            yield from one_batch(workers, rows, longest)


def one_batch(workers: dict[str, Worker], rows: int, longest: int) -> Iterator[dict[str, Any]]:
    """The row of a batch, after one for each method without memory for it."""
    title, errors = f"MiniLM, {longest} tokens", {}
    steps: dict[str, Callable[[], float]] = {}
    peak: dict[str, float] = {}

    def timed(name: str) -> float:
        seconds, mib = workers[name].ask("step")
        peak[name] = max(mib, peak.get(name, 0.0))
        return float(seconds)

    for name, worker in workers.items():
        try:
            errors[name] = worker.ask("load", rows, longest)
            steps[name] = partial(timed, name)
        except AbsentError:
            yield {"encoder": title, "rows": rows, "absent": name}
    row = result(title, rows, in_turn(steps, BATCHES.get(rows, 2)), errors)
    for name in steps:
        row["methods"][name] |= workers[name].ask("tokens") | {"mib": round(peak[name], 1)}
    yield row


def seconds_of(step: Callable[[], None]) -> float:
    """Of one step."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def on_gpu(device: torch.device, rehearse: bool) -> Iterator[dict[str, Any]]:
    """Random weights, random tokens, bf16; what does not fit is left out and says so."""
    yield loss_part(device, 64, 48) if rehearse else loss_part(device, *LOSS)
    for name in ("tiny",) if rehearse else ("minilm", "bert-base"):
        model = training_data.random_model(name, device)
        for longest in LENGTHS:
            for rows in (64,) if rehearse else ON_GPU:
                columns = training_data.drawn_columns(rows, longest, device)
                title, errors = f"{name}, {longest} tokens", {}
                steps: dict[str, Callable[[], float]] = {}
                for method, make in training_peers.MAKERS.items():
                    step = step_of(make(model), model, columns)
                    try:
                        step()
                        errors[method] = gate(method, model, columns)
                        steps[method] = partial(seconds_of, step)
                    except torch.OutOfMemoryError:
                        yield {"encoder": title, "rows": rows, "absent": method}
                        torch.cuda.empty_cache()
                yield result(title, rows, in_turn(steps, 3), errors)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_training")
    parser.add_argument("sizes", type=int, nargs="*", help="pairs in a batch; saves nothing")
    parser.add_argument("--methods", nargs="*", help="saves nothing", metavar="NAME")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rehearse", action="store_true", help="the GPU's part, tiny")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, metavar="DIR")
    options = parser.parse_args()
    harness.provenance()  # of the code that is measured, whatever is committed meanwhile
    device = torch.device(options.device)
    if options.rehearse or device.type == "cuda":
        measured, where = on_gpu(device, options.rehearse), "gpu"
        if device.type == "cuda":
            where = harness.gpu()
    else:
        names = options.methods or list(training_peers.MAKERS)
        measured = on_cpu(options.sizes or list(BATCHES), names)
        where = f"cpu-{harness.machine()}"
    found: list[dict[str, Any]] = []
    for row in measured:
        found.append(row)
        if not (options.sizes or options.methods):
            print(harness.save(f"training-{where}", found, options.output), flush=True)


if __name__ == "__main__":
    main()
