"""Shapley values of the words of a sentence, from coalitions that are edits of its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from simcse_fast.attribution.assemble import assemble
from simcse_fast.attribution.chunks import bar, budget_for
from simcse_fast.attribution.coalitions import Coalitions, coalitions
from simcse_fast.attribution.encoder import open_encoder
from simcse_fast.attribution.masking import (
    Masking,
    Parts,
    check_masking,
    kept,
    players_of,
)
from simcse_fast.attribution.shap_interface import Explained, partition_values
from simcse_fast.attribution.tokens import (
    Unit,
    Units,
    check_sentences,
    check_unit,
    tokenize,
    units_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from simcse_fast.attribution.attributions import Attributions

Method = Literal["interpolated", "partition"]
METHODS = {"interpolated": "Shapley values", "partition": "Owen values"}
MOST_EXACT = 12  # words: 4,096 coalitions
BUDGET = 512  # coalitions of "auto"


def shapley_values(
    model: Any,
    sentences: Sequence[str] | str,
    *,
    target: str | Tensor | Sequence[str] | Callable[[Tensor], Tensor] = "self",
    samples: int | str = "auto",
    unit: Unit = "word",
    masking: Masking = "mask",
    seed: int = 0,
    method: Method = "interpolated",
    batch_tokens: int | None = None,
    pooling: str | None = None,
    progress: bool = True,
) -> Attributions:
    """Shapley value of each word in a sentence's embedding.

    score_i = mean over all orders of the words of
              target(E(words up to i)) - target(E(words before i))

    The words that are not there are masked. One set of coalitions serves every dimension of the
    embedding, and the scores of a sentence add up to target(E(all)) - target(E(none)).

    Args:
        model: a SentenceTransformer, or a pair (transformers model, tokenizer) with `pooling`.
        sentences: B texts.
        target: as `integrated_gradients` takes it.
        samples: coalitions a sentence. "exact" takes all 2^words, for 12 words at most; "auto" all
            where these are no more than 512, else 512. A number that all fit in takes all.
            Where some are left out the target is interpolated between those that were looked at
            (Bayesian quadrature), which needs far fewer than KernelSHAP; `errors` says how far
            the scores may be off.
        unit: "word", or "token" for the pieces of words, special tokens with score 0 included.
        masking: what stands for a word that is not there: the "mask" or the "pad" token's
            embedding; "delete", nothing; "attention", the word unseen by all others.
        seed: of the coalitions that are drawn.
        method: "interpolated", as above; or "partition", for comparison: shap's PartitionExplainer
            over the same coalitions, with `samples` evaluations at most. It finds Owen values for
            the tree that shap builds of a text, and does not tell their errors; needs shap.
        batch_tokens: tokens of a pass at most; by default what fits memory and caches.
        pooling: of a pair: "mean" (default), "cls", "max", ... as sentence-transformers names them.
        progress: show a bar, on a terminal, when it takes long.

    Returns:
        Scores with their errors; `steps` are coalitions, and `residual` is the additivity error.

    Raises:
        TypeError: the model, a sentence, the target or samples is of no kind that is known.
        ValueError: no sentence; an unknown name; samples < 2; "exact" with more than 12 words.

    Reference: Lundberg and Lee 2017, arXiv 1705.07874.

    Example:
        >>> result = shapley_values(encoder, "Cats chase mice.", progress=False)
        >>> int(result.steps[0])  # all sets of four words
        16
    """
    texts = check_sentences(sentences)
    check_masking(masking)
    check_unit(unit)
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected a number, got {type(seed).__name__}.")
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}.")
    encoder = open_encoder(model, pooling)
    tokens = tokenize(encoder, texts)
    players = [players_of(sentence, unit) for sentence in tokens]
    looks = [_samples(samples, own, row) for row, own in enumerate(players)]
    budget = budget_for(encoder, batch_tokens)
    with encoder.frozen(), bar("attributing", len(texts), shown=progress) as done:
        parts = Parts.read(encoder, tokens, target, masking, budget)
        if method == "partition":
            found = partition_values(parts, unit, looks, seed, done)
        else:
            found = _interpolated(parts, players, looks, seed, done)
    units = [units_of(sentence, unit) for sentence in tokens]
    return assemble(
        units,
        [
            _spread(*each)
            for each in zip([one.scores for one in found], units, players, strict=True)
        ],
        [one.scores.sum(0) for one in found],
        (np.array([one.value for one in found]), np.array([one.baseline_value for one in found])),
        sentences=texts,
        steps=np.array([one.steps for one in found]),
        errors=np.array([one.error for one in found]),
        method=METHODS[method],
        target=parts.target.name,
        unit=unit,
    )


def _samples(samples: int | str, players: NDArray[np.int64], row: int) -> int:
    words = int(players.max(initial=-1)) + 1
    if samples == "exact":
        if words > MOST_EXACT:
            raise ValueError(
                f'samples: "exact" takes {MOST_EXACT} words at most, sentence {row} has {words}; '
                'use "auto" or a number.'
            )
        return int(2**words)
    if samples == "auto":
        return BUDGET
    if isinstance(samples, str):
        raise ValueError(  # noqa: TRY004 - a name, but of nothing
            f'samples: expected "auto", "exact" or a number, got {samples!r}.'
        )
    if isinstance(samples, bool) or not isinstance(samples, int):
        raise TypeError(
            f'samples: expected "auto", "exact" or a number, got {type(samples).__name__}.'
        )
    if samples < 2:  # noqa: PLR2004 - the empty and the full set
        raise ValueError(f"samples: expected at least 2, got {samples}.")
    return samples


def _interpolated(
    parts: Parts,
    players: Sequence[NDArray[np.int64]],
    looks: Sequence[int],  # coalitions a sentence
    seed: int,
    done: Callable[[int], object],
) -> list[Explained]:
    """From all coalitions of a sentence, or from the interpolant of some."""
    games: dict[int, Coalitions] = {}

    def sets_of(n: int) -> NDArray[np.bool_]:
        games[n] = coalitions(int(players[n].max(initial=-1)) + 1, looks[n], seed)
        return kept(players[n], games[n].sets)

    found = []
    for n, own in parts.each(sets_of):
        game = games.pop(n)
        scores = game.weights @ own
        error = 0.0 if game.doubt is None else _doubt(game.doubt, own, scores)
        full = own[min(1, len(own) - 1)]
        found.append(Explained(scores, full, own[0], len(game.sets), error))
        done(1)
    return found


def _spread(
    scores: NDArray[np.float64], units: Units, players: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Of players to units: special tokens get 0."""
    if len(units.names) == len(scores):
        return scores
    padded = np.concatenate([scores, np.zeros((1, *scores.shape[1:]))])
    return padded[players]


def _doubt(
    doubt: NDArray[np.float64], values: NDArray[np.float64], scores: NDArray[np.float64]
) -> float:
    """The sampling error of a sentence's scores over their length."""
    variance = float(np.sum(values * (doubt @ values)))
    length = float(np.linalg.norm(scores))
    return float(np.sqrt(max(variance, 0.0)) / length) if length else 0.0
