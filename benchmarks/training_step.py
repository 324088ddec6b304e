"""A method at work on a batch: its step, its gate, its tokens; alone in a process on a CPU."""

from __future__ import annotations

import multiprocessing
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from benchmarks import training_data, training_peers
from benchmarks.peak_memory import resident
from simcse_fast.memory import return_free_pages

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

FEW = 32
GATE = 1e-4  # relative, of fp32 gradients at so few pairs
ROOM = 10 << 30  # bytes of a process; beyond, a method has no memory


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
    training_peers.MAKERS[name](counting)([dict(column) for column in columns], None)
    return {"real": counting.real, "padded": counting.padded}


class AbsentError(Exception):
    """A method that has no memory for a batch."""


class Worker:
    """A method in a process of its own: none runs on what another has left in memory.

    Methods take turns; while one computes, the others wait.
    """

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(name, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, what: str, *arguments: int) -> Any:
        """What the process answers to `load`, `step` or `tokens`."""
        try:
            self.pipe.send((what, *arguments))
            reply = self.pipe.recv()
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError(f"the process of a method ended, asked to {what}") from error
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join()


def serve(name: str, pipe: Connection) -> None:
    """The other side of Worker."""
    resource.setrlimit(
        resource.RLIMIT_DATA, (4 * ROOM if name == training_peers.KEPT else ROOM,) * 2
    )
    at_work = AtWork(name)
    while True:
        try:
            what, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(getattr(at_work, what)(*arguments))
        except (RuntimeError, MemoryError) as error:
            memory = "allocate memory" in str(error) or isinstance(error, MemoryError)
            pipe.send(AbsentError(name) if memory else error)


class AtWork:
    """A method with MiniLM, and the batch that it is at."""

    def __init__(self, name: str) -> None:
        self.name, self.model = name, training_data.minilm(torch.device("cpu"))
        self.columns: list[Any] = []
        self.run: Callable[[], None] = lambda: None

    def load(self, rows: int, longest: int) -> float:
        """Get ready for a batch; the error of the gradients."""
        self.run = lambda: None  # lets go of what the last batch took
        self.columns = training_data.real_columns(self.model, rows, longest)
        error = gate(self.name, self.model, self.columns)
        return_free_pages()  # which the gate leaves
        self.run = step_of(training_peers.MAKERS[self.name](self.model), self.model, self.columns)
        self.before = resident("VmRSS")
        return error

    def step(self) -> tuple[float, float]:
        """Seconds, and MiB beyond what the process held before the first.

        What is held between steps has gone cold while others took their turns, which it does not
        in a training, so the method that holds memory takes a step before.
        """
        if self.name == training_peers.KEPT:
            self.run()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        begin = time.perf_counter()
        self.run()
        seconds, mib = time.perf_counter() - begin, resident("VmHWM") - self.before
        if self.name in training_peers.HEAVY:
            return_free_pages()  # the memory of all methods together is more than there is
        return seconds, mib

    def tokens(self) -> dict[str, int]:
        """Real and padded ones."""
        return tokens(self.name, self.columns)
