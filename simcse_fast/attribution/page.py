"""Pages to share: sentences shaded by the scores of their words, and token similarities."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from simcse_fast.attribution.pieces import depths, looks, percent, pieces, shares
from simcse_fast.files import written_whole

if TYPE_CHECKING:
    from os import PathLike

    from simcse_fast.attribution.attributions import Attributions
    from simcse_fast.attribution.similarity import TokenSimilarity

TITLES = {
    "self": "what makes up each sentence's own embedding",
    "norm": "what makes each embedding long",
    "vector": "what moves each embedding, in all its dimensions",
    "similarity": "what makes each sentence similar to another",
    "product": "what lies along a given vector",
}


def attribution_page(result: Attributions) -> str:
    """All sentences as running text."""
    signed = any((scores < 0).any() for scores in result.scores)
    count = len(result)
    note = (
        f"Each {result.unit} is shaded by its score, against the largest absolute score of its own "
        "sentence: shades compare the words of a sentence, not sentences. Point at one, or move to "
        "it with the tab key, for its score and its share, which is the score over the sum of all "
        "absolute scores of the sentence."
    )
    return _filled(
        title=f"Word weights: {TITLES.get(result.target, result.target)}",
        subtitle=(
            f"{result.method[:1].upper()}{result.method[1:]}, target {result.target}, "
            f"{count:,} sentence{'s' * (count != 1)}, a score for each {result.unit}"
        ),
        legend=_legend("largest of the sentence", note, signed=signed),
        body="\n".join(_article(result, row) for row in range(count)),
    )


def similarity_page(similarity: TokenSimilarity) -> str:
    """A table with the tokens of one sentence down and those of the other across."""
    own = similarity.shares()
    depth = depths(own)
    across = "".join(
        f'<th scope="col"><span lang=""><bdi>{escape(token)}</bdi></span></th>'
        for token in similarity.tokens_b
    )
    rows = []
    for i, token in enumerate(similarity.tokens_a):
        cells = "".join(
            f'<td class="{_sign(own[i, j])}" style="--a:{abs(depth[i, j]):.3f}" '
            f'title="{escape(token)} ~ {escape(other)}">{own[i, j]:z.2f}</td>'
            for j, other in enumerate(similarity.tokens_b)
        )
        rows.append(f'<tr><th scope="row" lang=""><bdi>{escape(token)}</bdi></th>{cells}</tr>')
    pairs = "".join(
        f'<li><bdi lang="">{escape(one)}</bdi> ~ <bdi lang="">{escape(two)}</bdi> '
        f"&nbsp;{share:+.3f}</li>"
        for one, two, share in similarity.strongest()
    )
    note = (
        "Each number is the product of two rows of P over the lengths of both embeddings, on the "
        f"scale of a cosine. All of them add up to {own.sum():.3f}: what the changes of the two "
        "sentences from their baselines have in common. Estimated error of the rows of P: "
        f"{percent(similarity.error_a)} (down) and {percent(similarity.error_b)} (across)."
    )
    return _filled(
        title="Token similarity",
        subtitle=(
            f"\u2068\u201c{similarity.sentence_a}\u201d\u2069 (down) and "
            f"\u2068\u201c{similarity.sentence_b}\u201d\u2069 (across)"
        ),
        legend=_legend("largest of the table", note, signed=bool((own < 0).any())),
        body=f'<div class="scroll"><table><thead><tr><th></th>{across}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="soft">Strongest pairs</p><ol>{pairs}</ol>',
    )


def kept(page: str, path: str | PathLike[str] | None) -> str:
    """The page, also in a file if there is a path."""
    if path is not None:
        with written_whole(path) as unfinished:
            unfinished.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    return page


def _filled(title: str, subtitle: str, legend: str, body: str) -> str:
    source = (files("simcse_fast.attribution") / "page.html").read_text(encoding="utf-8")
    return Template(source).substitute(
        title=escape(title), subtitle=escape(subtitle), legend=legend, body=body
    )


def _legend(most: str, note: str, *, signed: bool) -> str:
    """Ends of the scale and what they mean."""
    low, plus, kind = (f"\u2212 {most}", "+ ", "two") if signed else ("0", "", "one")
    return (
        f'<span>{low}</span><span class="scale {kind}"></span><span>{plus}{most}</span>'
        f"<p>{escape(note)}</p>"
    )


def _article(result: Attributions, row: int) -> str:
    """A sentence and its figures."""
    score, depth, share = result.scores[row], depths(result.scores[row]), shares(result.scores[row])
    parts = []
    for piece in pieces(result, row):
        i, text = piece.token, escape(piece.text)
        if i is None:
            parts.append(text)
            continue
        tip = f"{score[i]:+.4g} \u00b7 {100 * share[i]:+.1f} %"
        parts.append(
            f'<span class="w {_sign(score[i])}{" chip" * piece.chip}" style="--a:'
            f'{abs(depth[i]):.3f}" tabindex="0" data-tip="{tip}">{text}</span>'
        )
    if not result.tokens[row]:
        parts.append('<span class="soft">(no words)</span>')
    facts = (
        f"value {result.values[row]:.4f}",
        f"baseline value {result.baseline_values[row]:.4f}",
        f"{result.steps[row]:,} {looks(result)}",
        f"estimated error {percent(result.errors[row])}",
        f"completeness error {result.residual[row]:+.1e}",
    )
    return (
        f'<article><p class="text" dir="auto" lang="">{"".join(parts)}</p><p class="facts">'
        + " ".join(f"<span>{escape(fact)}</span>" for fact in facts)
        + "</p></article>"
    )


def _sign(score: float) -> str:
    return "n" if score < 0 else "p"
