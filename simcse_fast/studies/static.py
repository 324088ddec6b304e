"""Static encoders: the lengths of word vectors, which the theory ties to information gain.

A contrastive encoder that adds up word vectors u is at its best, by the theory, where |u_w| grows
with KL(w): 2 KL(w) ~ |u_w|^2 (Kurita et al. 2023, arXiv 2310.15921; Oyama et al. 2023,
arXiv 2212.09663). With m the mean and S the covariance of the vectors, each word counted as often
as it occurs, the squared length is taken in three spaces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_fast.errors import InputError
from simcse_fast.studies.points import Coverage, Points

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from simcse_fast.information import InformationTable

    Floats = NDArray[np.float64]

SMALLEST = 1e-6  # of the largest variance; directions below are taken for none


def norm(vectors: Floats, probability: Floats) -> Floats:  # noqa: ARG001 - one signature
    """|u_w|."""
    return np.linalg.norm(vectors, axis=1)  # type: ignore[no-any-return]


def squared(vectors: Floats, probability: Floats) -> Floats:
    """|u_w|^2."""
    return norm(vectors, probability) ** 2


def whitened(vectors: Floats, probability: Floats) -> Floats:
    """(u_w - m)^T S^-1 (u_w - m): no direction counts more than another."""
    centred, variance, axes = _moments(vectors, probability)
    kept = variance > SMALLEST * variance.max(initial=0.0)
    found: Floats = ((centred @ axes[:, kept]) ** 2 / variance[kept]).sum(axis=1)
    return found


def weighted(vectors: Floats, probability: Floats) -> Floats:
    """(u_w - m)^T S (u_w - m): the quadratic approximation of 2 KL, if u are the contexts too."""
    centred, variance, axes = _moments(vectors, probability)
    found: Floats = ((centred @ axes) ** 2 * variance).sum(axis=1)
    return found


def _moments(vectors: Floats, probability: Floats) -> tuple[Floats, Floats, Floats]:
    """Vectors less their mean, and variances and axes of their covariance."""
    share = probability / probability.sum()
    centred = vectors - share @ vectors
    variance, axes = np.linalg.eigh((centred * share[:, None]).T @ centred)
    return centred, np.maximum(variance, 0), axes


# What a study calls the lengths, and how they are computed.
MEASURES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "norm": norm,
    "norm_squared": squared,
    "whitened_squared": whitened,
    "weighted_squared": weighted,
}


def is_static(model: Any) -> bool:
    """Whether a model is a SentenceTransformer that begins with a table of word vectors."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - slow

    return isinstance(model, SentenceTransformer) and hasattr(model[0], "embedding")


def static_points(models: Mapping[str, Any], table: InformationTable) -> dict[str, Points]:
    """Points of each measure: the words of the table that are one token to every model.

    Raises:
        InputError: there is no such word.
    """
    finite = np.isfinite(table.column("information_gain"))
    tokens = {name: tokens_of(model, table) for name, model in models.items()}
    kept = finite & np.all([token >= 0 for token in tokens.values()], axis=0)
    if not kept.any():
        raise InputError(
            "before: no word of the corpus is a word of every encoder; expected encoders with "
            "vectors for the corpus's words"
        )
    row = np.flatnonzero(kept)
    coverage = Coverage(len(finite), int(finite.sum()), len(row))
    probability = table.column("probability")[row]
    vectors = {
        name: models[name][0].embedding.weight.detach()[token[row]].double().cpu().numpy()
        for name, token in tokens.items()
    }
    return {
        measure: Points(
            row, row, {name: of(own, probability) for name, own in vectors.items()}, coverage
        )
        for measure, of in MEASURES.items()
    }


def tokens_of(model: Any, table: InformationTable) -> NDArray[np.int64]:
    """(rows,) the token that each word of the table is; -1 where it is none, several or unknown."""
    tokenizer = model.tokenizer
    encode = getattr(tokenizer, "backend_tokenizer", tokenizer).encode_batch
    unknown = [token for token in (_unknown(tokenizer),) if token is not None]
    codes = encode(table.column("word").tolist(), add_special_tokens=False)
    return np.array(
        [
            code.ids[0] if len(code.ids) == 1 and code.ids[0] not in unknown else -1
            for code in codes
        ],
        np.int64,
    )


def _unknown(tokenizer: Any) -> int | None:
    """The id that stands for unknown words."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    name = getattr(backend.model, "unk_token", None)
    return None if name is None else backend.token_to_id(name)
