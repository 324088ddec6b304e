"""What moves between the processes of one loss: rows and their gradients, sums of single values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from simcse_fast.autograd import differentiable_once
from simcse_fast.distributed import all_gather, named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simcse_fast.distributed import Ranks, Shares


def gather(shares: Shares, tensors: Sequence[Tensor], *, wide: bool = False) -> list[Tensor]:
    """The rows of all ranks, in the order of the ranks, by one collective in the tensors' type.

    The gradient of a rank's rows is the sum of those of all ranks' losses: one more collective,
    in fp32 at least, which every rank runs if some rank wants a gradient.

    Args:
        shares: what the ranks agreed on.
        tensors: (own columns, D) each, of one type.
        wide: return fp32 for 16-bit rows, so that their gradients are rounded once.

    Returns:
        (columns of all ranks, D) for each tensor.

    Raises:
        RuntimeError: a rank was lost or late.
    """
    grad = torch.is_grad_enabled() and shares.wanted != 0
    # A rank whose rows want no gradient takes part in the backward pass for the others' sake.
    hook = torch.zeros((), requires_grad=True) if grad else None
    tensors = [differentiable_once(x) if x.requires_grad and grad else x for x in tensors]
    gathered: tuple[Tensor, ...] = _Gather.apply(shares, wide, hook, *tensors)  # type: ignore[no-untyped-call]
    return list(gathered)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, shares: Shares, wide: bool, _hook: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.shares, ctx.dtype = shares, tensors[0].dtype
        everything = _all_rows(shares, tensors)
        if wide:
            to = torch.promote_types(ctx.dtype, torch.float32)
            everything = [x.to(to) for x in everything]
        unwanted = [x for t, x in enumerate(everything) if not shares.wanted >> t & 1]
        ctx.mark_non_differentiable(*unwanted)
        return tuple(everything)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        wanted = [t for t in range(len(upstream)) if ctx.shares.wanted >> t & 1]
        sums = _sums_of_owners(ctx.shares, [upstream[t] for t in wanted])
        gradients: list[Tensor | None] = [None] * len(upstream)
        for t, x in zip(wanted, sums, strict=True):
            gradients[t] = x.to(ctx.dtype) if ctx.needs_input_grad[3 + t] else None
        return None, None, None, *gradients


def gather_constant(shares: Shares, tensors: Sequence[Tensor]) -> list[Tensor]:
    """(own columns,) each, of one type -> (columns of all ranks,) each, without gradient."""
    return [x[:, 0] for x in _all_rows(shares, [x.detach()[:, None] for x in tensors])]


def _all_rows(shares: Shares, tensors: Sequence[Tensor]) -> list[Tensor]:
    counts, most, width = shares.columns, max(shares.columns), tensors[0].shape[1]
    if len(tensors) == 1 and len(tensors[0]) == most:
        mine = tensors[0].contiguous()
    else:  # collectives move blocks of one size: shorter ones are padded
        mine = tensors[0].new_zeros(len(tensors), most, width)
        for place, x in zip(mine, tensors, strict=True):
            place[: len(x)] = x
    everything = mine.new_empty(len(counts) * len(tensors) * most, width)
    with named(shares.ranks, "gathering the keys"):
        all_gather(everything, mine.view(-1, width), shares.ranks.group)
    if len(tensors) == 1 and min(counts) == most:
        return [everything]
    blocks = everything.view(len(counts), len(tensors), most, width)
    return [
        torch.cat([blocks[rank, t, :count] for rank, count in enumerate(counts)])
        for t in range(len(tensors))
    ]


def _sums_of_owners(shares: Shares, gradients: Sequence[Tensor]) -> list[Tensor]:
    """(columns of all ranks, D) on every rank -> the sums of all ranks, own rows only."""
    counts, most, width = shares.columns, max(shares.columns), gradients[0].shape[1]
    wide = torch.promote_types(gradients[0].dtype, torch.float32)
    if len(gradients) == 1 and min(counts) == most:
        everything = gradients[0].to(wide).contiguous()
    else:
        blocks = gradients[0].new_zeros(len(counts), len(gradients), most, width, dtype=wide)
        for t, gradient in enumerate(gradients):
            for rank, piece in enumerate(torch.split(gradient, counts)):
                blocks[rank, t, : len(piece)] = piece
        everything = blocks.view(-1, width)
    mine = everything.new_empty(len(gradients), most, width)
    with named(shares.ranks, "returning the gradients of the keys"):
        _reduce_scatter(mine.view(-1, width), everything, shares.ranks.group)
    return list(mine[:, : counts[shares.ranks.rank]])


def _reduce_scatter(out: Tensor, everything: Tensor, group: Any) -> None:
    run: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    run(out, everything, group=group)


def sum_of_ranks(ranks: Ranks, x: Tensor, *, share: float) -> Tensor:
    """A 0-d tensor -> its sum over the ranks; backward, `share` of the ranks' upstream gradients.

    With share 1 every rank's own loss is the sum, and the gradients of all of them add up, as
    through `torch.distributed.nn.all_reduce`; with 1 / ranks their mean flows back.
    """
    total: Tensor = _Sum.apply(ranks, share, x)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, share: float, x: Tensor) -> Tensor:
        ctx.ranks, ctx.share = ranks, share
        return _reduced(ranks, x, "adding up the loss")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return None, None, _reduced(ctx.ranks, upstream, "adding up the loss") * ctx.share


def shared_parameter(ranks: Ranks, x: Tensor, *, share: float) -> Tensor:
    """The same 0-d tensor; backward, `share` of the sum of the gradients on all ranks."""
    same: Tensor = _Shared.apply(ranks, share, x)  # type: ignore[no-untyped-call]
    return same


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, share: float, x: Tensor) -> Tensor:
        ctx.ranks, ctx.share = ranks, share
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return None, None, _reduced(ctx.ranks, upstream, "adding up gradients") * ctx.share


def _reduced(ranks: Ranks, x: Tensor, what: str) -> Tensor:
    total = x.detach().double()
    total = total.clone() if total is x else total
    with named(ranks, what):
        dist.all_reduce(total, group=ranks.group)
    return total.to(x.dtype)


class _Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shape: tuple[int, ...], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return tensors[0].new_zeros(shape, dtype=torch.promote_types(tensors[0].dtype, torch.float))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # noqa: ARG004
        return None, *map(torch.zeros_like, ctx.saved_tensors)


def nothing(shape: tuple[int, ...], *tensors: Tensor | None) -> Tensor:
    """The loss of a rank without rows: 0, through which gradients of 0 reach every tensor."""
    zero: Tensor = _Nothing.apply(shape, *(x for x in tensors if x is not None))  # type: ignore[no-untyped-call]
    return zero
