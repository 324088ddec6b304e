"""What explain shows: shaded words on a terminal, tables without colours, records for JSON."""

from __future__ import annotations

import os
import sys
import unicodedata
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np

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
HEAVIEST = 5  # words whose scores stand below a shaded sentence


def coloured() -> bool:
    """Standard output is a terminal, and nobody minds."""
    dumb = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not dumb


def plain(text: str) -> str:
    """One line without control characters, which a terminal would obey."""
    spaced = text.replace("\n", " ").replace("\t", " ")
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" else c for c in spaced)


def all_lines(result: Attributions) -> list[str]:
    """Each sentence, its words by weight, and its figures."""
    shaded = coloured()
    lines = []
    for row in range(len(result)):
        words = [_shaded(result, row), _heaviest(result, row)] if shaded else _table(result, row)
        lines += [*words, _figures(result, row), ""]
    if not shaded:
        return lines[:-1]
    signed = any((scores < 0).any() for scores in result.scores)
    return [*lines, "blue raises the value" + (", orange lowers it" if signed else "")]


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
        f"error {percent(similarity.error_a)} (a) and {percent(similarity.error_b)} (b)",
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


def _heaviest(result: Attributions, row: int) -> str:
    """The words of the largest scores, with their shares."""
    score, share = result.scores[row], shares(result.scores[row])
    order = np.argsort(-np.abs(score), kind="stable")[:HEAVIEST]
    words = [
        f"{plain(result.tokens[row][i])[:WIDEST]} {score[i]:+.3f} ({100 * share[i]:+.0f} %)"
        for i in order
    ]
    return ", ".join(words) or "no words"


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
            "error": _known(result.errors[row]),
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
    errors = {name: _known(getattr(pair, name)) for name in ("error_a", "error_b")}
    return {**vars(pair), **errors, "matrix": pair.matrix.tolist(), "shares": shares}


def _known(error: float) -> float | None:
    """JSON has no NaN."""
    return None if isnan(error) else float(error)
