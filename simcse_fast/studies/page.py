"""The report of a study: findings, pictures, tables, words and sentences that changed."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from simcse_fast.page import document, picture, table
from simcse_fast.studies.options import METHOD_TITLES
from simcse_fast.studies.rows import OCCURRENCE, WORD
from simcse_fast.studies.tables import LEVELS, before_and_after, findings, moved
from simcse_fast.studies.words import words_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from matplotlib.figure import Figure

    from simcse_fast.studies.result import Study

STYLE = """
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
.text { font-size: 1.05rem; line-height: 1.9; margin: .2rem 0; }
.w { border-radius: 3px; padding: .14em .1em; background: rgba(0, 114, 178, calc(var(--a) * .75)); }
.soft { opacity: .7; font-size: .9rem; }
.two { display: flex; gap: 3rem; flex-wrap: wrap; }
"""
SHOWN = 6  # sentences
MOVED = 15  # words on either side
LENGTHS = (6, 20)  # words of a sentence that is shown
FULL = 4.0  # times the even share: the deepest shade


def page(result: Study, figures: Mapping[str, Figure]) -> str:
    """One HTML file with everything in it; figures by the names of their files."""
    parts = [f"<ul>{''.join(f'<li>{escape(one)}</li>' for one in findings(result))}</ul>"]
    parts += [f'<p class="soft">{escape(about(result))}</p>']
    parts += ["<h2>R² of the weights</h2>", picture(figures["bars"], "R squared, with intervals")]
    for level, title in LEVELS.items():
        head, rows = before_and_after(result, level)
        if rows:
            parts += [f"<h2>{escape(title)}</h2>", table(head, rows)]
    parts += [f'<p class="soft">{escape(NOTE)}</p>', "<h2>Words</h2>"]
    for name, method in result.points:
        parts.append(f"<h3>{escape(f'{METHOD_TITLES[method]}, {name}')}</h3>")
        figure = figures[f"scatter-{name}-{method}"]
        parts.append(picture(figure, "weight against information"))
    if len(result.encoders) > 1:
        parts.append(words_section(result))
    if not result.static:
        parts.append(sentences_section(result))
    parts += ["<h2>By frequency</h2>", bands_table(result)]
    parts += ["<h2>Words of the sentences that the corpus lacks</h2>", coverage_table(result)]
    return document("Do these encoders weight informative words?", parts, STYLE)


NOTE = (
    "β is in relative weight (1 is an even share of the sentence) per nat, with a standard error "
    "that is robust against sentences as clusters. Partial R² is what information adds to "
    "self-information. The change has the 95 % interval of a bootstrap in which the same sentences "
    "were drawn for both encoders. Raw information gain of rare words is biased upwards, and so is "
    "its correlation with self-information."
)


def about(result: Study) -> str:
    """What was looked at."""
    encoders = "; ".join(f"{name}: {model}" for name, model in result.encoders.items())
    return (
        f"{encoders}. Corpus: {result.table.tokens:,} tokens in {result.table.sentences:,} "
        f"sentences, {len(result.table):,} words with a count of {result.options.min_count} or "
        "more."
    )


def words_section(result: Study) -> str:
    """The words whose weight changed most."""
    up, down = moved(result, MOVED)
    head = ["word", *result.encoders]
    sides = (
        f"<div><h3>{title}</h3>"
        + table(head, [[word, f"{first:.2f}", f"{last:.2f}"] for word, first, last in side])
        + "</div>"
        for title, side in (("risen", up), ("fallen", down))
    )
    return f'<h2>Words whose weight changed most</h2><div class="two">{"".join(sides)}</div>'


def sentences_section(result: Study) -> str:
    """Some sentences, shaded by weight."""
    (name, method), points = next(iter(result.points.items()))
    texts = result.sentences[name, method]
    legend = (
        f"Shaded by weight ({METHOD_TITLES[method]}), the even share faintly, {FULL:g} times as "
        "much most. Words that the corpus lacks are not shaded."
    )
    parts = [f"<h2>Sentences</h2><p>{escape(legend)}</p>"]
    words = [words_of(text) for text in texts]
    fitting = [row for row, own in enumerate(words) if LENGTHS[0] <= len(own) <= LENGTHS[1]]
    vocabulary = result.table.column("word")
    for row in np.random.default_rng(0).permutation(fitting)[:SHOWN].tolist():
        here = points.sentence == row
        for encoder, weight in points.weights.items():
            # Of a word that stands there twice, the later one's weight.
            by_word = dict(zip(vocabulary[points.row[here]], weight[here], strict=True))
            shaded = "".join(shades(texts[row], by_word))
            parts.append(f'<p class="text"><span class="soft">{encoder}</span> {shaded}</p>')
    return "".join(parts)


def shades(text: str, weights: dict[str, float]) -> Iterator[str]:
    """A sentence in pieces."""
    end = 0
    for word in words_of(text):
        yield escape(text[end : word.start])
        weight = weights.get(word.text)
        own = escape(text[word.start : word.end])
        if weight is None:
            yield own
        else:
            depth = min(max(weight, 0) / FULL, 1)
            yield f'<span class="w" style="--a:{depth:.2f}" title="{weight:.2f}">{own}</span>'
        end = word.end
    yield escape(text[end:])


def bands_table(result: Study) -> str:
    """R squared by powers of ten of the words' counts."""
    level = WORD if result.static else OCCURRENCE
    head = ["sentences", "method", "count of the word", "quantity", "points"]
    head += [f"R² {name}" for name in result.encoders]
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in result.select(level=level):
        if row["encoder"] in result.encoders:
            key = row["set"], METHOD_TITLES[row["method"]], row["band"], row["quantity"]
            lines.setdefault(key, [f"{row['points']:,}"])
            told = "too few points" if "note" in row else f"{row['r_squared']:.3f}"
            lines[key].append(told)
    return table(head, [[*key, *values] for key, values in lines.items()])


def coverage_table(result: Study) -> str:
    """What became of the words of each set."""
    head = ["sentences", "method", "", "words", "known to the corpus", "points", "unknown"]
    rows = [
        [
            *(one["set"], METHOD_TITLES[one["method"]], ""),
            *(f"{one[name]:,}" for name in ("words", "known", "points")),
            f"{100 * one['unknown_share']:.1f} %",
        ]
        for one in result.coverage
    ]
    return table(head, rows)
