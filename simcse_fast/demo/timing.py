"""The fused loss against the textbook loss: same batch, same process, turn by turn."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from simcse_fast import info_nce

if TYPE_CHECKING:
    from collections.abc import Callable

    Loss = Callable[[Tensor, Tensor], Tensor]

Result = TypeVar("Result")

TEMPERATURE = 0.05
STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
FEW_ROUNDS = 3


@dataclass(frozen=True)
class Cost:
    """One loss, forward and backward."""

    milliseconds: float  # median
    megabytes: float | None  # peak beside the inputs; None where the system does not say


@dataclass(frozen=True)
class Comparison:
    """Both losses on one batch of `rows` pairs of `width` numbers."""

    rows: int
    width: int
    rounds: int
    textbook: Cost
    fused: Cost
    speedup: float  # median of the rounds' ratios
    loss_difference: float  # |fused - textbook|
    gradient_difference: float  # largest, over the largest entry of the textbook's


def textbook(query: Tensor, key: Tensor) -> Tensor:
    """InfoNCE as papers print it: the whole matrix of logits, then cross-entropy."""
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / TEMPERATURE
    return F.cross_entropy(logits, torch.arange(len(query), device=query.device))


def fused(query: Tensor, key: Tensor) -> Tensor:
    """The same number without the matrix."""
    return info_nce(query, key, temperature=TEMPERATURE)


def gradients(loss: Loss, query: Tensor, key: Tensor) -> tuple[float, Tensor]:
    """Value, and gradients of query and key below one another."""
    pair = [query.detach().requires_grad_(), key.detach().requires_grad_()]
    value = loss(*pair)
    value.backward()  # type: ignore[no-untyped-call]
    return value.item(), torch.cat([x.grad for x in pair if x.grad is not None])


def seconds(loss: Loss, query: Tensor, key: Tensor) -> float:
    """Wall-clock time of one forward and backward pass."""
    started = time.perf_counter()
    gradients(loss, query, key)
    return time.perf_counter() - started


def peak_megabytes(action: Callable[[], Result]) -> tuple[float | None, Result]:
    """Peak of resident memory during an action, over what was there before, and what it returns."""
    try:
        # Memory that was freed but kept for reuse would hide what the action takes.
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")  # the peak starts again at the present size
    except (OSError, AttributeError):  # not Linux, or not with glibc
        return None, action()
    before = resident("VmRSS")
    result = action()
    return max(resident("VmHWM") - before, 0) / 1e6, result


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def compare(query: Tensor, key: Tensor, *, budget: float) -> Comparison:
    """Memory from each loss's first pass at this size; then rounds of both, `budget` seconds."""
    losses = {"textbook": textbook, "fused": fused}
    for loss in losses.values():  # loads what the first call of all loads
        gradients(loss, query[:64], key[:64])
    first = {
        name: peak_megabytes(partial(gradients, loss, query, key)) for name, loss in losses.items()
    }
    times: dict[str, list[float]] = {name: [] for name in losses}
    started = time.perf_counter()
    while len(times["fused"]) < FEW_ROUNDS or time.perf_counter() - started < budget:
        for name, loss in losses.items():
            times[name].append(seconds(loss, query, key))
    cost = {name: Cost(median(times[name]) * 1e3, first[name][0]) for name in losses}
    rows, width = query.shape
    plain, ours = first["textbook"][1], first["fused"][1]
    return Comparison(
        rows=rows,
        width=width,
        rounds=len(times["fused"]),
        textbook=cost["textbook"],
        fused=cost["fused"],
        speedup=median(a / b for a, b in zip(times["textbook"], times["fused"], strict=True)),
        loss_difference=abs(ours[0] - plain[0]),
        gradient_difference=((ours[1] - plain[1]).abs().max() / plain[1].abs().max()).item(),
    )
