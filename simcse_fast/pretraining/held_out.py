"""Sentences that are never trained on, with tokens hidden once and for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from simcse_fast.errors import InputError
from simcse_fast.pretraining.model import logits_of
from simcse_fast.training.batches import Batch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import BertForMaskedLM

    from simcse_fast.pretraining.batches import ByLength, Guesses
    from simcse_fast.training.tokens import TokenData

MOST, SHARE = 2000, 20  # held out by default: one sentence in 20, or so many
STREAM = 1  # of random numbers, apart from those of training


def split(
    data: TokenData, held_out: int | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on, and rows held out: all that repeat one of these are in neither."""
    identity = data.columns[0].identity[data.rows]
    distinct, first = np.unique(identity, return_index=True)
    number = held_out or max(min(MOST, len(distinct) // SHARE), 1)
    if number >= len(distinct):
        raise InputError(
            f"held_out: expected fewer than the corpus has different sentences, {len(distinct)}, "
            f"got {number}"
        )
    rng = np.random.default_rng((seed, STREAM))
    chosen = rng.choice(len(distinct), number, replace=False)
    trained = ~np.isin(identity, distinct[chosen])
    return data.rows[trained], data.rows[np.sort(first[chosen])]


class HeldOut:
    """Loss and accuracy on the same hidden tokens each time."""

    def __init__(self, order: ByLength, guesses: Guesses) -> None:
        by_length = np.argsort(order.lengths, kind="stable")
        key = order.seed
        self.batches = [guesses(Batch(order.rows[one], key)) for one in order.cut(by_length)]
        self.tokens = sum(len(batch["guessed"]) for batch in self.batches)
        if not self.tokens:
            raise InputError(
                f"held_out: no token of {len(order.rows)} sentences is hidden; hold out more"
            )
        guessed = torch.cat([batch["guessed"] for batch in self.batches])
        self.commonest = float(guessed.bincount().max()) / self.tokens  # share of one token

    @torch.no_grad()
    def __call__(self, model: BertForMaskedLM, device: torch.device) -> tuple[float, float]:
        """Mean loss of the hidden tokens, and the share of them that is guessed."""
        training = model.training
        model.eval()
        loss, right = 0.0, 0
        for batch in self.batches:
            here: dict[str, Any] = {
                name: value.to(device) for name, value in batch.items() if torch.is_tensor(value)
            }
            logits = logits_of(model, here)
            loss += float(F.cross_entropy(logits, here["guessed"], reduction="sum"))
            right += int((logits.argmax(1) == here["guessed"]).sum())
        model.train(training)
        return loss / self.tokens, right / self.tokens
