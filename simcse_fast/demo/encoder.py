"""The demo's static encoder at work: sentences as word numbers, and their embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class Tokens:
    """Word numbers of all sentences; sentence s is ids[offsets[s] : offsets[s + 1]]."""

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def lengths(self) -> NDArray[np.int64]:
        """Words in each sentence."""
        return np.diff(self.offsets)

    def take(self, rows: NDArray[np.int64]) -> Tokens:
        """The sentences of these rows, in their order."""
        lengths = self.lengths()[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Tokens(self.ids[np.repeat(self.offsets[rows], lengths) + position], offsets)


def word_vectors(model: SentenceTransformer) -> torch.Tensor:
    """(V + 1, D) word vectors, the unknown word first; a copy."""
    vectors: torch.Tensor = model[0].embedding.weight.detach().clone()
    return vectors


def tokenize(model: SentenceTransformer, sentences: list[str]) -> Tokens:
    """The known words of all sentences."""
    codes = model.tokenizer.encode_batch(sentences, add_special_tokens=False)
    known = [np.array([i for i in code.ids if i], np.int64) for code in codes]
    return Tokens(np.concatenate(known), np.concatenate([[0], np.cumsum([*map(len, known)])]))


def features(tokens: Tokens) -> dict[str, torch.Tensor]:
    """What the encoder's forward pass takes."""
    return {
        "input_ids": torch.from_numpy(tokens.ids),
        "offsets": torch.from_numpy(tokens.offsets[:-1]),
    }


@torch.no_grad()
def embed(model: SentenceTransformer, tokens: Tokens) -> torch.Tensor:
    """(sentences, D) embeddings of length one."""
    output: dict[str, Any] = model(features(tokens))
    return torch.nn.functional.normalize(output["sentence_embedding"], dim=1)
