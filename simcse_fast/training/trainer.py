"""sentence-transformers' trainer with batches, loss and checkpoints of our own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from transformers import PrinterCallback, TrainerCallback

from simcse_fast.errors import InputError
from simcse_fast.training.batches import Loader
from simcse_fast.training.encoders import head_parameters, without_heads
from simcse_fast.training.whole_checkpoints import WholeCheckpoints

if TYPE_CHECKING:
    from sentence_transformers.evaluation import EmbeddingSimilarityEvaluator

    from simcse_fast.training.batches import Collator, Order
    from simcse_fast.training.checkpoints import Checkpoints
    from simcse_fast.training.history import History
    from simcse_fast.training.interrupts import StopRequest
    from simcse_fast.training.objective import Objective
    from simcse_fast.training.observer import Watch

HEAD = "head.safetensors"


@dataclass
class Run:
    """What a training run has besides a model and the trainer's own arguments."""

    order: Order
    collate: Collator
    objective: Objective
    checkpoints: Checkpoints
    evaluator: EmbeddingSimilarityEvaluator | None
    patience: int | None
    history: History
    stop: StopRequest
    save: bool
    watch: Watch | None


class Flow(TrainerCallback):  # type: ignore[misc]
    """Counts the time of steps, and ends training when someone asked for it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.started = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the signature of callbacks
        """The step is done, its checkpoint not yet due."""
        self.run.history.seconds += time.perf_counter() - self.started
        if self.run.stop.agreed(args.device):
            control.should_training_stop = True
            control.should_save = self.run.save


class SimCSETrainer(WholeCheckpoints, SentenceTransformerTrainer):  # type: ignore[misc]
    """The loop, devices, processes, precision, schedules and reports stay the trainer's."""

    def __init__(self, run: Run, **options: Any) -> None:
        self.run, self.flow = run, Flow(run)
        super().__init__(
            train_dataset=run.order,
            loss=run.objective,
            evaluator=run.evaluator,
            data_collator=run.collate,
            **options,
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(self.flow)
        if run.watch is not None:
            self.add_callback(run.watch)

    def preprocess_dataset(self, dataset: Any = None, dataset_name: str | None = None) -> Any:  # noqa: ARG002 - the parent's signature
        """Nothing to do: the ids are there."""
        return dataset

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """The card is written from what `train` knows; the parent's looks into columns of text."""

    def get_train_dataloader(self) -> Loader:
        """Batches of all processes; each takes its share of every one."""
        return Loader(self.run.order, self.run.collate)

    def get_batch_samples(self, *arguments: Any) -> Any:
        """A step begins."""
        self.flow.started = time.perf_counter()
        return super().get_batch_samples(*arguments)

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
        """The columns, and with them the whole batch in place of labels."""
        return inputs["columns"], inputs

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss, counted; NaN stops training before it reaches the weights."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.record(loss, inputs)
        return loss

    def record(self, loss: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Keep the figures of a step; the loss is the mean of all processes."""
        objective, history = self.run.objective, self.run.history
        padded_here = loss.new_tensor(objective.padded_tokens, dtype=torch.double)
        masked = loss.new_zeros(()) if objective.mlm_loss is None else objective.mlm_loss
        figures = torch.stack([loss.detach().double(), padded_here, masked.double()])
        value, padded, mlm_loss = self.accelerator.reduce(figures, "mean").tolist()
        if not np.isfinite(value):
            raise InputError(
                f"the loss of step {self.state.global_step + 1} is {value}: "
                f"{objective.not_finite(inputs['rows'])}; a lower learning_rate may help"
            )
        objective.embeddings = []
        history.losses.append(value)
        if objective.mlm_loss is not None:
            history.mlm_losses.append(mlm_loss)
        history.sentences += self.run.order.batch_size
        history.real_tokens += inputs["real"]
        history.padded_tokens += round(padded * self.args.world_size)
        history.duplicates += inputs["repeats"]

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:  # noqa: ARG002 - the parent's signature
        """Spearman x 100 of the evaluation's pairs, computed by the first process."""
        scores = [0.0]
        if self.is_world_process_zero() and self.run.evaluator is not None:
            metrics = self.run.evaluator(self.model)
            scores = [100 * float(np.nan_to_num(metrics[self.run.evaluator.primary_metric]))]
        score: float = broadcast_object_list(scores)[0]
        self.run.history.evaluations.append((self.state.global_step, score))
        metrics = {"eval_spearman": score}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:  # noqa: ARG002 - the parent's signature
        best = self.run.history.best()
        if best is None:
            return False
        self.state.best_global_step, self.state.best_metric = best
        better: bool = best[0] == self.state.global_step
        self.control.should_save |= better or self.is_impatient()
        self.control.should_training_stop |= self.is_impatient()
        return better

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002 - the parent's signature
        """A model that loads without us, and what only training sees beside it."""
        folder = Path(output_dir or self.args.output_dir)
        kept = {name: value.detach() for name, value in head_parameters(self.model).items()}
        with without_heads(self.model) as model:
            model.save_pretrained(str(folder), create_model_card=False)
        if kept:
            save_file(kept, str(folder / HEAD))

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:  # noqa: ARG002 - the parent's signature
        """The weights of a checkpoint into the model that is there."""
        stored = SentenceTransformer(checkpoint_path, device="cpu").state_dict()
        with without_heads(self.model) as bare:
            bare.load_state_dict(stored)
        parameters = head_parameters(self.model)
        kept = load_file(str(Path(checkpoint_path, HEAD))) if parameters else {}
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])

    def train_from(self, start: Path | None, steps: int) -> None:
        """Train on from a checkpoint, or from the beginning."""
        if start is not None and self.is_over(steps):  # only the result is missing
            self._load_from_checkpoint(str(start))
            return
        self.train(resume_from_checkpoint=str(start) if start else None)

    def is_over(self, steps: int) -> bool:
        """Whether all steps are done, or patience is at its end."""
        return len(self.run.history.losses) >= steps or self.is_impatient()

    def is_impatient(self) -> bool:
        """Whether so many evaluations brought no gain that training stops."""
        return self.run.patience is not None and self.run.history.stale() >= self.run.patience

    def load_best(self) -> None:
        """The weights of the best evaluation, where there was one."""
        best = self.run.history.best()
        if best is not None:
            self._load_from_checkpoint(str(self.run.checkpoints.path(best[0])))
