"""Which words of two sentences make them alike: P_a P_b^T."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simcse_fast.attribution.attributions import Attributions
from simcse_fast.attribution.page import kept, similarity_page

if TYPE_CHECKING:
    from os import PathLike

    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

STRONGEST = 10


@dataclass(frozen=True, repr=False, eq=False)
class TokenSimilarity:
    """What each token of a sentence has to do with each token of another.

    The matrix adds up to (E_a - E_ra) . (E_b - E_rb), E the embeddings before a final Normalize
    and r the baselines: what the changes of both sentences from their baselines have in common.

    Attributes:
        sentence_a, sentence_b: the two texts.
        tokens_a, tokens_b: their tokens.
        matrix: (tokens_a, tokens_b) fp32, P_a P_b^T.
        length_a, length_b: of the sentences' embeddings.
        error_a, error_b: estimated error of each P, over its length; NaN where nothing tells.
    """

    sentence_a: str
    sentence_b: str
    tokens_a: list[str]
    tokens_b: list[str]
    matrix: Matrix
    length_a: float
    length_b: float
    error_a: float
    error_b: float

    def __repr__(self) -> str:
        a, b = self.matrix.shape
        pairs = ", ".join(f"{one} ~ {two} {share:+.3g}" for one, two, share in self.strongest(3))
        return f"TokenSimilarity: {a} x {b} tokens, together {self.shares().sum():+.3f}; {pairs}"

    def shares(self) -> Matrix:
        """The matrix over |E_a| |E_b|: each pair of tokens on the scale of a cosine.

        Returns:
            (tokens_a, tokens_b) fp32; 0 where an embedding has no length.
        """
        over = self.length_a * self.length_b
        return (self.matrix / over if over else np.zeros_like(self.matrix)).astype(np.float32)

    def strongest(self, count: int = STRONGEST) -> list[tuple[str, str, float]]:
        """The pairs with the largest absolute shares.

        Args:
            count: how many.

        Returns:
            Token of a, token of b, share; the largest first.
        """
        shares = self.shares()
        order = np.argsort(-np.abs(shares), axis=None, kind="stable")[:count]
        rows, columns = np.unravel_index(order, shares.shape)
        return [
            (self.tokens_a[i], self.tokens_b[j], float(shares[i, j]))
            for i, j in zip(rows, columns, strict=True)
        ]

    def to_dataframe(self) -> pd.DataFrame:
        """One row a pair of tokens; needs pandas.

        Returns:
            Columns position_a, position_b, token_a, token_b, product, share.
        """
        from simcse_fast.attribution.export import pair_frame  # noqa: PLC0415 - pandas

        return pair_frame(self)

    def to_html(self, path: str | PathLike[str] | None = None) -> str:
        """One page with the shares as a heat map; it fetches nothing.

        Args:
            path: where to write it too; an existing file is replaced.

        Returns:
            The page.
        """
        return kept(similarity_page(self), path)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The shares as a heat map; needs matplotlib.

        Args:
            ax: where to draw; a new figure by default.

        Returns:
            The axes.
        """
        from simcse_fast.attribution.plots import plot_similarity  # noqa: PLC0415 - matplotlib

        return plot_similarity(self, ax)


def token_similarity(a: Attributions, b: Attributions) -> list[TokenSimilarity]:
    """Token-by-token similarity of sentence pairs.

    matrix = P_a P_b^T, with P as `target="vector"` gives it; no further pass of the model.

    Args:
        a: attributions of B sentences with `vectors`.
        b: those of their B partners, of the same model.

    Returns:
        One for each pair.

    Raises:
        ValueError: one has no vectors, or they differ in their numbers of sentences or dimensions.

    Reference: Möller, Nikolaev and Padó 2023, arXiv 2310.05703.

    Example:
        >>> import numpy as np
        >>> from simcse_fast.attribution import Attributions
        >>> def two_words(text, vectors):
        ...     whole = vectors.sum(0)
        ...     return Attributions(
        ...         [text], [text.split()], [[(0, 3), (4, 7)]], [np.linalg.norm(vectors, axis=1)],
        ...         np.array([np.linalg.norm(whole)]), np.zeros(1), np.zeros(1), np.array([15]),
        ...         np.zeros(1), "integrated gradients", "vector", "word", [vectors],
        ...     )
        >>> red, blue = (np.array([[a, 0], [0, 2]], np.float32) for a in (1, -1))
        >>> (pair,) = token_similarity(two_words("Red ink", red), two_words("Sea ink", blue))
        >>> pair.matrix.tolist()
        [[-1.0, 0.0], [0.0, 4.0]]
        >>> pair
        TokenSimilarity: 2 x 2 tokens, together +0.600; ink ~ ink +0.8, Red ~ Sea -0.2, ...
    """
    first, second = _vectors(a, "a"), _vectors(b, "b")
    if len(first) != len(second):
        raise ValueError(
            f"b: expected as many sentences as a, {len(first)}, got {len(second)}; each is "
            "compared with its partner."
        )
    widths = [{rows.shape[1] for rows in vectors} for vectors in (first, second)]
    if len(set.union(*widths)) > 1:
        got = " and ".join(str(sorted(own)).strip("[]") for own in widths)
        raise ValueError(f"b: expected vectors as wide as those of a, got D = {got}.")
    return [
        TokenSimilarity(
            sentence_a=a.sentences[row],
            sentence_b=b.sentences[row],
            tokens_a=a.tokens[row],
            tokens_b=b.tokens[row],
            matrix=(first[row] @ second[row].T).astype(np.float32),
            length_a=float(a.values[row]),
            length_b=float(b.values[row]),
            error_a=float(a.errors[row]),
            error_b=float(b.errors[row]),
        )
        for row in range(len(a))
    ]


def _vectors(one: Attributions, name: str) -> list[Matrix]:
    if not isinstance(one, Attributions):
        raise TypeError(f"{name}: expected Attributions, got {type(one).__name__}.")
    if one.vectors is None:
        raise ValueError(
            f"{name}: expected attributions with vectors, got those of {one.target!r}; "
            'attribute with target="vector".'
        )
    return one.vectors
