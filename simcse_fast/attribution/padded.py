"""Some sentences side by side: their word embeddings, padded to the longest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from simcse_fast.attribution.encoder import Encoder
    from simcse_fast.attribution.tokens import Sentence


@dataclass(frozen=True)
class Padded:
    """N sentences of at most S tokens."""

    words: Tensor  # (N, S, H) word embeddings
    mask: Tensor  # (N, S) int64, 1 at tokens


def pad(encoder: Encoder, sentences: Sequence[Sentence]) -> Padded:
    """The word embeddings of sentences on the encoder's device."""
    width = max(map(len, sentences))
    ids = torch.zeros(len(sentences), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sentence in enumerate(sentences):
        ids[row, : len(sentence)] = torch.from_numpy(sentence.ids)
        mask[row, : len(sentence)] = 1
    return Padded(encoder.words(ids), mask.to(encoder.device))


def pad_flags(flags: Sequence[NDArray[np.bool_]], width: int, device: torch.device) -> Tensor:
    """One flag a token, (N, width) bool, False at padding."""
    padded = np.zeros((len(flags), width), bool)
    for row, own in enumerate(flags):
        padded[row, : len(own)] = own
    return torch.from_numpy(padded).to(device)
