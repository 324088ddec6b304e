"""A bar with the loss, the speed and the memory, where a person watches."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback

if TYPE_CHECKING:
    from simcse_fast.training.history import History

KILO = 1024


class Progress(TrainerCallback):  # type: ignore[misc]
    """The bar; silent when standard error is no terminal."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the signature of callbacks
        """Open, where an earlier run stopped."""
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="training",
                unit=" steps",
                disable=None,
                leave=False,
                file=sys.stderr,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the signature of callbacks
        """One step further."""
        if self.bar is None:
            return
        score = f", STS {self.history.evaluations[-1][1]:.2f}" if self.history.evaluations else ""
        self.bar.set_postfix_str(
            f"loss {self.history.losses[-1]:.4f}, "
            f"{self.history.sentences_per_second:,.0f} sentences/s, "
            f"{memory(args.device):.1f} GiB{score}",
            refresh=False,
        )
        self.bar.update(1)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the signature of callbacks
        """Close."""
        if self.bar is not None:
            self.bar.close()


def memory(device: torch.device) -> float:
    """Peak memory in GiB: of the device, where it has its own, else of the process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device) / KILO**3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / (KILO**3 if sys.platform == "darwin" else KILO**2))
