"""InfoNCE as textbooks have it: the matrix of all cosines, and torch's own cross-entropy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def textbook(
    query: Tensor,  # (M, D)
    key: Tensor,  # (N, D)
    *,
    temperature: float,
    symmetric: bool = False,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    process_group: Any = None,  # noqa: ARG001 - `info_nce` takes one; training refuses several processes
) -> Tensor:
    """The same value as `info_nce`, to compare with; it needs M x N memory."""
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / temperature  # (M, N)
    labels = torch.arange(len(query), device=query.device)
    if query_ids is not None and key_ids is not None:
        same = query_ids[:, None] == key_ids
        same[labels, labels] = False
        logits = logits.masked_fill(same, -torch.inf)
    loss = F.cross_entropy(logits, labels)
    return (loss + F.cross_entropy(logits.T, labels)) / 2 if symmetric else loss
