"""Sentences of which some words are left out, as edits of their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from simcse_fast.attribution.chunks import in_chunks
from simcse_fast.attribution.padded import pad, pad_flags
from simcse_fast.attribution.path import embed, widened
from simcse_fast.attribution.targets import Target, read_target, target_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from simcse_fast.attribution.chunks import Budget
    from simcse_fast.attribution.encoder import Encoder
    from simcse_fast.attribution.tokens import Sentence, Unit

Masking = Literal["mask", "pad", "delete", "attention"]
MASKINGS = ("mask", "pad", "delete", "attention")
SENTENCES = 256  # whose embeddings of all their parts are held at a time


def check_masking(masking: str) -> None:
    """Refuse what is no name of a masking.

    Raises:
        ValueError: it is none.
    """
    if masking not in MASKINGS:
        raise ValueError(f"masking: expected one of {', '.join(MASKINGS)}, got {masking!r}.")


@dataclass
class Parts:
    """What a target says about parts of sentences.

    Attributes:
        encoder: of the sentences.
        sentences: B of them.
        whole: (B, D) their embeddings.
        target: that is looked at.
        masking: what stands for a token that is left out.
        budget: of the chunks.
    """

    encoder: Encoder
    sentences: list[Sentence]
    whole: Tensor
    target: Target
    masking: Masking
    budget: Budget

    @classmethod
    def read(
        cls,
        encoder: Encoder,
        sentences: list[Sentence],
        target: Any,
        masking: Masking,
        budget: Budget,
    ) -> Parts:
        """With the target as the caller means it; inside of `encoder.frozen()`."""
        whole = embed(encoder, sentences, budget)
        explained = read_target(target, encoder, whole, budget)
        return cls(encoder, sentences, whole, explained, masking, budget)

    def each(
        self, sets_of: Callable[[int], NDArray[np.bool_]]
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Number and values of every sentence, some sentences at a time.

        Args:
            sets_of: (M, S) tokens that stay, by the sentence's number.
        """
        for begin in range(0, len(self.sentences), SENTENCES):
            some = range(begin, min(begin + SENTENCES, len(self.sentences)))
            yield from zip(some, self.values(some, [sets_of(n) for n in some]), strict=True)

    def values(
        self,
        numbers: Sequence[int],
        sets: Sequence[NDArray[np.bool_]],  # (M, S) tokens that stay, a sentence
    ) -> list[NDArray[np.float64]]:
        """The target at the parts of some sentences, (M,) each; (M, D) for "vector"."""
        sentences = [self.sentences[n] for n in numbers]
        found = embed_sets(self.encoder, sentences, sets, self.masking, self.budget)
        return [
            target_values(self.target, embeddings, self.whole[[n] * len(embeddings)], n)
            for n, embeddings in zip(numbers, found, strict=True)
        ]


def players_of(sentence: Sentence, unit: Unit) -> NDArray[np.int64]:
    """(S,) the number of the player that a token belongs to; -1 for special tokens."""
    if unit == "word":
        return sentence.word
    own = ~sentence.special
    return np.where(own, own.cumsum() - 1, -1)


def kept(players: NDArray[np.int64], sets: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(M, S) tokens that stay, from sets of players (M, n): special tokens always."""
    padded = np.concatenate([sets, np.ones((len(sets), 1), bool)], axis=1)
    return padded[:, players]


def embed_sets(
    encoder: Encoder,
    sentences: Sequence[Sentence],
    sets: Sequence[NDArray[np.bool_]],  # (M, S) tokens that stay, a sentence
    masking: Masking,
    budget: Budget,
) -> list[Tensor]:
    """Embeddings of all sets of each sentence's tokens, (M, D); equal ones are computed once."""
    rows: dict[tuple[int, bytes], int] = {}
    looks: list[tuple[int, NDArray[np.bool_]]] = []
    index = []
    for n, (sentence, own) in enumerate(zip(sentences, sets, strict=True)):
        for keep in own:
            left = sentence.ids[keep] if masking == "delete" else keep
            key = (n, left.tobytes())
            if key not in rows:
                rows[key] = len(looks)
                looks.append((n, keep))
            index.append(rows[key])
    found: list[Tensor] = [torch.empty(0)] * len(looks)
    stand_in = _stand_in(encoder, masking)

    def work(chunk: NDArray[np.int64]) -> None:
        some = [(sentences[looks[row][0]], looks[row][1]) for row in chunk]
        for row, one in zip(chunk, _embed_some(encoder, some, masking, stand_in), strict=True):
            found[row] = one

    lengths = [int(keep.sum()) if masking == "delete" else len(keep) for _, keep in looks]
    in_chunks(lengths, budget, work)
    stacked = torch.stack([found[row] for row in index])
    return list(torch.split(stacked, [len(own) for own in sets]))


def _stand_in(encoder: Encoder, masking: Masking) -> Tensor | None:
    """The word embedding that replaces those left out, (H,); None where they are not replaced."""
    if masking not in {"mask", "pad"}:
        return None
    try:
        number = encoder.id_of(masking)
    except ValueError as error:
        raise ValueError(f"masking: {error}") from error
    return encoder.words(torch.tensor([number]))[0]


def _embed_some(
    encoder: Encoder,
    some: Sequence[tuple[Sentence, NDArray[np.bool_]]],
    masking: Masking,
    stand_in: Tensor | None,
) -> Tensor:
    """Embeddings of sentences with some of their tokens, (R, D)."""
    sentences = [sentence for sentence, _ in some]
    if masking == "delete":
        sentences = [sentence.only(keep) for sentence, keep in some]
    batch = pad(encoder, sentences)
    words, mask = batch.words, batch.mask
    if masking != "delete":
        keep = pad_flags([keep for _, keep in some], mask.shape[1], encoder.device)
        if stand_in is None:
            mask = mask * keep
        else:
            words = torch.where(keep[:, :, None] | (mask == 0)[:, :, None], words, stand_in)
    with torch.no_grad():
        return widened(encoder(words, mask))
