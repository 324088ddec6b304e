"""Something that looks at the model while it is trained, and leaves no trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from simcse_fast.encoding import evaluating
from simcse_fast.replay import RandomState

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentence_transformers import SentenceTransformer

    Observe = Callable[[SentenceTransformer, int], None]


def undisturbed(model: SentenceTransformer, observe: Observe, step: int) -> None:
    """Call in evaluation mode; afterwards modes and random numbers are what they were."""
    state = RandomState(model.device)
    with state, evaluating(model):
        observe(model, step)


class Watch(TrainerCallback):  # type: ignore[misc]
    """Calls before the first step, every so many steps, and after the last."""

    def __init__(self, model: SentenceTransformer, observe: Observe, every: int) -> None:
        self.model, self.observe, self.every = model, observe, every

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the signature of callbacks
        """Once, of a run that is not resumed."""
        if state.is_world_process_zero and not state.global_step:
            undisturbed(self.model, self.observe, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the signature of callbacks
        """The step is done, and its time counted."""
        due = not state.global_step % self.every or state.global_step == state.max_steps
        if state.is_world_process_zero and due:
            undisturbed(self.model, self.observe, state.global_step)
