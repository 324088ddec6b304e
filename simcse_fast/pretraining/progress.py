"""A bar with the losses and the speed, where a person watches."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from transformers import TrainerCallback

if TYPE_CHECKING:
    from simcse_fast.pretraining.trainer import Run


class Progress(TrainerCallback):  # type: ignore[misc]
    """The bar, over steps or over seconds; silent when standard error is no terminal."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the signature of callbacks
        """Open, where an earlier run stopped."""
        timed = self.run.budget is not None
        self.bar = tqdm(
            total=round(self.run.budget or self.run.order.steps),
            initial=self.done(),
            desc="pre-training",
            unit=" s" if timed else " steps",
            disable=None,
            leave=False,
            file=sys.stderr,
        )

    def done(self) -> int:
        """What the bar counts."""
        history, budget = self.run.history, self.run.budget
        return len(history.losses) if budget is None else round(min(history.seconds, budget))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the signature of callbacks
        """One step further."""
        history = self.run.history
        held_out = history.evaluations[-1]
        self.bar.set_postfix_str(
            f"loss {history.losses[-1]:.3f}, held out {held_out.loss:.3f} "
            f"({held_out.accuracy:.1%} right), {history.tokens_per_second:,.0f} tokens/s",
            refresh=False,
        )
        self.bar.update(self.done() - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the signature of callbacks
        """Close."""
        self.bar.close()
