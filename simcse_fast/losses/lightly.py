"""The normalized-temperature cross-entropy of lightly and SimCLR, fused, with its memory bank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simcse_fast import collectives, distributed
from simcse_fast.backend import choose
from simcse_fast.losses.across_ranks import rows_against
from simcse_fast.losses.info_nce import info_nce

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simcse_fast.distributed import Shares

SMALLEST_TEMPERATURE = 1e-8


class NTXentLoss(nn.Module):
    """lightly's `NTXentLoss`, without its matrices of logits.

    Without a memory bank each of the 2 n views is told from the 2 n - 2 views of other images; with
    one, each row of the first views is told from the entries of the bank.

    loss_i = -log( exp(cos(z_i, z_p(i)) / temperature) / sum_j exp(cos(z_i, z_j) / temperature) )

    Args:
        temperature: divides the similarities; may be negative, as in lightly.
        memory_bank_size: (entries, width) of the bank; 0 for none.
        gather_distributed: the views of all processes are negatives, and fill the bank; the
            processes may bring batches of different sizes.

    Raises:
        ValueError: abs(temperature) < 1e-8; a size that is negative, or an entry count alone; or
            gather_distributed with a torch that has no torch.distributed.

    Reference: Chen et al. 2020, arXiv 2002.05709; He et al. 2020, arXiv 1911.05722 (bank).

    Example:
        >>> loss = NTXentLoss(temperature=1.0)
        >>> round(loss(torch.eye(4), torch.eye(4)).item(), 4)  # log(1 + 6 / e)
        1.1654
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        if abs(temperature) < SMALLEST_TEMPERATURE:
            raise ValueError(f"temperature: expected |temperature| >= 1e-8, got {temperature}.")
        if gather_distributed and not torch.distributed.is_available():
            raise ValueError("gather_distributed: this torch was built without torch.distributed.")
        self.memory_bank = _MemoryBank(memory_bank_size, gather_distributed)
        self.temperature = temperature
        self.gather_distributed = gather_distributed

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The loss of one batch; fills the bank where out0 will get a gradient.

        Args:
            out0: (n, D) embeddings of the first views.
            out1: (n, D) embeddings of the second views, row i of the same image as row i of out0.

        Returns:
            0-d tensor, fp32 (fp64 for fp64 input).

        Raises:
            ValueError: the two differ in shape, or are not matrices; or the processes do not fit
                together.
            RuntimeError: another process was lost or late.
        """
        if self._gathers():
            return self._of_all_processes(out0, out1)
        _check_views(out0, out1)
        if self.memory_bank.size[0]:
            return self._against_bank(out0, out1)
        return self._in_batch(out0, out1)

    def _gathers(self) -> bool:
        return self.gather_distributed and distributed.world_size() > 1

    def _in_batch(self, out0: Tensor, out1: Tensor) -> Tensor:
        images = len(out0)
        own = torch.arange(images, device=out0.device)
        both = torch.cat([out0, out1])
        ids = own.repeat(2)
        labels = torch.cat([own + images, own])
        return self._info_nce(both, both, labels=labels, query_ids=ids, key_ids=ids)

    @distributed.outside_graphs
    def _of_all_processes(self, out0: Tensor, out1: Tensor) -> Tensor:
        ranks = distributed.ranks_of("world")
        with distributed.announced(ranks):
            _check_views(out0, out1)
            distributed.check_device(ranks, "out0", out0)
        if self.memory_bank.size[0]:
            return self._against_bank(out0, out1)
        views = [out0, out1]
        shares = _share(views, bank=False)
        keys = collectives.gather(shares, views, wide=choose("auto", out0.device) != "triton")
        images = sum(shares.columns)
        own = torch.arange(shares.before, shares.before + len(out0), device=out0.device)
        wide = torch.promote_types(out0.dtype, torch.float32)
        return rows_against(
            torch.cat(views) if self.temperature > 0 else -torch.cat(views),
            torch.cat(keys),
            temperature=abs(self.temperature),
            labels=torch.cat([own + images, own]),
            query_ids=own.repeat(2),
            key_ids=torch.arange(images, device=out0.device).repeat(2),
            weight=out0.new_full((2 * len(out0),), shares.mean_factor / 2, dtype=wide),
            reduction="sum",
        )

    def _against_bank(self, out0: Tensor, out1: Tensor) -> Tensor:
        out0, out1 = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
        rows, entries = len(out0), self.memory_bank.size[0]
        # The bank stands first: its many small terms are summed before the positive's large one.
        key = torch.cat([self.memory_bank.bank.to(out1), out1])
        if out0.requires_grad:
            self.memory_bank.enqueue(out1.detach())
        # One id for all rows and their positives: they see no positive but their own.
        ids = torch.zeros(entries + rows, dtype=torch.int64, device=out0.device)
        ids[entries:] = 1
        labels = torch.arange(entries, entries + rows, device=out0.device)
        options = {"labels": labels, "query_ids": ids[entries:], "key_ids": ids}
        return self._info_nce(out0, key, normalize=False, **options)

    def _info_nce(self, query: Tensor, key: Tensor, **options: Any) -> Tensor:
        query = query if self.temperature > 0 else -query
        return info_nce(query, key, temperature=abs(self.temperature), **options)


class _MemoryBank(nn.Module):
    """Past embeddings, as a ring; the buffers are named, drawn and filled as in lightly."""

    bank: Tensor  # (entries, width)
    bank_ptr: Tensor  # (1,) int64: the next entry to overwrite

    def __init__(self, size: int | Sequence[int], gather_distributed: bool) -> None:
        super().__init__()
        self.size = (size,) if isinstance(size, int) else tuple(size)
        if self.size != (0,) and (len(self.size) != 2 or min(self.size) < 0):  # noqa: PLR2004
            raise ValueError(f"memory_bank_size: expected (entries, width) or 0, got {size}.")
        self.gather_distributed = gather_distributed
        bank = torch.randn(self.size) if len(self.size) > 1 else torch.empty(0)
        self.register_buffer("bank", F.normalize(bank, dim=-1), persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def enqueue(self, batch: Tensor) -> None:
        """Overwrite the oldest entries; a batch that reaches the end is cut there."""
        if self.gather_distributed and distributed.world_size() > 1:
            (batch,) = collectives.gather(_share([batch], bank=True), [batch])
        first = int(self.bank_ptr)
        end = min(first + len(batch), self.size[0])
        self.bank[first:end] = batch[: end - first]
        self.bank_ptr[0] = end % self.size[0]


def _check_views(out0: Tensor, out1: Tensor) -> None:
    if out0.ndim != 2 or out0.shape != out1.shape:  # noqa: PLR2004
        raise ValueError(
            f"out1: expected the shape of out0, (n, D); got {tuple(out1.shape)} beside "
            f"{tuple(out0.shape)}."
        )


def _share(gathered: list[Tensor], *, bank: bool) -> Shares:
    rows, ranks = len(gathered[0]), distributed.ranks_of("world")
    options = {"memory_bank_size > 0": bank}
    return distributed.agree(ranks, "NTXentLoss", rows, rows, gathered, options, name="out0")
