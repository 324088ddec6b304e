"""Small worlds of processes on this machine: one call starts them, one returns what they found."""

from __future__ import annotations

import datetime as dt
import time
import traceback
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, multiprocessing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE = 60  # seconds, of a collective and of a whole world beyond its own work


class Lost:
    """Stands for the result of a rank that was killed."""


def run(
    world: int,
    work: Callable[..., Any],
    folder: Path,
    *arguments: Any,
    timeout: float = PATIENCE,
    patience: float = 2 * PATIENCE,
    backend: str = "gloo",
) -> list[Any]:
    """work(rank, *arguments) in a process for each rank; what each returned, or `Lost`."""
    folder.mkdir(parents=True, exist_ok=True)
    # Children of a server that has imported what takes seconds, and has started no thread.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "simcse_fast.losses.sentence_transformers"])
    processes = [
        context.Process(
            target=_enter, args=(rank, world, work, folder, timeout, backend, arguments)
        )
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    late = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    assert not late, f"ranks {late} were still running after {patience} s"
    results = []
    for rank in range(world):
        path = folder / f"{rank}.pt"
        result = torch.load(path, weights_only=False) if path.exists() else Lost()
        assert not isinstance(result, str), f"rank {rank}: {result}"
        results.append(result)
    return results


def _enter(
    rank: int,
    world: int,
    work: Callable,
    folder: Path,
    timeout: float,
    backend: str,
    arguments: tuple,
) -> None:
    torch.set_num_threads(1)
    if backend != "gloo":
        torch.cuda.set_device(rank)
    try:
        distributed.init_process_group(
            backend,
            init_method=f"file://{folder / 'meeting'}",
            rank=rank,
            world_size=world,
            timeout=dt.timedelta(seconds=timeout),
        )
        result = work(rank, *arguments)
    except BaseException:
        result = traceback.format_exc()
    torch.save(result, folder / f"{rank}.part")
    (folder / f"{rank}.part").rename(folder / f"{rank}.pt")
    if distributed.is_initialized():
        distributed.destroy_process_group()
