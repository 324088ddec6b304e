"""Ctrl-C and termination during training: finish the step, save, stop."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed as dist

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by a signal; the message says where it can go on from."""


class StopRequest:
    """Whether someone asked to stop. The second signal stops at once, as it would have."""

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[int, Any] = {}

    def ask(self, number: int, frame: Any) -> None:  # noqa: ARG002 - a signal handler's signature
        """The handler of the first signal."""
        self.asked = True
        self.restore()

    def restore(self) -> None:
        """Put back the handlers that were there."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def agreed(self, device: torch.device) -> bool:
        """Whether any process was asked: all of them have to stop after the same step."""
        if dist.is_available() and dist.is_initialized():
            flag = torch.tensor(float(self.asked), device=device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            self.asked = bool(flag)
        return self.asked


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Handle signals within; Python delivers them to the main thread only."""
    request = StopRequest()
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            request.before[number] = signal.signal(number, request.ask)
    try:
        yield request
    finally:
        request.restore()
