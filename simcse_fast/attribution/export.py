"""Attributions as other libraries take them: data frames of pandas, explanations of shap."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from simcse_fast.attribution.attributions import Attributions
    from simcse_fast.attribution.similarity import TokenSimilarity


def score_frame(result: Attributions) -> pd.DataFrame:
    """One row a token."""
    import pandas as pd  # noqa: PLC0415 - not always installed

    counts = [len(tokens) for tokens in result.tokens]
    spans = np.array([span for own in result.spans for span in own], np.int64).reshape(-1, 2)
    own = {
        "sentence": np.arange(len(result)),
        "value": result.values,
        "baseline_value": result.baseline_values,
        "residual": result.residual,
        "steps": result.steps,
        "error": result.errors,
    }
    each = {name: np.repeat(column, counts) for name, column in own.items()}
    return pd.DataFrame(
        {
            "sentence": each.pop("sentence"),
            "position": np.concatenate([np.arange(0), *map(np.arange, counts)]),
            "token": [token for tokens in result.tokens for token in tokens],
            "start": spans[:, 0],
            "end": spans[:, 1],
            "score": np.concatenate([np.zeros(0), *result.scores]),
            **each,
        }
    )


def pair_frame(similarity: TokenSimilarity) -> pd.DataFrame:
    """One row a pair of tokens."""
    import pandas as pd  # noqa: PLC0415 - not always installed

    a, b = (index.ravel() for index in np.indices(similarity.matrix.shape))
    return pd.DataFrame(
        {
            "position_a": a,
            "position_b": b,
            "token_a": [similarity.tokens_a[i] for i in a],
            "token_b": [similarity.tokens_b[i] for i in b],
            "product": similarity.matrix.ravel(),
            "share": similarity.shares().ravel(),
        }
    )


def explanation(result: Attributions) -> Any:
    """A `shap.Explanation`."""
    vectors = result.vectors
    if vectors is None:
        values, base = _ragged(result.scores), result.baseline_values
    else:
        values = _ragged(vectors)
        base = np.zeros((len(result), vectors[0].shape[1] if vectors else 0))
    texts = zip(result.sentences, result.spans, strict=True)
    return import_module("shap").Explanation(  # slow, and not always installed
        values,
        base_values=base,
        data=_ragged([np.array(with_spaces(*one), object) for one in texts]),
        feature_names=result.tokens,
    )


def _ragged(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """An array of arrays, also where all are of one length."""
    outer = np.empty(len(rows), object)
    for number, row in enumerate(rows):
        outer[number] = row
    return outer


def with_spaces(text: str, spans: list[tuple[int, int]]) -> list[str]:
    """Each token's text up to the next token; together they are the sentence."""
    own = [number for number, (low, high) in enumerate(spans) if high > low]
    starts = [0, *(spans[number][0] for number in own[1:])]
    ends = [*starts[1:], len(text)]
    found = [""] * len(spans)
    for number, low, high in zip(own, starts, ends, strict=False):
        found[number] = text[low:high]
    return found
