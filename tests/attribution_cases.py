"""Attributions made by hand, and pages taken apart."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np

from simcse_fast.attribution import Attributions


def spans_of(text, words):
    """Where the words stand, one behind the other."""
    found, end = [], 0
    for word in words:
        start = text.index(word, end)
        end = start + len(word)
        found.append((start, end))
    return found


def attributions(*sentences, unit="word", vectors=None, errors=None):
    """Of (text, tokens, scores); a token that is not in its text is a special one."""
    texts, tokens, scores = (list(column) for column in zip(*sentences, strict=True))
    spans = []
    for text, names in zip(texts, tokens, strict=True):
        own = iter(spans_of(text, [name for name in names if name in text]))
        spans.append([next(own) if name in text else (0, 0) for name in names])
    scores = [np.array(own, np.float64) for own in scores]
    baseline = np.linspace(0.25, 0.5, len(texts))
    return Attributions(
        sentences=texts,
        tokens=tokens,
        spans=spans,
        scores=scores,
        values=np.array([own.sum() for own in scores]) + baseline,
        baseline_values=baseline,
        residual=np.full(len(texts), 1e-17),
        steps=np.arange(15, 15 + len(texts)),
        errors=np.full(len(texts), 0.0042) if errors is None else np.array(errors),
        method="integrated gradients",
        target="self" if vectors is None else "vector",
        unit=unit,
        vectors=vectors,
    )


def with_vectors(text, rows):
    """Attributions of one sentence with these rows of P, from a baseline at the origin."""
    vectors = np.array(rows, np.float32).reshape(-1, 3)
    made = attributions((text, text.split(), np.linalg.norm(vectors, axis=1)), vectors=[vectors])
    return replace(made, values=np.array([np.linalg.norm(vectors.sum(0))], np.float64))


def pair_of_attributions():
    first = with_vectors("<i>red</i> ink", [[1, 0, 0], [0, 2, 0]])
    return first, with_vectors("blue ink here", [[-1, 0, 1], [0, 2, 0], [0.5, 0.5, 0]])


class Reader(HTMLParser):
    """The page as a browser takes it apart."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.inside = [], {"text": [], "facts": []}, None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "p":
            self.inside = attributes.get("class")
            self.texts.get(self.inside, []).append("")

    def handle_endtag(self, tag):
        self.inside = None if tag == "p" else self.inside

    def handle_data(self, data):
        if self.inside in self.texts:
            self.texts[self.inside][-1] += data

    @property
    def words(self):
        return [each for tag, each in self.tags if tag == "span" and "data-tip" in each]


def check_fetches_nothing(page):
    """Nothing but the page itself is ever read."""
    assert page.startswith("<!doctype html>")
    assert not re.search(r"(https?:)?//|url\(|@import|src=|href=", page)
    assert "default-src 'none'" in page
