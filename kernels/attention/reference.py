"""Softmax attention written out. The oracle of the tests."""

import torch
from torch import Tensor


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Values averaged under softmax(scale * query key^T + mask).

    query, key, value (B, H, S, D), mask (B or 1, 1, S, S): bool, true where a query sees a key, or
    added to the logits -> (B, H, S, D), in the dtype of the inputs.
    """
    logits = scale * query @ key.transpose(-1, -2)  # (B, H, S, S)
    if mask is not None and mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        logits = logits + mask
    return logits.softmax(-1) @ value
