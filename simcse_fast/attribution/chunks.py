"""Rows of tokens cut into chunks that fit the memory and, on a CPU, the caches."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from simcse_fast.memory import free_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from simcse_fast.attribution.encoder import Encoder

TOKENS = {"cpu": 1024}  # a chunk that stays in the caches
TOKENS_ELSEWHERE = 32768
APART = 1 / 16  # of a chunk's tokens: what one more chunk costs
SHARE = 0.5  # of the free memory
ACTIVATIONS = 24  # a token and layer keeps so many times the width of the model for its gradient


@dataclass
class Budget:
    """Padded tokens that a chunk may hold; halved when the memory does not suffice."""

    tokens: int
    said: bool = False

    def halve(self, tokens: int) -> None:
        """Go on with half of what did not fit, and say so the first time."""
        if not self.said:
            warnings.warn(
                f"a chunk of {tokens:,} tokens did not fit the memory; going on with half of it, "
                "and less where that is too much.",
                stacklevel=2,
            )
        self.tokens, self.said = max(1, tokens // 2), True


def budget_for(encoder: Encoder, batch_tokens: int | None) -> Budget:
    """As the caller wants it, or from the free memory.

    Raises:
        TypeError: batch_tokens is no number.
        ValueError: batch_tokens < 1.
    """
    if batch_tokens is not None:
        if isinstance(batch_tokens, bool) or not isinstance(batch_tokens, int):
            raise TypeError(f"batch_tokens: expected a number, got {type(batch_tokens).__name__}.")
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens: expected at least 1, got {batch_tokens}.")
        return Budget(batch_tokens)
    config = encoder.transformer.config
    layers = getattr(config, "num_hidden_layers", 12)
    a_token = ACTIVATIONS * encoder.width * layers * encoder.dtype.itemsize
    most = TOKENS.get(encoder.device.type, TOKENS_ELSEWHERE)
    free = free_memory(encoder.device)
    return Budget(max(1, min(most, int(SHARE * free / a_token))) if free else most)


def in_chunks(
    lengths: Sequence[int] | NDArray[np.int64],  # (R,) tokens of each row
    budget: Budget,
    work: Callable[[NDArray[np.int64]], None],  # on numbers of rows
) -> None:
    """Work through all rows, longest first, so that rows of like length share a chunk."""
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    begin = 0
    while begin < len(order):
        longest = max(int(lengths[order[begin]]), 1)
        rows = order[begin : begin + max(1, budget.tokens // longest)]
        # Where a chunk ends earlier, those behind need not be padded to its longest.
        spared = (longest - lengths[rows]) * np.arange(len(rows), 0, -1)
        if spared.max() > APART * budget.tokens:
            rows = rows[: int(spared.argmax())]
        try:
            work(rows)
        except (RuntimeError, MemoryError) as error:
            if len(rows) == 1 or not out_of_memory(error):
                raise
            budget.halve(len(rows) * longest)
            continue
        begin += len(rows)


def out_of_memory(error: Exception) -> bool:
    """Whether that is what an error says."""
    told = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return told or "can't allocate memory" in str(error)


@contextmanager
def bar(doing: str, total: int, *, shown: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar over sentences: on a terminal, from the second second on."""
    with tqdm(
        total=total,
        desc=doing,
        unit=" sentences",
        disable=None if shown else True,
        delay=2,
        leave=False,
        file=sys.stderr,
    ) as line:
        yield line.update
