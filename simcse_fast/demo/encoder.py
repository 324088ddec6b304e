"""A static encoder: a tokenizer of whole words, and the mean of one vector per word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

try:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
except ModuleNotFoundError:  # sentence-transformers < 5.4
    from sentence_transformers.models import StaticEmbedding

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNKNOWN = "[UNK]"
INITIAL_DEVIATION = 0.01  # small, so that what is learned soon outweighs where it started


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


def word_tokenizer(words: list[str]) -> Tokenizer:
    """The tokenizer "words" of `information_gain` with a fixed vocabulary; `words[i]` is i + 1."""
    numbers = {UNKNOWN: 0, **{word: i for i, word in enumerate(words, start=1)}}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}\p{M}]+"), "removed")
    return tokenizer


def static_encoder(words: list[str], width: int, seed: int) -> SentenceTransformer:
    """A normal SentenceTransformer with random word vectors; an unknown word counts for nothing."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(words) + 1, width, generator=generator) * INITIAL_DEVIATION
    vectors[0] = 0
    module = StaticEmbedding(word_tokenizer(words), embedding_weights=vectors)
    return SentenceTransformer(modules=[module], device="cpu")


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
