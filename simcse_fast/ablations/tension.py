"""Contrastive Tension (Carlsson et al. 2021), by sentence-transformers' loss, to compare with."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.sentence_transformer.losses import ContrastiveTensionLoss
from transformers import set_seed

from simcse_fast.errors import InputError
from simcse_fast.training.batches import Batch, Collator, Order
from simcse_fast.training.encoders import drop_heads, load_encoder, with_dropout
from simcse_fast.training.observer import undisturbed
from simcse_fast.training.options import RECIPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from simcse_fast.training.observer import Observe
    from simcse_fast.training.tokens import TokenData

PAIRS_A_POSITIVE = 8  # one of them is the sentence with itself, as in the paper
CLIP = 1.0  # the norm of a gradient, as in `train`
OPTIONS = (
    *("pooling", "max_length", "batch_size", "steps", "learning_rate", "dropout", "loss"),
    "bf16",
)


def train_by_tension(
    model: str,
    data: TokenData,
    options: dict[str, Any],
    *,
    seed: int,
    device: str | None,
    observe: Observe | None,
    every: int,
) -> tuple[SentenceTransformer, list[float], float]:
    """Two copies of the model learn to agree on a sentence, and to disagree on two.

    loss = mean of the binary cross-entropy of sigma(f(a) . g(b)), which is 1 where a = b

    The sentences of each batch are those that `train` would take.

    Args:
        model: name or folder.
        data: the token ids of the sentences.
        options: of `train`, as far as OPTIONS go; batch_size pairs make a step.
        seed: as of `train`.
        device: as of `train`.
        observe: as of `train`.
        every: steps between calls of `observe`.

    Returns:
        The model, the loss of each step, and the seconds of all steps.
    """
    if others := [name for name in options if name not in OPTIONS]:
        raise InputError(
            f"loss: contrastive tension has no {', '.join(others)}; it has {', '.join(OPTIONS)}"
        )
    set_seed(seed)
    encoder = load_encoder(model, pooling=options.get("pooling"), supervised=False, device=device)
    order = Order(data.rows, options["batch_size"], seed)
    collate = Collator(
        data, static=encoder.static, twins=False, padding=encoder.padding(), mask_duplicates=False
    )
    kind = "static" if encoder.static else "transformer"
    rate = options.get("learning_rate", RECIPES[kind, False]["learning_rate"])
    steps, losses, seconds = options["steps"], [], 0.0
    bf16 = bool(options.get("bf16"))
    with with_dropout(encoder, options.get("dropout")):
        loss = ContrastiveTensionLoss(encoder.model).train()
        optimizer = torch.optim.AdamW(loss.parameters(), lr=rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        torch.manual_seed(seed)
        if observe is not None:
            undisturbed(encoder.model, observe, 0)
        for step, batch in enumerate(batches(order, steps), start=1):
            started = time.perf_counter()
            with torch.autocast(encoder.model.device.type, torch.bfloat16, enabled=bf16):
                value = value_of(loss, collate, batch)
            losses.append(learn(value, loss, optimizer))
            schedule.step()
            seconds += time.perf_counter() - started
            if observe is not None and (not step % every or step == steps):
                undisturbed(encoder.model, observe, step)
    drop_heads(encoder.model)
    return encoder.model.eval(), losses, seconds


def batches(order: Order, steps: int) -> Iterator[Batch]:
    """So many, over as many epochs as that takes."""
    for epoch in range(-(-steps // len(order))):
        order.set_epoch(epoch)
        for _, batch in zip(range(steps - epoch * len(order)), order, strict=False):
            yield batch


def value_of(loss: Any, collate: Collator, batch: Batch) -> Tensor:
    """Of one batch, the mean over pairs."""
    first, second = batch.rows, np.roll(batch.rows, 1)
    positive = max(len(first) // PAIRS_A_POSITIVE, 1)
    second[:positive] = first[:positive]
    numbers = collate.data.columns[0].identity
    device = loss.model2.device
    columns = [
        {name: x.to(device) for name, x in collate(Batch(rows, batch.key))["columns"][0].items()}
        for rows in (first, second)
    ]
    labels = torch.from_numpy(numbers[first] == numbers[second]).to(device)
    value: Tensor = loss(columns, labels) / len(first)
    return value


def learn(value: Tensor, loss: Any, optimizer: torch.optim.Optimizer) -> float:
    """One step; the loss before it."""
    optimizer.zero_grad()
    value.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(loss.parameters(), CLIP)
    optimizer.step()
    return float(value.detach())
