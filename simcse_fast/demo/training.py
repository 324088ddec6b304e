"""Contrastive training of the static encoder: two halves of a sentence find each other."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from simcse_fast import info_nce
from simcse_fast.demo.encoder import Tokens, embed, features
from simcse_fast.losses import MultipleNegativesRankingLoss

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

LEARNING_RATE = 5e-3
# On the addresses, held-out accuracy was 0.17 at 0.1 and at 0.15 (0.15 at 0.05 and at 0.2).
TEMPERATURE = 0.1
SHORTEST = 6  # words, so that a half says something
SECONDS = 100  # training ends here, so that a slow machine finishes the demo in four minutes
EVALUATIONS = 12


@dataclass(frozen=True)
class HeldOut:
    """How well halves of sentences that were never trained on find each other."""

    step: int
    loss: float
    accuracy: float  # share of first halves whose own second half is the nearest


@dataclass
class History:
    """What happened during training."""

    batch_size: int
    steps_asked: int
    losses: list[float] = field(default_factory=list)
    held_out: list[HeldOut] = field(default_factory=list)
    seconds: float = 0.0  # of training steps alone

    def sentences_per_second(self) -> float:
        """Sentences (pairs of halves) trained on in a second."""
        return self.batch_size * len(self.losses) / self.seconds


def two_halves(tokens: Tokens, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
    """Deal the words of each sentence in random order to two views, in turn."""
    lengths = tokens.lengths()
    sentence = np.repeat(np.arange(len(lengths)), lengths)
    order = np.argsort(sentence + rng.random(len(sentence)))  # shuffles within sentences
    ids = tokens.ids[order]
    place = np.arange(len(ids)) - np.repeat(tokens.offsets[:-1], lengths)
    first = place % 2 == 0
    ends = [np.concatenate([[0], np.cumsum(part)]) for part in ((lengths + 1) // 2, lengths // 2)]
    return Tokens(ids[first], ends[0]), Tokens(ids[~first], ends[1])


def batches(
    rows: NDArray[np.int64], size: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Batches of rows without end; each row at most once in a pass."""
    while True:
        shuffled = rng.permutation(rows)
        for start in range(0, len(rows) - size + 1, size):
            yield shuffled[start : start + size]


def train(
    model: SentenceTransformer,
    tokens: Tokens,
    rows: NDArray[np.int64],
    held_out: tuple[Tokens, Tokens],
    *,
    steps: int,
    batch_size: int,
    seed: int,
) -> History:
    """Train in place with Adam; `rows` are the sentences to train on.

    Returns:
        Losses by step, and held-out figures before, during and after.
    """
    rng = np.random.default_rng(seed)
    loss_of = MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    history = History(min(batch_size, len(rows)), steps)
    labels = torch.arange(history.batch_size)
    history.held_out.append(evaluate(model, held_out, 0))
    bar = tqdm(
        batches(rows, history.batch_size, rng),
        "training",
        total=steps,
        unit="step",
        disable=None,
        leave=False,
        file=sys.stderr,
    )
    for step, batch in enumerate(bar, start=1):
        started = time.perf_counter()
        views = two_halves(tokens.take(batch), rng)
        loss = loss_of([features(view) for view in views], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.losses.append(loss.item())
        history.seconds += time.perf_counter() - started
        rate = f"{history.sentences_per_second():,.0f} sentences/s"
        bar.set_postfix_str(f"loss {history.losses[-1]:.3f}, {rate}", refresh=False)
        over = step >= steps or history.seconds > SECONDS
        if over or step % max(steps // EVALUATIONS, 1) == 0:
            history.held_out.append(evaluate(model, held_out, step))
        if over:
            break
    bar.close()
    return history


def evaluate(model: SentenceTransformer, halves: tuple[Tokens, Tokens], step: int) -> HeldOut:
    """Loss and accuracy of one large batch."""
    first, second = (embed(model, half) for half in halves)
    nearest = (first @ second.T).argmax(1)
    accuracy = (nearest == torch.arange(len(first))).double().mean().item()
    return HeldOut(step, info_nce(first, second, temperature=TEMPERATURE).item(), accuracy)
