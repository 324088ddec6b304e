"""What the weights explain: one number of an embedding, or all its dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from simcse_fast.attribution.path import embed
from simcse_fast.attribution.tokens import tokenize

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from simcse_fast.attribution.chunks import Budget
    from simcse_fast.attribution.encoder import Encoder

    # Embeddings (R, D) before a final Normalize, those of the whole sentences (R, D), likewise, and
    # the numbers of the sentences (R,) -> one number a row (R,), or one row of D.
    Values = Callable[[Tensor, Tensor, Tensor], Tensor]

EXPECTED = (
    '"self", "norm", "vector", a vector (D,) or one a sentence (B, D), another sentence, or a '
    "callable from embeddings (R, D) to numbers (R,)"
)


@dataclass(frozen=True)
class Target:
    """What is explained: `values` of embeddings, under the name that results give it."""

    name: str
    values: Values

    @property
    def is_vector(self) -> bool:
        """Whether every output dimension is explained."""
        return self.values is _itself


def read_target(target: Any, encoder: Encoder, whole: Tensor, budget: Budget) -> Target:
    """The target that the caller means.

    Args:
        target: as `integrated_gradients` takes it.
        encoder: whose embeddings it is about.
        whole: (B, D) embeddings of the sentences that are explained.
        budget: of a chunk, where other sentences are embedded.

    Raises:
        TypeError: it is of no kind that is known.
        ValueError: its shape does not fit, or it holds NaN or infinite values.
    """
    count, width = whole.shape
    known = {"self": _cosine_with_itself, "norm": _length, "vector": _itself}
    if isinstance(target, str) and target in known:
        return Target(target, known[target])
    if isinstance(target, str):
        return Target("similarity", _cosine(embed(encoder, tokenize(encoder, [target]), budget)))
    if isinstance(target, list | tuple) and target and all(isinstance(t, str) for t in target):
        if len(target) != count:
            raise ValueError(
                f"target: {len(target)} sentences for {count}; expected one each, or one for all."
            )
        return Target("similarity", _cosine(embed(encoder, tokenize(encoder, target), budget)))
    if callable(target) and not isinstance(target, Tensor):
        return Target(getattr(target, "__name__", "callable"), _called(encoder, target))
    return Target("product", _product(encoder, _vectors(target, count, width).to(encoder.device)))


def target_values(
    target: Target, embeddings: Tensor, whole: Tensor, sentence: int | None = None
) -> NDArray[np.float64]:
    """The target at embeddings, (R,); (R, D) for "vector".

    Args:
        target: what is explained.
        embeddings: (R, D), one a sentence; or all of one sentence.
        whole: (R, D) embeddings of the whole sentences.
        sentence: the number of the one sentence.

    Raises:
        ValueError: it is NaN or infinite somewhere.
    """
    rows = torch.arange(len(whole), device=whole.device)
    rows = rows if sentence is None else torch.full_like(rows, sentence)
    with torch.no_grad():
        values: NDArray[np.float64] = target.values(embeddings, whole, rows).cpu().double().numpy()
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
    if len(bad):
        raise ValueError(
            f"target: {target.name} is NaN or infinite for sentence {int(rows[bad[0]])}; expected "
            "finite numbers."
        )
    return values


def _itself(embeddings: Tensor, _full: Tensor, _rows: Tensor) -> Tensor:
    return embeddings


def _length(embeddings: Tensor, _full: Tensor, _rows: Tensor) -> Tensor:
    length: Tensor = embeddings.norm(dim=-1)
    return length


def _cosine_with_itself(embeddings: Tensor, full: Tensor, _rows: Tensor) -> Tensor:
    return F.cosine_similarity(embeddings, full, dim=-1)


def _cosine(against: Tensor) -> Values:
    def cosine(embeddings: Tensor, _full: Tensor, rows: Tensor) -> Tensor:
        return F.cosine_similarity(embeddings, _each(against, rows), dim=-1)

    return cosine


def _product(encoder: Encoder, against: Tensor) -> Values:
    def product(embeddings: Tensor, _full: Tensor, rows: Tensor) -> Tensor:
        ends = encoder.finish(embeddings)
        return (ends * _each(against, rows).to(ends.dtype)).sum(-1)

    return product


def _each(vectors: Tensor, rows: Tensor) -> Tensor:
    """The vectors of sentences, (1 or B, D) -> (1 or R, D)."""
    return vectors if len(vectors) == 1 else vectors[rows]


def _called(encoder: Encoder, function: Callable[[Tensor], Tensor]) -> Values:
    def called(embeddings: Tensor, _full: Tensor, _rows: Tensor) -> Tensor:
        values = function(encoder.finish(embeddings))
        if not isinstance(values, Tensor) or values.shape != embeddings.shape[:1]:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"target: the callable got embeddings {tuple(embeddings.shape)} and returned "
                f"{got}; expected one number a row, ({len(embeddings)},)."
            )
        return values

    return called


def _vectors(target: Any, count: int, width: int) -> Tensor:
    try:
        vectors = torch.as_tensor(target).detach().clone()  # those of encode() refuse autograd
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"target: expected {EXPECTED}; got {type(target).__name__}.") from error
    shape = tuple(vectors.shape)
    if shape not in {(width,), (count, width)} or not vectors.is_floating_point():
        raise ValueError(
            f"target: expected {EXPECTED}, here D = {width} and B = {count}; got {vectors.dtype} "
            f"of shape {shape}."
        )
    vectors = vectors.reshape(-1, width)
    bad = (~vectors.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"target: expected finite numbers, got {vectors[row, column].item()} in row {row}, "
            f"column {column}."
        )
    return vectors
