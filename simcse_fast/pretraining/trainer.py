"""transformers' trainer with batches, loss, schedule and checkpoints of our own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, TrainerCallback

from simcse_fast.errors import InputError
from simcse_fast.pretraining.history import Evaluation
from simcse_fast.pretraining.model import loss_of
from simcse_fast.training.batches import Loader
from simcse_fast.training.whole_checkpoints import WholeCheckpoints

if TYPE_CHECKING:
    from pathlib import Path

    from simcse_fast.pretraining.batches import ByLength, Guesses
    from simcse_fast.pretraining.held_out import HeldOut
    from simcse_fast.pretraining.history import History
    from simcse_fast.training.checkpoints import Checkpoints
    from simcse_fast.training.interrupts import StopRequest


@dataclass
class Run:
    """What pre-training has besides a model and the trainer's own arguments."""

    order: ByLength
    guesses: Guesses
    held_out: HeldOut
    evaluation_steps: int
    checkpoints: Checkpoints
    history: History
    stop: StopRequest
    budget: float | None  # in seconds, where time ends it
    warmup: float  # share of the run
    began: float = 0.0  # as if it had never been interrupted

    def elapsed(self) -> float:
        """Seconds of training, those before an interruption included."""
        return time.perf_counter() - self.began

    def share(self, steps: float) -> float:
        """How much of the run is over after so many steps."""
        return steps / self.order.steps if self.budget is None else self.elapsed() / self.budget

    def factor(self, step: int) -> float:
        """Of the learning rate in a step: it rises while warming up, and falls to 0."""
        done = min(self.share(step + 0.5), 1.0)
        return done / self.warmup if done < self.warmup else (1 - done) / (1 - self.warmup or 1)

    def is_over(self) -> bool:
        """Whether all steps are done, or the time is up."""
        steps = len(self.history.losses)
        late = self.budget is not None and steps > 0 and self.history.seconds >= self.budget
        return late or steps >= self.order.steps


class Flow(TrainerCallback):  # type: ignore[misc]
    """Counts time, evaluates, and ends training when it is time or someone asked for it."""

    def __init__(self, trainer: MlmTrainer) -> None:
        self.trainer, self.run = trainer, trainer.run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the signature of callbacks
        """From now on time counts."""
        self.run.began = time.perf_counter() - self.run.history.seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the signature of callbacks
        """The step is done, its checkpoint not yet due."""
        run = self.run
        run.history.seconds = run.elapsed()
        over = run.is_over()
        if over or state.global_step % run.evaluation_steps == 0:
            self.trainer.evaluate()
        if over or run.stop.asked:
            control.should_training_stop = control.should_save = True


class MlmTrainer(WholeCheckpoints):
    """The loop, device, precision and optimizer stay the trainer's."""

    def __init__(self, run: Run, **options: Any) -> None:
        self.run = run
        super().__init__(train_dataset=run.order, data_collator=run.guesses, **options)
        self.remove_callback(PrinterCallback)
        self.add_callback(Flow(self))

    def get_train_dataloader(self) -> Loader:
        """Batches by length, for all steps."""
        return Loader(self.run.order, self.run.guesses)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:  # noqa: ARG002 - the parent's signature
        """By the share of the run that is over, in steps or in time."""
        run: Run = self.run
        run.began = time.perf_counter() - run.history.seconds

        def factor(step: int) -> float:  # no method: a scheduler would save its object
            rate: float = run.factor(step)
            return rate

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: ARG002 - the parent's signature
        num_items_in_batch: Any = None,  # noqa: ARG002 - the parent's signature
    ) -> Any:
        """The loss, counted; NaN stops training before it reaches the weights."""
        with self.accelerator.autocast():
            loss = loss_of(self.accelerator.unwrap_model(model), inputs)
        value = loss.item()
        if not np.isfinite(value):
            raise InputError(
                f"the loss of step {self.state.global_step + 1} is {value}; a lower "
                "learning_rate may help"
            )
        history = self.run.history
        history.losses.append(value)
        history.sentences += len(inputs["input_ids"])
        history.real_tokens += inputs["real"]
        history.padded_tokens += inputs["input_ids"].numel()
        history.guessed_tokens += len(inputs["guessed"])
        return loss

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:  # noqa: ARG002 - the parent's signature
        """Guess the held-out sentences' hidden tokens."""
        with self.accelerator.autocast():
            loss, accuracy = self.run.held_out(self.model, self.args.device)
        history = self.run.history
        history.evaluations.append(
            Evaluation(self.state.global_step, history.seconds, loss, accuracy)
        )
        return {"eval_loss": loss, "eval_accuracy": accuracy}

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """None: only the head's last layer is missing, which is the word embeddings."""

    def train_from(self, start: Path | None) -> None:
        """Train on from a checkpoint, or from the beginning."""
        if start is not None and self.run.is_over():  # only the result is missing
            self._load_from_checkpoint(str(start))
            return
        self.train(resume_from_checkpoint=str(start) if start else None)
