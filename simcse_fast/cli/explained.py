"""What explain shows: shaded words on a terminal, tables without colours, records for JSON."""

from __future__ import annotations

import os
import sys
import unicodedata
from math import isnan
from typing import TYPE_CHECKING, Any

from simcse_fast.attribution.pieces import depths, looks, percent, pieces, shares
from simcse_fast.cli.common import bold

if TYPE_CHECKING:
    from simcse_fast.attribution import Attributions
    from simcse_fast.attribution.similarity import TokenSimilarity

# From faint to strong, as (background, ink) of the 256 colours: black or white, what reads better.
ON_DARK = {
    "blue": ((17, 231), (24, 231), (25, 231), (31, 231), (38, 16)),
    "orange": ((58, 231), (94, 231), (130, 231), (172, 16), (214, 16)),
}
ON_LIGHT = {
    "blue": ((195, 16), (153, 16), (117, 16), (75, 16), (39, 16)),
    "orange": ((230, 16), (223, 16), (222, 16), (215, 16), (214, 16)),
}
LEAST = 0.04  # of the largest score: what is less stays unshaded
LIGHT = {"7", "15"}  # backgrounds, as COLORFGBG tells them
WIDEST = 30  # letters of a word in a table


def coloured() -> bool:
    """Standard output is a terminal, and nobody minds."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def plain(text: str) -> str:
    """One line without control characters, which a terminal would obey."""
    spaced = text.replace("\n", " ").replace("\t", " ")
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" else c for c in spaced)


def lines_of(result: Attributions, row: int) -> list[str]:
    """A sentence, its words by weight, and its figures."""
    lines = [_shaded(result, row)] if coloured() else _table(result, row)
    return [*lines, _figures(result, row), ""]


def pair_lines(similarity: TokenSimilarity) -> list[str]:
    """The strongest pairs of words."""
    pairs = [(plain(a), plain(b), share) for a, b, share in similarity.strongest()]
    left, right = max([9, *(len(a) for a, *_ in pairs)]), max([9, *(len(b) for _, b, _ in pairs)])
    return [
        f"{bold('a')}  {plain(similarity.sentence_a)}",
        f"{bold('b')}  {plain(similarity.sentence_b)}",
        f"  {'word of a':<{left}}  {'word of b':<{right}}    similarity",
        *(f"  {a:<{left}}  {b:<{right}}  {share:>+12.3f}" for a, b, share in pairs),
        f"together {similarity.shares().sum():+.3f}, on the scale of a cosine",
    ]


def _shaded(result: Attributions, row: int) -> str:
    background = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    ramps, depth = ON_LIGHT if background in LIGHT else ON_DARK, depths(result.scores[row])
    found = []
    for piece in pieces(result, row):
        text, strength = plain(piece.text), 0.0 if piece.token is None else depth[piece.token]
        ramp = ramps["orange" if strength < 0 else "blue"]
        if piece.chip or abs(strength) < LEAST:
            found.append(text)
            continue
        paper, ink = ramp[min(int(abs(strength) * len(ramp)), len(ramp) - 1)]
        found.append(f"\033[48;5;{paper};38;5;{ink}m{text}\033[0m")
    return "".join(found)


def _table(result: Attributions, row: int) -> list[str]:
    share = shares(result.scores[row])
    words = [plain(token)[:WIDEST] for token in result.tokens[row]]
    width = max([8, *map(len, words)])
    return [
        plain(result.sentences[row]),
        f"  {result.unit:<{width}} {'score':>10} {'share':>8}",
        *(
            f"  {word:<{width}} {score:>+10.4f} {100 * part:>+6.1f} %"
            for word, score, part in zip(words, result.scores[row], share, strict=True)
        ),
    ]


def _figures(result: Attributions, row: int) -> str:
    return (
        f"{bold('value')} {result.values[row]:.4f}, baseline value "
        f"{result.baseline_values[row]:.4f}, {result.steps[row]:,} {looks(result)}, error "
        f"{percent(result.errors[row])}"
    )


def records(result: Attributions) -> list[dict[str, Any]]:
    """The result for machines, one object a sentence."""
    return [
        {
            "sentence": sentence,
            "method": result.method,
            "target": result.target,
            "unit": result.unit,
            "value": float(result.values[row]),
            "baseline_value": float(result.baseline_values[row]),
            "residual": float(result.residual[row]),
            "steps": int(result.steps[row]),
            "error": None if isnan(result.errors[row]) else float(result.errors[row]),
            "tokens": [
                {"token": token, "start": start, "end": end, "score": float(score)}
                for token, (start, end), score in zip(
                    result.tokens[row], result.spans[row], result.scores[row], strict=True
                )
            ],
        }
        for row, sentence in enumerate(result.sentences)
    ]


def pair_record(pair: TokenSimilarity) -> dict[str, Any]:
    """A pair for machines."""
    shares = pair.shares().tolist()
    return {**vars(pair), "matrix": pair.matrix.tolist(), "shares": shares}
