"""A sentence as it is read, cut at its tokens, and how deep each of them is shaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simcse_fast.attribution.attributions import Attributions, Floats

LEAST_ERROR = 1e-4


@dataclass(frozen=True)
class Piece:
    """A part of a sentence.

    Attributes:
        text: as it stands in the sentence; the tokenizer's name for a chip.
        token: number of the token that it is; None for what stands between tokens.
        chip: the token has no text of its own: a special one, or one of several in a character.
    """

    text: str
    token: int | None = None
    chip: bool = False


def pieces(result: Attributions, sentence: int) -> list[Piece]:
    """Tokens and what stands between them; without the chips they add up to the sentence."""
    text, found, end = result.sentences[sentence], [], 0
    named = zip(result.tokens[sentence], result.spans[sentence], strict=True)
    for number, (name, (low, high)) in enumerate(named):
        if high <= max(low, end):
            found.append(Piece(name, number, chip=True))
            continue
        low = max(low, end)  # noqa: PLW2901 - byte-level tokens may share a character
        if low > end:
            found.append(Piece(text[end:low]))
        found.append(Piece(text[low:high], number))
        end = high
    return [*found, Piece(text[end:])] if end < len(text) else found


def depths(scores: NDArray[np.floating[Any]]) -> Floats:
    """Scores over the largest absolute one, in [-1, 1]; NaN as 0."""
    known: Floats = np.nan_to_num(np.asarray(scores, np.float64), posinf=0.0, neginf=0.0)
    return _over(known, np.abs(known).max(initial=0.0))


def shares(scores: Floats) -> Floats:
    """Scores over the sum of all absolute ones."""
    return _over(np.asarray(scores, np.float64), np.abs(scores).sum())


def _over(values: Floats, by: float) -> Floats:
    return values / by if by else np.zeros_like(values)


def looks(result: Attributions) -> str:
    """What `steps` counts."""
    return "nodes" if result.method == "integrated gradients" else "coalitions"


def percent(error: float) -> str:
    """An error as people read it."""
    if np.isnan(error):
        return "not known"
    return f"{100 * error:.2g} %" if error >= LEAST_ERROR else "< 0.01 %"
