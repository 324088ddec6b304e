"""What attribution returns: a score for each word, with its errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_fast.attribution.pieces import percent

if TYPE_CHECKING:
    from os import PathLike

    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SHOWN = 10  # sentences of a printed table
HEAVIEST = 3  # words of each
LETTERS = 40  # of a sentence


@dataclass(frozen=True, repr=False, eq=False)
class Attributions:
    """Scores of words or tokens, one list a sentence.

    Attributes:
        sentences: the B texts.
        tokens: the words, or the tokens, that have a score.
        spans: where they begin and end in their sentence; (0, 0) for special tokens.
        scores: (tokens,) fp64 each, in units of the target; for "vector" the lengths of the rows
            of P.
        values: (B,) the target of the sentences; for "vector" the length of the embedding.
        baseline_values: (B,) the target of their baselines.
        residual: (B,) completeness error: sum of scores - (value - baseline value), those of
            special tokens that are attributed included; for "vector" the length of that difference
            over all dimensions.
        steps: (B,) int64 nodes on the path, or coalitions.
        errors: (B,) estimated error of a sentence's scores, over their length; NaN where nothing
            tells.
        method: "integrated gradients", "Shapley values" or "Owen values".
        target: what the scores explain.
        unit: "word" or "token".
        vectors: for "vector" (tokens, D) fp32 each: P, or Shapley values of every dimension.

    Example:
        >>> import numpy as np
        >>> result = Attributions(
        ...     sentences=["Red ink"], tokens=[["Red", "ink"]], spans=[[(0, 3), (4, 7)]],
        ...     scores=[np.array([0.5, 0.25])], values=np.array([1.0]),
        ...     baseline_values=np.array([0.25]), residual=np.array([0.0]), steps=np.array([15]),
        ...     errors=np.array([0.004]), method="integrated gradients", target="self", unit="word",
        ... )
        >>> result
        Attributions: integrated gradients of self, 2 words in 1 sentence
        sentence        value     error  heaviest words
        Red ink         1.000     0.4 %  Red +0.5, ink +0.25
        >>> result.to_dataframe()[["token", "score", "value"]].values.tolist()
        [['Red', 0.5, 1.0], ['ink', 0.25, 1.0]]
        >>> page = result.to_html("red-ink.html")
        >>> result.save("red-ink.safetensors")
        >>> Attributions.load("red-ink.safetensors").tokens
        [['Red', 'ink']]
    """

    sentences: list[str]
    tokens: list[list[str]]
    spans: list[list[tuple[int, int]]]
    scores: list[Floats]
    values: Floats
    baseline_values: Floats
    residual: Floats
    steps: NDArray[np.int64]
    errors: Floats
    method: str
    target: str
    unit: str
    vectors: list[NDArray[np.float32]] | None = field(default=None)

    def __len__(self) -> int:
        return len(self.sentences)

    def __repr__(self) -> str:
        words, count = sum(map(len, self.tokens)), len(self)
        shown = [_clipped(text) for text in self.sentences[:SHOWN]]
        width = max([12, *map(len, shown)])
        texts = f"{count:,} sentence{'s' * (count != 1)}"
        lines = [
            f"Attributions: {self.method} of {self.target}, {words:,} {self.unit}s in {texts}",
            f"{'sentence':<{width}} {'value':>8} {'error':>9}  heaviest {self.unit}s",
        ]
        lines += [
            f"{text:<{width}} {self.values[row]:>8.3f} {percent(self.errors[row]):>9}  "
            f"{self._heaviest(row)}"
            for row, text in enumerate(shown)
        ]
        return "\n".join(lines + (["..."] if count > SHOWN else []))

    def _heaviest(self, row: int) -> str:
        order = np.argsort(-np.abs(self.scores[row]), kind="stable")[:HEAVIEST]
        return ", ".join(f"{self.tokens[row][i]} {self.scores[row][i]:+.3g}" for i in order)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a token; needs pandas.

        Returns:
            Columns sentence (number), position, token, start, end, score; and those of the
            sentence: value, baseline_value, residual, steps, error.
        """
        from simcse_fast.attribution.export import score_frame  # noqa: PLC0415 - pandas

        return score_frame(self)

    def to_shap(self) -> Any:
        """What the plots of shap take; needs shap.

        Returns:
            A `shap.Explanation` of B sentences, in shap's own shape for text: `data` holds each
            token with the white space behind it, so that they add up to the sentence;
            `feature_names` the tokens; `base_values` the baselines' values. With `vectors`, one
            output a dimension, as changes from the baseline: `base_values` are 0.
        """
        from simcse_fast.attribution.export import explanation  # noqa: PLC0415 - shap

        return explanation(self)

    def to_html(self, path: str | PathLike[str] | None = None) -> str:
        """One page with all sentences, their words shaded by score; it fetches nothing.

        Args:
            path: where to write it too; an existing file is replaced.

        Returns:
            The page.
        """
        from simcse_fast.attribution.page import attribution_page, kept  # noqa: PLC0415 - a circle

        return kept(attribution_page(self), path)

    def plot(self, sentence: int = 0, ax: Axes | None = None) -> Axes:
        """One sentence's words in order, with bars as long as their scores; needs matplotlib.

        Args:
            sentence: its number.
            ax: where to draw; a new figure by default.

        Returns:
            The axes.

        Raises:
            ValueError: there is no such sentence.
        """
        if not -len(self) <= sentence < len(self):
            raise ValueError(f"sentence: expected one of 0 to {len(self) - 1}, got {sentence}.")
        from simcse_fast.attribution.plots import plot_scores  # noqa: PLC0415 - matplotlib

        return plot_scores(self, sentence, ax)

    def save(self, path: str | PathLike[str]) -> None:
        """Write all of it, vectors too, to a safetensors file; needs safetensors.

        Args:
            path: the file; an existing one is replaced.
        """
        from simcse_fast.attribution.storage import save  # noqa: PLC0415 - safetensors

        save(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Attributions:
        """What `save` wrote, exactly.

        Args:
            path: the file.

        Returns:
            The attributions.

        Raises:
            ValueError: `save` did not write this file.
        """
        from simcse_fast.attribution.storage import load  # noqa: PLC0415 - safetensors

        return load(path)


def _clipped(text: str) -> str:
    """The beginning of a sentence, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= LETTERS else line[: LETTERS - 1] + "\u2026"
