"""Whether a model does what attributions say: words are left out, in the order of their scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_fast.attribution.chunks import bar, budget_for
from simcse_fast.attribution.encoder import open_encoder
from simcse_fast.attribution.masking import (
    Masking,
    Parts,
    check_masking,
    kept,
    players_of,
)
from simcse_fast.attribution.tokens import tokenize, units_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

    from simcse_fast.attribution.attributions import Attributions
    from simcse_fast.attribution.tokens import Sentence, Unit

    Floats = NDArray[np.float64]

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MEASURES = {
    "comprehensiveness": "comprehensiveness (higher is better)",
    "sufficiency": "sufficiency (lower is better)",
    "loo_correlation": "leave-one-out correlation (higher is better)",
}


@dataclass(frozen=True, repr=False, eq=False)
class Faithfulness:
    """How far a model follows attributions, for each of B sentences.

    Attributes:
        sentences: the B texts.
        comprehensiveness: (B,) mean drop of the target without the k words of the highest scores;
            NaN where no fraction of the words is one word.
        sufficiency: (B,) mean drop of the target with only these words; NaN likewise.
        loo_correlation: (B,) Kendall's tau-b between the scores and the drops when one word is left
            out, in [-1, 1]; NaN for fewer than two words, or where all are equal.
        explanation: what was judged.
        target: by which it was judged.
        masking: what stood for words that were left out.

    Example:
        >>> result = Faithfulness(
        ...     sentences=["Red ink"], comprehensiveness=np.array([0.5]),
        ...     sufficiency=np.array([0.125]), loo_correlation=np.array([np.nan]),
        ...     explanation="integrated gradients of self", target="self", masking="mask",
        ... )
        >>> result
        Faithfulness: integrated gradients of self, judged by self, words left out: mask
        measure                                          mean  sentences
        comprehensiveness (higher is better)            0.500          1
        sufficiency (lower is better)                   0.125          1
        leave-one-out correlation (higher is better)      nan          0
        >>> result.summary()["sufficiency"]
        0.125
    """

    sentences: list[str]
    comprehensiveness: Floats
    sufficiency: Floats
    loo_correlation: Floats
    explanation: str
    target: str
    masking: str

    def __len__(self) -> int:
        return len(self.sentences)

    def __repr__(self) -> str:
        means = self.summary()
        width = max(map(len, MEASURES.values()))
        lines = [
            f"Faithfulness: {self.explanation}, judged by {self.target}, words left out: "
            + self.masking,
            f"{'measure':<{width}} {'mean':>8} {'sentences':>10}",
        ]
        lines += [
            f"{told:<{width}} {means[name]:>8.3f} {np.isfinite(getattr(self, name)).sum():>10,}"
            for name, told in MEASURES.items()
        ]
        return "\n".join(lines)

    def summary(self) -> dict[str, float]:
        """Means over the sentences that have a value; NaN where none has.

        Returns:
            By the names comprehensiveness, sufficiency and loo_correlation.
        """
        known = {name: getattr(self, name)[np.isfinite(getattr(self, name))] for name in MEASURES}
        return {name: _mean(values) for name, values in known.items()}

    def to_dataframe(self) -> pd.DataFrame:
        """One row a sentence; needs pandas.

        Returns:
            Columns sentence (number), comprehensiveness, sufficiency, loo_correlation.
        """
        import pandas as pd  # noqa: PLC0415 - not always installed

        columns = {name: getattr(self, name) for name in MEASURES}
        return pd.DataFrame({"sentence": np.arange(len(self)), **columns})


def faithfulness(
    model: Any,
    attributions: Attributions,
    *,
    target: str | Tensor | Sequence[str] | Callable[[Tensor], Tensor] = "self",
    masking: Masking = "mask",
    fractions: Sequence[float] = FRACTIONS,
    batch_tokens: int | None = None,
    pooling: str | None = None,
    progress: bool = True,
) -> Faithfulness:
    """Whether the words with high scores are those that a sentence's embedding depends on.

    comprehensiveness = mean over k of target(E(all)) - target(E(all but the top k words))
    sufficiency = mean over k of target(E(all)) - target(E(only the top k words))
    loo_correlation = tau-b of the scores and target(E(all)) - target(E(all but word i)) over i

    k are the fractions of the words, rounded down; those below 1 are left out and equal ones count
    once. So far as ferret 0.5 (`aopc_compr`, `aopc_suff`, `taucorr_loo`), as well as the signed
    order of the scores and special tokens that stay. Otherwise than there:

    - all words are ranked, where ferret by default takes those with positive scores only
      (`only_pos=True`), so that how many k are averaged would depend on the attribution;
    - words are left out, where ferret leaves out tokens; `unit="token"` attributions do that too;
    - words are masked, where ferret deletes them (`masking="delete"`), decodes the tokens left and
      tokenizes that text again, which may find other tokens;
    - of equal scores the first in the sentence counts as the higher;
    - the target is a number of the embedding, not the probability of a class.

    All looks at all sentences share passes, and equal ones are looked at once.

    Args:
        model: that was explained: a SentenceTransformer, or a pair with `pooling`.
        attributions: of B sentences, by words or tokens.
        target: what drops, as `integrated_gradients` takes it, "vector" aside. Give here what the
            attributions explain; those of "vector" are usually judged by "self".
        masking: what stands for a word that is left out, as `shapley_values` takes it.
        fractions: of the words, each in (0, 1].
        batch_tokens: tokens of a pass at most; by default what fits memory and caches.
        pooling: of a pair: "mean" (default), "cls", "max", ... as sentence-transformers names them.
        progress: show a bar, on a terminal, when it takes long.

    Returns:
        Three measures of each sentence, in units of the target.

    Raises:
        TypeError: the model or the target is of no kind that is known.
        ValueError: an unknown name; fractions outside (0, 1]; the target "vector"; attributions
            whose tokens are not those of the model's tokenizer, or with NaN.

    Reference: DeYoung et al. 2020, arXiv 1911.03429; Attanasio et al. 2023 (ferret), 2208.01575.

    Example:
        >>> scores = shapley_values(encoder, ["Cats chase mice.", "Dogs sleep."], progress=False)
        >>> means = faithfulness(encoder, scores, progress=False).summary()
        >>> means["comprehensiveness"] > means["sufficiency"]
        True
    """
    check_masking(masking)
    if isinstance(target, str) and target == "vector":
        raise ValueError('target: "vector" is no single number that could drop; take "self".')
    shares = _shares(fractions)
    encoder = open_encoder(model, pooling)
    tokens = tokenize(encoder, attributions.sentences)
    unit: Unit = "token" if attributions.unit == "token" else "word"
    scores = [_own_scores(attributions, unit, *each) for each in enumerate(tokens)]
    budget = budget_for(encoder, batch_tokens)
    found: list[tuple[float, float, float]] = []
    with encoder.frozen(), bar("leaving words out", len(tokens), shown=progress) as done:
        parts = Parts.read(encoder, tokens, target, masking, budget)
        looks = parts.each(lambda n: kept(players_of(tokens[n], unit), _looks(scores[n], shares)))
        for n, values in looks:
            found.append(_measures(values[0] - values[1:], scores[n]))
            done(1)
    comprehensiveness, sufficiency, loo_correlation = np.array(found).T
    return Faithfulness(
        sentences=attributions.sentences,
        comprehensiveness=comprehensiveness,
        sufficiency=sufficiency,
        loo_correlation=loo_correlation,
        explanation=f"{attributions.method} of {attributions.target}",
        target=parts.target.name,
        masking=masking,
    )


def _shares(fractions: Sequence[float]) -> Floats:
    shares = np.asarray(fractions, np.float64)
    if shares.ndim != 1 or not len(shares) or not bool(((shares > 0) & (shares <= 1)).all()):
        raise ValueError(f"fractions: expected numbers in (0, 1], at least one, got {fractions!r}.")
    return shares


def _own_scores(attributions: Attributions, unit: Unit, row: int, sentence: Sentence) -> Floats:
    """Scores of the words or tokens of the text itself, (n,)."""
    names, scores = attributions.tokens[row], attributions.scores[row]
    expected = units_of(sentence, unit).names
    if names != expected:
        raise ValueError(
            f"attributions: sentence {row} is {names}, which this model's tokenizer cuts into "
            f"{expected}; expected attributions of the same model."
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"attributions: expected finite scores, found NaN in sentence {row}.")
    return scores[~sentence.special] if unit == "token" else scores


def _looks(scores: Floats, shares: Floats) -> NDArray[np.bool_]:
    """All words; K times all but the top k; K times the top k; all but each, (1 + 2 K + n, n)."""
    words = len(scores)
    rank = np.empty(words, np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(words)
    # A hair more, so that 0.29 of 100 words are 29.
    counts = np.unique(np.floor(shares * words + 1e-9))  # ascending, each once
    top = rank < counts[counts >= 1][:, None]
    return np.concatenate([np.ones((1, words), bool), ~top, top, ~np.eye(words, dtype=bool)])


def _measures(drops: Floats, scores: Floats) -> tuple[float, float, float]:
    """Of the drops at all looks but the first."""
    steps = (len(drops) - len(scores)) // 2
    without, only, one = np.split(drops, [steps, 2 * steps])
    return _mean(without), _mean(only), _tau(scores, one)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _tau(a: Floats, b: Floats) -> float:
    """Kendall's tau-b; NaN where one of both is constant."""
    pairs = np.triu_indices(len(a), 1)
    x, y = (np.sign(one[:, None] - one)[pairs] for one in (a, b))
    ranked = float(np.sqrt(np.abs(x).sum() * np.abs(y).sum()))
    return float(x @ y) / ranked if ranked else float("nan")
