"""A trainer whose checkpoints are whole or not there, and whose weights are never spoiled."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME

from simcse_fast.errors import InputError
from simcse_fast.training.sealed import UNFINISHED, writing


class WholeCheckpoints(Trainer):  # type: ignore[misc]
    """The trainer of transformers; its `run` has the checkpoints and the history."""

    run: Any

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip; what is not finite stops training too, where no gradient scaler skips the step."""
        norm = super()._clip_grad_norm(model)
        if self.accelerator.scaler is None and not np.isfinite(float(norm)):
            raise InputError(
                f"the gradient of step {self.state.global_step + 1} is not finite; a lower "
                "learning_rate may help"
            )
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002 - the parent's signature
        """A checkpoint that is whole or not there."""
        checkpoints, best = self.run.checkpoints, self.state.best_global_step or None
        target = checkpoints.path(self.state.global_step)
        note = checkpoints.note(self.state.global_step, best)
        first = self.is_world_process_zero()
        aside = target.with_name(UNFINISHED + target.name)
        self.store_flos()
        with writing(target, note) if first else nullcontext(aside) as folder:
            self.accelerator.wait_for_everyone()  # until the folder is there
            self.save_model(str(folder), _internal_call=True)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            if first:
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
                self.run.history.save(folder)
            self.accelerator.wait_for_everyone()  # until all of them have written
        if first:
            checkpoints.rotate(self.state.global_step, best)
