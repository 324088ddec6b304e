"""Batches of row numbers in a reproducible order, and the tensors that a model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from simcse_fast.training.masking import TARGETS
from simcse_fast.training.tokens import mixed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from simcse_fast.training.augmentation import Shortener
    from simcse_fast.training.masking import Hider
    from simcse_fast.training.tokens import TokenData


class Batch(NamedTuple):
    """One batch of all processes together."""

    rows: NDArray[np.int64]
    key: int  # of the random choices made for this epoch


class Order(Sampler[Batch]):
    """The rows in an order drawn from (seed, epoch), whatever the number of processes.

    A last batch that would be short is left out, unless it is the only one.
    """

    def __init__(self, rows: NDArray[np.int64], batch_size: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.batch_size = min(batch_size, len(rows))
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.rows) // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer as an epoch begins."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.rows)
        key = int(rng.integers(1 << 63))
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield Batch(order[start : start + self.batch_size], key)


class Rows(Dataset[Any]):
    """What a loader asks for rows; it gets the batch itself, since the collator reads the ids."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> int:
        return int(self.rows[row])

    def __getitems__(self, batch: Batch) -> Batch:
        return batch


class Loader(DataLoader[Any]):
    """A DataLoader that tells its sampler the epoch; drawing from it leaves torch's seed alone."""

    def __init__(self, order: Order, collate: Collator) -> None:
        generator = torch.Generator()
        super().__init__(
            Rows(order.rows),
            # Its batches go to __getitems__ as they are, though they are no lists.
            batch_sampler=order,  # type: ignore[arg-type]
            collate_fn=collate,  # type: ignore[arg-type]
            generator=generator,
        )

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer as an epoch begins."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class Collator:
    """Tensors of this process's share of a batch, by numpy from the mapped ids.

    Args:
        data: the token ids.
        static: flat ids with offsets, as StaticEmbedding takes them; else padded ids and masks.
        twins: one column of text becomes two: halves of its words for a static model, the same
            ids twice for any other, whose dropout tells them apart.
        padding: the id that fills rows up, and the side it goes to.
        mask_duplicates: pass the numbers of the sentences, if any key repeats another.
        share: this process and how many there are.
        hider: of tokens for a masked language model, if there is one.
        shorten: makes the second view of a text; None: its twin.
        one_mask: one view stands for both, which dropout would not tell apart.
    """

    def __init__(
        self,
        data: TokenData,
        *,
        static: bool,
        twins: bool,
        padding: tuple[int, str] = (0, "right"),
        mask_duplicates: bool = True,
        share: tuple[int, int] = (0, 1),
        hider: Hider | None = None,
        shorten: Shortener | None = None,
        one_mask: bool = False,
    ) -> None:
        self.data, self.static, self.twins = data, static, twins
        self.pad, self.side = padding
        self.keys = data.columns if len(data.columns) == 1 else data.columns[1:]
        self.mask = mask_duplicates and self.repeats(data.rows) > 0
        self.share, self.hider, self.shorten = share, hider, shorten
        self.copies = 2 if twins and not static and not one_mask and shorten is None else 1

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Tensors and figures of one batch.

        Returns:
            "columns", a dict of tensors for each; "rows", numbers of the rows in the source;
            "masked", the same of sentences with hidden tokens, and "guessed", how many tokens of
            all processes are to be guessed, where there is a hider;
            "query_ids" and "key_ids" where duplicates are masked; "real" tokens of all processes;
            "repeats", the keys that repeat another one of the batch.
        """
        rank, world = self.share
        size = len(batch.rows)
        own = slice(rank * size // world, (rank + 1) * size // world)
        rows = batch.rows[own]
        taken = [column.take(rows) for column in self.data.columns]
        if self.twins and self.static:
            taken = halves(*taken[0], rows, batch.key)
        real = self.tokens(batch.rows)
        if self.shorten is not None:
            ids, lengths = self.data.columns[0].take(batch.rows)
            ids, lengths = self.shorten(ids, lengths, batch.rows, batch.key)
            real += len(ids)
            taken.append((ids[inside(lengths, own)], lengths[own]))
        views = [self.flat(*one) if self.static else self.padded(*one) for one in taken]
        views *= self.copies
        content: dict[str, Any] = {"columns": views, "rows": torch.from_numpy(rows), "real": real}
        if self.hider is not None:
            content |= self.masked(batch, own, self.hider)
        content["repeats"] = 0
        if self.mask:
            content |= self.numbers(rows)
            content["repeats"] = self.repeats(batch.rows)
        return content

    def repeats(self, rows: NDArray[np.int64]) -> int:
        """Keys of these rows, positives and negatives, whose text another one has."""
        texts = np.concatenate([column.identity[rows] for column in self.keys])
        return len(texts) - len(np.unique(texts))

    def tokens(self, rows: NDArray[np.int64]) -> int:
        """Tokens of all views of these rows, shortened ones aside."""
        count = sum(int((c.offsets[rows + 1] - c.offsets[rows]).sum()) for c in self.data.columns)
        return count * (self.copies if self.hider is None else self.copies + 1)

    def masked(self, batch: Batch, own: slice, hider: Hider) -> dict[str, Any]:
        """This process's sentences with hidden tokens.

        Tokens of the whole batch are hidden, so that they and their number are the same for any
        number of processes.
        """
        rng = np.random.default_rng((batch.key, int(batch.rows[0])))
        views, guessed = [], 0
        for column in self.data.columns:
            ids, lengths = column.take(batch.rows)
            shown, targets = hider(ids, rng)
            guessed += int(np.count_nonzero(targets))
            flat = inside(lengths, own)
            views.append(self.padded(shown[flat], lengths[own], targets[flat]))
        return {"masked": views, "guessed": guessed}

    def numbers(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Which keys are the positive's own text: those are no negatives."""
        identities = [torch.from_numpy(np.asarray(column.identity[rows])) for column in self.keys]
        return {"query_ids": identities[0], "key_ids": torch.cat(identities)}

    def flat(self, ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """What StaticEmbedding takes."""
        offsets = np.cumsum(lengths) - lengths
        return {"input_ids": torch.from_numpy(ids), "offsets": torch.from_numpy(offsets)}

    def padded(
        self,
        ids: NDArray[np.int64],
        lengths: NDArray[np.int64],
        targets: NDArray[np.int64] | None = None,
    ) -> dict[str, torch.Tensor]:
        """What a transformer takes; and, beside the ids, what is to be guessed."""
        width = int(lengths.max())
        place = np.arange(width)
        if self.side == "left":
            real = place >= (width - lengths)[:, None]
        else:
            real = place < lengths[:, None]
        matrices = {"input_ids": np.full(real.shape, self.pad, np.int64)}
        matrices["input_ids"][real] = ids
        if targets is not None:
            matrices[TARGETS] = np.zeros(real.shape, np.int64)
            matrices[TARGETS][real] = targets
        matrices["attention_mask"] = real.astype(np.int64)
        return {name: torch.from_numpy(matrix) for name, matrix in matrices.items()}


def inside(lengths: NDArray[np.int64], own: slice) -> slice:
    """Where the tokens of some texts are, among those of all."""
    ends = np.cumsum(lengths)[own]
    return slice(int(ends[0] - lengths[own][0]), int(ends[-1]))


def halves(
    ids: NDArray[np.int64], lengths: NDArray[np.int64], rows: NDArray[np.int64], key: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Deal the words of each text in random order to two views, in turn.

    The order of a text depends on its row and the key alone, not on the batch around it. Text,
    random number and id share one integer, so that a plain sort of integers, which numpy does with
    vector instructions, shuffles all texts at once.
    """
    text = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    start = np.cumsum(lengths) - lengths
    place = np.arange(len(ids)) - np.repeat(start, lengths)
    seed = mixed(rows.astype(np.uint64) + np.uint64(key))
    random = mixed(np.repeat(seed, lengths) + place.astype(np.uint64))
    text_bits = max(len(lengths) - 1, 1).bit_length()
    id_bits = max(int(ids.max(initial=1)), 1).bit_length()
    sortable = text << np.uint64(64 - text_bits)
    sortable |= (random >> np.uint64(text_bits + id_bits)) << np.uint64(id_bits)
    sortable |= ids.astype(np.uint64)
    sortable.sort()
    dealt = (sortable & np.uint64((1 << id_bits) - 1)).astype(np.int64)
    first = place % 2 == 0
    return [(dealt[first], (lengths + 1) // 2), (dealt[~first], lengths // 2)]
