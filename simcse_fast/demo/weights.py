"""What the encoder weights: lengths of word vectors, shares of a sentence, nearest sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simcse_fast.demo.encoder import Tokens, embed, tokenize
from simcse_fast.errors import InputError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from simcse_fast.information import InformationTable

COUNTS = (100, 30, 10, 3, 1)  # the first that leaves ENOUGH words
ENOUGH = 200
FEW = 20


@dataclass(frozen=True)
class Words:
    """Words that occur often enough for a point in the plots, the most frequent first."""

    words: list[str]
    min_count: int
    information_gain: NDArray[np.float64]
    self_information: NDArray[np.float64]
    before: NDArray[np.float64]  # lengths of the word vectors
    after: NDArray[np.float64]

    def r_squared(self, moment: str, information: str) -> float:
        """Share of the variance of the lengths that a straight line on the information explains."""
        pair = np.corrcoef(getattr(self, moment), getattr(self, information))
        return float(pair[0, 1] ** 2)


@dataclass(frozen=True)
class Share:
    """A piece of a sentence and its part in the embedding; None for what is no known word."""

    text: str
    share: float | None


def frequent_words(
    table: InformationTable,
    before: torch.Tensor,  # (V + 1, D)
    after: torch.Tensor,  # (V + 1, D)
) -> Words:
    """Join the table and the vectors: row i of the table, where it has one, is vector i + 1."""
    table = table.head(len(after) - 1)
    gain, count = table.column("information_gain"), table.column("count")
    usable = np.isfinite(gain)
    min_count = next((c for c in COUNTS if (usable & (count >= c)).sum() >= ENOUGH), COUNTS[-1])
    kept = usable & (count >= min_count)
    if kept.sum() < FEW:
        raise InputError(
            f"the text has {kept.sum()} different words in company; expected at least {FEW}"
        )
    return Words(
        table.column("word")[kept].tolist(),
        min_count,
        gain[kept],
        table.column("self_information")[kept],
        before.norm(dim=1).double().numpy()[1:][kept],
        after.norm(dim=1).double().numpy()[1:][kept],
    )


def shares(model: SentenceTransformer, sentence: str) -> list[Share]:
    """The sentence in pieces; the words' shares of the embedding add up to one.

    The embedding e is the mean of the words' vectors v; a word's share is v . e / sum of v . e,
    its part in the length of e, and in the cosine of e with itself.
    """
    code = model.tokenizer.encode(sentence, add_special_tokens=False)
    vectors = model[0].embedding.weight.detach()[code.ids]
    along = (vectors @ vectors.mean(0)).double()
    parts = (along / along.sum()).tolist()
    pieces, end = [], 0
    for (start, stop), number, part in zip(code.offsets, code.ids, parts, strict=True):
        pieces.append(Share(sentence[end:start], None))
        pieces.append(Share(sentence[start:stop], part if number else None))
        end = stop
    return [piece for piece in (*pieces, Share(sentence[end:], None)) if piece.text]


def nearest(
    model: SentenceTransformer,
    tokens: Tokens,
    sentences: list[str],
    queries: list[str],
    top: int = 3,
) -> list[list[tuple[float, str]]]:
    """For each query the cosines and texts of the sentences nearest to it, itself aside."""
    cosines = embed(model, tokenize(model, queries)) @ embed(model, tokens).T
    best = cosines.topk(min(top + 1, len(sentences)), dim=1)
    found = []
    for query, values, rows in zip(queries, best.values, best.indices, strict=True):
        pairs = zip(values.tolist(), (sentences[row] for row in rows), strict=True)
        found.append([(cosine, text) for cosine, text in pairs if text != query][:top])
    return found
