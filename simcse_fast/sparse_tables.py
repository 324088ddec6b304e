"""Gradients of embedding tables, added where a mini-batch's tokens are instead of everywhere.

The dense gradient of a table has a row for every word of the vocabulary. Made, filled and added
anew for every mini-batch, it costs a tenth of a MiniLM step of 1,024 tokens on a CPU, and more
than a third with a multilingual vocabulary.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SPARSEST = 4  # rows of a table for each token of a mini-batch, from which on it pays


def tables_of(module: object, tokens: int, device: torch.device) -> list[nn.Embedding]:
    """The tables of a module whose gradients may be sparse for mini-batches of so many tokens.

    On a CPU alone; and only where nothing but the sum of the gradients is ever looked at.
    """
    if device.type != "cpu" or not isinstance(module, nn.Module) or _is_wrapped(module):
        return []
    return [
        table
        for table in module.modules()
        if type(table) is nn.Embedding
        and table.num_embeddings >= SPARSEST * tokens
        and not (table.sparse or table.max_norm or table.scale_grad_by_freq)
        and _is_plain(table.weight)
    ]


def _is_wrapped(module: nn.Module) -> bool:
    """Whether a compiler or several processes have a say in what the gradients are."""
    return hasattr(module, "_orig_mod") or any(
        isinstance(part, nn.parallel.DistributedDataParallel) or "FSDP" in type(part).__name__
        for part in module.modules()
    )


def _is_plain(weight: torch.Tensor) -> bool:
    watched = weight._backward_hooks or weight._post_accumulate_grad_hooks  # noqa: SLF001
    return type(weight) is nn.Parameter and weight.requires_grad and not watched


@contextmanager
def sparse(tables: Sequence[nn.Embedding]) -> Iterator[None]:
    """Graphs made inside give these tables sparse gradients."""
    for table in tables:
        table.sparse = True
    try:
        yield
    finally:
        for table in tables:
            table.sparse = False


def make_dense(tables: Sequence[nn.Embedding]) -> None:
    """After a backward pass; a dense gradient stays dense, whatever is added to it."""
    for table in tables:
        gradient = table.weight.grad
        if gradient is not None and gradient.is_sparse:
            table.weight.grad = gradient.to_dense()
