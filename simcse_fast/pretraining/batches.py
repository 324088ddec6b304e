"""Batches of sentences of similar length, by a budget of tokens, with tokens to guess."""

from __future__ import annotations

from itertools import count, islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from simcse_fast.training.batches import Batch, Collator, Order

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from simcse_fast.training.masking import Hider
    from simcse_fast.training.tokens import TokenData

POOL = 64  # batches whose sentences are sorted by length together


class ByLength(Order):
    """The rows in an order drawn from (seed, epoch), sentences of similar length together.

    Args:
        rows: to train on.
        lengths: of each of them, in tokens.
        batch_tokens: a batch has at most so many, padding included.
        seed: of the order.
    """

    def __init__(
        self, rows: NDArray[np.int64], lengths: NDArray[np.int64], batch_tokens: int, seed: int
    ) -> None:
        super().__init__(rows, len(rows), seed)
        self.lengths, self.batch_tokens = lengths, batch_tokens
        self.steps = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        """All steps as one epoch, because epochs differ in their number of batches."""
        return islice((batch for epoch in count() for batch in self.drawn(epoch)), self.steps)

    def drawn(self, epoch: int) -> list[Batch]:
        """The batches of one pass; a last one that would be short is left out."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.rows))
        key = int(rng.integers(1 << 63))
        size = max(POOL * self.batch_tokens // int(np.ceil(self.lengths.mean())), 1)
        batches: list[NDArray[np.int64]] = []
        rest = order[:0]
        for start in range(0, len(order), size):
            pool = np.concatenate([rest, order[start : start + size]])
            *full, rest = self.cut(pool[np.argsort(self.lengths[pool], kind="stable")])
            batches += [full[place] for place in rng.permutation(len(full))]
        return [Batch(self.rows[places], key) for places in batches or [rest]]

    def cut(self, places: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Sorted by length: as many at a time as the budget holds, the last ones maybe fewer."""
        lengths = self.lengths[places]
        cuts = [0]
        while cuts[-1] < len(places):
            start = cuts[-1]
            window = lengths[start : start + self.batch_tokens // int(lengths[start])]
            tokens = np.arange(1, len(window) + 1) * window
            cuts.append(start + int(np.searchsorted(tokens, self.batch_tokens, "right")))
        return [places[low:high] for low, high in pairwise(cuts)]


class Guesses:
    """Tensors of a batch with hidden tokens.

    Which tokens are hidden depends on the epoch and the batch's rows alone.
    """

    def __init__(self, data: TokenData, hider: Hider, padding: tuple[int, str]) -> None:
        self.column, self.hider = data.columns[0], hider
        self.pad = Collator(
            data, static=False, twins=False, padding=padding, mask_duplicates=False
        ).padded

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Ids and mask (sentences, longest); of the tokens to guess, place in both and id."""
        ids, lengths = self.column.take(batch.rows)
        shown, targets = self.hider(ids, np.random.default_rng((batch.key, int(batch.rows[0]))))
        tensors = self.pad(shown, lengths, targets)
        flat = tensors.pop("targets").flatten()
        place = torch.nonzero(flat).flatten()
        return tensors | {"place": place, "guessed": flat[place] - 1, "real": len(ids)}
