"""The explainers of shap over coalitions that are edits of tokens, evaluated in batches."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from simcse_fast.attribution.chunks import budget_for
from simcse_fast.attribution.encoder import open_encoder
from simcse_fast.attribution.export import with_spaces
from simcse_fast.attribution.masking import Masking, Parts, check_masking, kept, players_of
from simcse_fast.attribution.path import embed
from simcse_fast.attribution.tokens import (
    Unit,
    check_sentences,
    check_unit,
    tokenize,
    units_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from simcse_fast.attribution.tokens import Sentence

TOGETHER = 64  # coalitions that shap asks about at a time, where it is free to choose
PROBE = "a"  # whose embedding tells how wide embeddings are


def shap_model(
    model: Any,
    *,
    target: str | Tensor | Callable[[Tensor], Tensor] = "self",
    masking: Masking = "mask",
    unit: Unit = "word",
    clustering: bool = True,
    batch_tokens: int | None = None,
    pooling: str | None = None,
) -> tuple[ShapModel, ShapMasker]:
    """A sentence encoder as `shap.Explainer` takes it: a function and a masker.

        f, masker = shap_model(model)
        shap.Explainer(f, masker, algorithm="partition")(sentences)

    Features are words. A coalition is an edit of token ids, never a string that is tokenized
    again; coalitions are evaluated in batches, and each of a sentence once.

    Args:
        model: a SentenceTransformer, or a pair (transformers model, tokenizer) with `pooling`.
        target: as `integrated_gradients` takes it; one for all sentences.
        masking: as `shapley_values` takes it.
        unit: "word", or "token" for the pieces of words; special tokens always stay.
        clustering: give the masker the tree of words that shap builds for texts. "partition" needs
            it; "permutation" keeps to it and then finds Owen values. False: "permutation" and
            "exact" find Shapley values.
        batch_tokens: tokens of a pass at most; by default what fits memory and caches.
        pooling: of a pair: "mean" (default), "cls", "max", ... as sentence-transformers names them.

    Returns:
        The function, from coalitions to the target (R,), or to (R, D) for "vector"; and the
        masker, from sets of words to coalitions.

    Raises:
        TypeError: the model or the target is of no kind that is known.
        ValueError: an unknown name, or a target that does not fit.

    Reference: Lundberg and Lee 2017, arXiv 1705.07874.

    Example:
        >>> f, masker = shap_model(encoder)
        >>> everything = masker(np.array([True, True, True, True]), "Cats chase mice.")
        >>> f(*everything).round(6)  # the cosine of the sentence with itself
        array([1.])
    """
    check_masking(masking)
    check_unit(unit)
    encoder = open_encoder(model, pooling)
    budget = budget_for(encoder, batch_tokens)
    with encoder.frozen():
        parts = Parts.read(encoder, tokenize(encoder, [PROBE]), target, masking, budget)
    parts.sentences, parts.whole = [], parts.whole[:0]
    evaluate = ShapModel(parts)
    return evaluate, ShapMasker(evaluate, unit, clustering=clustering)


class ShapModel:
    """From coalitions of one sentence's tokens to the target.

    Args:
        parts: whose target is meant; sentences are added as shap comes to them.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.seen: dict[bytes, NDArray[np.float64]] = {}  # of the last sentence
        self.last = -1

    def add(self, text: str) -> int:
        """The number of a new sentence."""
        encoder = self.parts.encoder
        (sentence,) = tokenize(encoder, check_sentences([text]))
        with encoder.frozen():
            whole = embed(encoder, [sentence], self.parts.budget)
        self.parts.sentences.append(sentence)
        self.parts.whole = torch.cat([self.parts.whole, whole])
        return len(self.parts.sentences) - 1

    def __call__(self, coalitions: NDArray[np.int64]) -> NDArray[np.float64]:
        """The target at coalitions.

        Args:
            coalitions: (R, 1 + S) the number of the sentence, the same in all rows, and 1 for
                tokens that stay.

        Returns:
            (R,), or (R, D) for "vector".
        """
        number = int(coalitions[0, 0])
        if number != self.last:
            self.seen, self.last = {}, number
        keys = [row.tobytes() for row in coalitions]
        fresh = {
            key: row[1:] == 1
            for key, row in zip(keys, coalitions, strict=True)
            if key not in self.seen
        }
        if fresh:
            with self.parts.encoder.frozen():
                (values,) = self.parts.values([number], [np.array(list(fresh.values()))])
            self.seen.update(zip(fresh, values, strict=True))
        return np.array([self.seen[key] for key in keys])


class ShapMasker:
    """What shap asks a masker: how many words, their names and groups, and parts of sentences.

    Args:
        model: that evaluates the coalitions.
        unit: "word" or "token".
        clustering: have a tree of words.
        number: of the one sentence that is explained; None: sentences are told by their text.
    """

    text_data = True
    immutable_outputs = True
    default_batch_size = TOGETHER

    def __init__(
        self, model: ShapModel, unit: Unit, *, clustering: bool = True, number: int | None = None
    ) -> None:
        self.model, self.unit, self.number = model, unit, number
        self.known: dict[str, int] = {}
        self.clustering = self._tree if clustering else None

    def __call__(self, mask: NDArray[np.bool_] | bool, text: str) -> tuple[NDArray[np.int64]]:
        """One coalition, (1, 1 + S)."""
        number, sentence = self._sentence(text)
        words = np.broadcast_to(mask, (1, self.shape(text)[1]))
        keep = kept(players_of(sentence, self.unit), words)
        return (np.concatenate([[[number]], keep], axis=1).astype(np.int64),)

    def shape(self, text: str) -> tuple[int, int]:
        """One coalition a mask; so many words."""
        count = len(self._words(text)[0])
        if not count:
            raise ValueError(f"sentences: expected some words in each, got {text!r}.")
        return 1, count

    def mask_shapes(self, text: str) -> list[tuple[int]]:
        """Of the masks of a sentence."""
        return [self.shape(text)[1:]]

    def feature_names(self, text: str) -> list[list[str]]:
        """The words."""
        return [self._words(text)[0]]

    def data_transform(self, text: str) -> tuple[list[str]]:
        """The words with the white space behind them; they add up to the sentence."""
        return (with_spaces(text, self._words(text)[1]),)

    def _sentence(self, text: str) -> tuple[int, Sentence]:
        number = self.number
        if number is None:
            if text not in self.known:
                self.known[text] = self.model.add(text)
            number = self.known[text]
        return number, self.model.parts.sentences[number]

    def _words(self, text: str) -> tuple[list[str], list[tuple[int, int]]]:
        """Names and spans of the features."""
        _, sentence = self._sentence(text)
        units = units_of(sentence, self.unit)
        if self.unit == "word":
            return units.names, units.spans
        own = np.flatnonzero(~sentence.special)
        return [units.names[i] for i in own], [units.spans[i] for i in own]

    def _tree(self, text: str) -> NDArray[np.float64]:
        """As shap groups the words of a text, (words - 1, 4)."""
        import shap  # noqa: PLC0415 - slow, and not always installed

        names, spans = self._words(text)
        if len(names) == 1:
            return np.zeros((0, 4))

        def cut(given: str, **_: Any) -> dict[str, Any]:
            own = spans if given else []  # shap looks what a tokenizer puts around nothing
            return {"input_ids": list(range(len(own))), "offset_mapping": own}

        tree: NDArray[np.float64] = shap.maskers.Text(cut, mask_token=0).clustering(text)
        return tree


class Explained(NamedTuple):
    """One sentence, as `shapley_values` finds it."""

    scores: NDArray[np.float64]  # (players,) or (players, D)
    value: NDArray[np.float64]  # () or (D,)
    baseline_value: NDArray[np.float64]
    steps: int
    error: float


def partition_values(
    parts: Parts,
    unit: Unit,
    evaluations: Sequence[int],  # (B,) at most
    seed: int,
    done: Callable[[int], object],  # is told how many sentences are finished
) -> list[Explained]:
    """What `shap.PartitionExplainer` says of sentences."""
    import shap  # noqa: PLC0415 - slow, and not always installed

    model, found = ShapModel(parts), []
    for number, (sentence, most) in enumerate(zip(parts.sentences, evaluations, strict=True)):
        nothing, everything = (
            model(np.concatenate([[[number]], [keep]], axis=1).astype(np.int64))[0]
            for keep in (sentence.special, np.ones(len(sentence), bool))
        )
        scores = np.zeros((0, *everything.shape))
        if sentence.words:
            masker = ShapMasker(model, unit, number=number)
            explainer = shap.explainers.PartitionExplainer(model, masker)
            with _seeded(seed):
                explained = explainer([sentence.text], max_evals=most, silent=True)
            scores = np.asarray(explained.values[0], np.float64)
        found.append(Explained(scores, everything, nothing, len(model.seen), float("nan")))
        done(1)
    return found


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Ties are broken by numpy's global generator, which is as it was afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
