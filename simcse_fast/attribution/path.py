"""Sentences on their way from the baseline: embeddings at its ends, slopes at nodes between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from simcse_fast.attribution.chunks import in_chunks
from simcse_fast.attribution.padded import Padded, pad, pad_flags
from simcse_fast.backend import path_kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from simcse_fast.attribution.chunks import Budget
    from simcse_fast.attribution.encoder import Encoder
    from simcse_fast.attribution.targets import Target
    from simcse_fast.attribution.tokens import Sentence

SPECIAL = ("fixed", "attributed")


@dataclass(frozen=True)
class Path:
    """The straight way of each sentence's word embeddings from the baseline.

    Attributes:
        encoder: from word embeddings to a sentence embedding.
        sentences: B of them.
        moves: (S,) flags a sentence: tokens that begin at the baseline; the others stay.
        baseline: (H,) word embedding.
        budget: of the chunks.
    """

    encoder: Encoder
    sentences: Sequence[Sentence]
    moves: Sequence[NDArray[np.bool_]]
    baseline: Tensor
    budget: Budget

    @property
    def kernels(self) -> Any:
        """`path_points` and `path_contributions` for the encoder's device."""
        return path_kernels(self.encoder.device, self.encoder.dtype)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Embeddings of the sentences and of their baselines, (B, D) each, before a Normalize.

        Baselines that differ in no token that stays are one, and computed once.
        """
        kinds: dict[bytes, int] = {}
        number = [
            kinds.setdefault(np.where(moves, -1, sentence.ids).tobytes(), len(kinds))
            for sentence, moves in zip(self.sentences, self.moves, strict=True)
        ]
        first = np.unique(number, return_index=True)[1]
        whole = embed(self.encoder, self.sentences, self.budget)
        empty = embed(
            self.encoder,
            [self.sentences[n] for n in first],
            self.budget,
            lambda words, chunk: torch.where(
                self._moves(first[chunk], words.shape[1])[:, :, None], self.baseline, words
            ),
        )
        return whole, empty[torch.tensor(number, device=empty.device)]

    def _moves(self, numbers: NDArray[np.int64], width: int) -> Tensor:
        return pad_flags([self.moves[n] for n in numbers], width, self.encoder.device)

    def _batch(self, chunk: NDArray[np.int64]) -> tuple[Padded, Tensor, Tensor]:
        """The sentences of a chunk's rows, what moves in them, and which of them each row is."""
        numbers, local = np.unique(chunk, return_inverse=True)
        batch = pad(self.encoder, [self.sentences[n] for n in numbers])
        moves = self._moves(numbers, batch.mask.shape[1])
        return batch, moves, torch.from_numpy(local).to(self.encoder.device)

    def contributions(
        self,
        target: Target,
        whole: Tensor,  # (B, D) embeddings of the sentences
        wanted: Sequence[tuple[int, NDArray[np.float64]]],  # numbers of sentences, (K,) places
    ) -> list[NDArray[np.float64]]:
        """What each token adds to the target's slope along the path, (K, S) for each wanted.

        One forward and one backward pass a chunk, over nodes of many sentences.
        """
        found = [np.zeros((len(alpha), len(self.sentences[n]))) for n, alpha in wanted]
        entry = np.repeat(np.arange(len(wanted)), [len(alpha) for _, alpha in wanted])
        node = np.concatenate([np.arange(len(alpha)) for _, alpha in wanted])
        sentence = np.array([n for n, _ in wanted], np.int64)[entry]
        alphas = np.concatenate([alpha for _, alpha in wanted])

        def work(chunk: NDArray[np.int64]) -> None:
            wide = torch.promote_types(self.encoder.dtype, torch.float32)
            places = torch.from_numpy(alphas[chunk]).to(self.encoder.device, wide)
            slopes = self._slopes(target, whole, sentence[chunk], places)
            for row, one in zip(chunk, slopes.cpu().double().numpy(), strict=True):
                into = found[entry[row]]
                into[node[row]] = one[: into.shape[1]]

        in_chunks([len(self.sentences[n]) for n in sentence], self.budget, work)
        return found

    def _slopes(
        self, target: Target, whole: Tensor, sentences: NDArray[np.int64], places: Tensor
    ) -> Tensor:
        """(R, S) contributions of tokens at places of the path."""
        batch, moves, local = self._batch(sentences)
        points = self.kernels.path_points(batch.words, self.baseline, moves, local, places)
        rows = torch.from_numpy(sentences).to(whole.device)
        with torch.enable_grad():
            embeddings = self.encoder(points.requires_grad_(), batch.mask[local])
            gradient = gradient_of(target, points, embeddings, whole, rows)
        found: Tensor = self.kernels.path_contributions(
            gradient, batch.words, self.baseline, moves, local
        )
        return found


def gradient_of(
    target: Target,
    points: Tensor,  # (R, S, H)
    embeddings: Tensor,  # (R, D) of the points
    whole: Tensor,  # (B, D) of the sentences
    rows: Tensor,  # (R,) which sentence each is on the way to
) -> Tensor:
    """Of a target with respect to points, (R, S, H).

    Raises:
        ValueError: it has none.
    """
    values = target.values(widened(embeddings), whole[rows], rows)
    if not values.requires_grad:
        raise ValueError(
            f"target: {target.name} has no gradient; expected a function that torch can "
            "differentiate."
        )
    (gradient,) = torch.autograd.grad(values.sum(), points)
    return gradient


def embed(
    encoder: Encoder,
    sentences: Sequence[Sentence],
    budget: Budget,
    change: Callable[[Tensor, NDArray[np.int64]], Tensor] = lambda words, _: words,
) -> Tensor:
    """Embeddings of sentences before a final Normalize, (B, D) of at least fp32.

    Args:
        encoder: of the sentences.
        sentences: B of them.
        budget: of a chunk.
        change: from the word embeddings of some sentences (R, S, H), and their numbers, to those
            that the encoder is given.
    """
    rows: list[Tensor] = [torch.empty(0)] * len(sentences)

    def work(chunk: NDArray[np.int64]) -> None:
        batch = pad(encoder, [sentences[n] for n in chunk])
        with torch.no_grad():
            words = change(batch.words, chunk)
            embeddings = encoder(words, batch.mask)
        for row, one in zip(chunk, widened(embeddings), strict=True):
            rows[row] = one

    in_chunks([len(sentence) for sentence in sentences], budget, work)
    return torch.stack(rows)


def widened(embeddings: Tensor) -> Tensor:
    """At least fp32."""
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))


def moving(sentence: Sentence, special_tokens: str) -> NDArray[np.bool_]:
    """(S,) whether a token begins at the baseline.

    Raises:
        ValueError: special_tokens is neither "fixed" nor "attributed".
    """
    if special_tokens not in SPECIAL:
        raise ValueError(
            f"special_tokens: expected one of {', '.join(SPECIAL)}, got {special_tokens!r}."
        )
    if special_tokens == "attributed":
        return np.ones(len(sentence), bool)
    return ~sentence.special
