"""Scores of Integrated Gradients against closed forms, a written-out loop, and captum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("sentence_transformers", reason="needs the extra encoders")

from attribution_models import (
    KNOWN,
    POOLINGS,
    TEXTS,
    UNKNOWN,
    WIDTH,
    Toy,
    dense,
    ends_of,
    looks,
    named_baseline,
    pair_of,
    parts_of,
    sentence_transformer,
    tokenizer_of,
    written_out,
)
from numpy.testing import assert_allclose
from sentence_transformers.sentence_transformer.modules import Normalize

from simcse_fast.attribution import integrated_gradients
from simcse_fast.attribution.baselines import read_baseline
from simcse_fast.attribution.encoder import open_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

SOME = [TEXTS[0], TEXTS[2], TEXTS[5]]  # six words, one word, a word in pieces and an unknown one
NODES = 8  # its midpoints have few digits in every type
MIDPOINT = {"rule": "midpoint", "steps": NODES, "progress": False}


def vectors(rows=None, width=WIDTH):
    shape = (width,) if rows is None else (rows, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def bent(embeddings):
    """A callable of the user's."""
    return embeddings.square().sum(-1) + (3 * embeddings[:, 0]).sin()


def whole(parts, text):
    words, _ = ends_of(parts, text, 0.0)
    with torch.no_grad():
        return parts.embed(words)


def cosine(a, b):
    return a @ b / a.norm() / b.norm()


# Target as the user gives it, and the same written out of (parts, embedding, number of sentence).
TARGETS = [
    pytest.param("self", lambda p, e, n: cosine(e, whole(p, SOME[n])), id="self"),
    pytest.param("norm", lambda _p, e, _n: e.square().sum().sqrt(), id="norm"),
    pytest.param(vectors(), lambda p, e, _n: p.finish(e) @ vectors(), id="vector-for-all"),
    pytest.param(vectors(3), lambda p, e, n: p.finish(e) @ vectors(3)[n], id="vector-each"),
    pytest.param(TEXTS[3], lambda p, e, _: cosine(e, whole(p, TEXTS[3])), id="sentence-for-all"),
    pytest.param(
        TEXTS[3:6], lambda p, e, n: cosine(e, whole(p, TEXTS[3:6][n])), id="sentence-each"
    ),
    pytest.param(bent, lambda p, e, _n: bent(p.finish(e)[None])[0], id="callable"),
]
OTHERS = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)
BASELINES = ["pad", "mask", "zero", "mean", pytest.param(OTHERS, id="tensor")]


def check_written_out(found, model, value, texts, baseline="pad", pooling=None, special="fixed"):
    """Every score to fp64's precision, at the same nodes; `value` of (embedding, number)."""
    parts = parts_of(model, pooling)
    for n, text in enumerate(texts):
        ends = ends_of(parts, text, named_baseline(parts, baseline), special)
        exact = written_out(parts.embed, lambda e, n=n: value(parts, e, n), *ends, NODES)
        assert_allclose(found.scores[n], exact, rtol=1e-9, atol=1e-12)
        with torch.no_grad():
            values = [float(value(parts, parts.embed(end), n)) for end in ends]
        assert [found.values[n], found.baseline_values[n]] == pytest.approx(values, rel=1e-12)


@pytest.mark.parametrize(
    ("rule", "steps"),
    # One node suffices for a constant slope. Lines need no more than Gauss-Legendre's one or
    # midpoint's any; "mapped" is made exact for the target, whose slope all tokens share here.
    [("midpoint", 1), ("midpoint", 7), ("gausslegendre", 1), ("mapped", 15), ("mapped", "auto")],
)
@pytest.mark.parametrize("degree", [1, 2], ids=["linear", "quadratic"])
def test_closed_forms(degree, rule, steps):
    toy = Toy(degree)
    query = torch.tensor([0.5, 0, 0, -2.0, 0, 0]).double() if degree == 1 else torch.eye(6)[2]
    found = integrated_gradients(
        (toy, tokenizer_of("bert")),
        TEXTS,
        target=query.double(),
        unit="token",
        rule=rule,
        steps=steps,
        progress=False,
    )
    parts = parts_of((toy, tokenizer_of("bert")))
    for n, text in enumerate(TEXTS):
        x, b = ends_of(parts, text, named_baseline(parts, "pad"))
        with torch.no_grad():
            moved, ends = toy.map(x - b), toy.map(x).sum(0) + toy.map(b).sum(0)
        exact = moved @ query.double() / len(x) if degree == 1 else moved[:, 2] * ends[2]
        assert_allclose(found.scores[n], exact, rtol=1e-9, atol=1e-12)
        assert found.residual[n] == pytest.approx(0, abs=1e-12)
    if steps == "auto":
        assert set(found.steps) == {31}  # no sentence needs more
        assert_allclose(found.errors, 0, atol=1e-7)


def test_vector_targets_have_closed_forms():
    """Dimensions of the quadratic toy differ in slope: each is made exact by itself."""
    toy = Toy(2)
    found = integrated_gradients(
        (toy, tokenizer_of("bert")), TEXTS, target="vector", unit="token", progress=False
    )
    parts = parts_of((toy, tokenizer_of("bert")))
    for n, text in enumerate(TEXTS):
        x, b = ends_of(parts, text, named_baseline(parts, "pad"))
        with torch.no_grad():
            exact = toy.map(x - b) * (toy.map(x).sum(0) + toy.map(b).sum(0))
        assert_allclose(found.vectors[n], exact, rtol=1e-6, atol=1e-6)  # kept in fp32
        assert_allclose(found.scores[n], exact.norm(dim=1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("target", "value"), TARGETS)
@pytest.mark.parametrize("normalizes", [False, True], ids=["pair", "ends-in-normalize"])
def test_targets(normalizes, target, value):
    model = sentence_transformer(Normalize()) if normalizes else pair_of()
    found = integrated_gradients(model, SOME, target=target, unit="token", **MIDPOINT)
    check_written_out(found, model, value, SOME)
    assert len(found) == 3
    assert list(found.steps) == [NODES] * 3
    assert np.isnan(found.errors).all()  # no second rule at hand


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_baselines(family, baseline):
    found = integrated_gradients(
        pair_of(family), SOME, target=vectors(), baseline=baseline, unit="token", **MIDPOINT
    )
    check_written_out(found, pair_of(family), TARGETS[2].values[1], SOME, baseline)


def test_the_mean_is_of_words_as_they_are_looked_up():
    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 5 * super().forward(ids)

    toy = Toy(1)
    toy.words.__class__ = Scaled
    found = read_baseline("mean", open_encoder((toy, tokenizer_of("bert")), None))
    assert_allclose(found, 5 * toy.words.weight.detach().mean(0), rtol=1e-12)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("with_dense", [False, True], ids=["pair", "with-dense-and-normalize"])
def test_poolings(with_dense, pooling):
    query = vectors(width=20) if with_dense else vectors()
    model = sentence_transformer(dense(), Normalize(), pooling=pooling) if with_dense else pair_of()
    own = {} if with_dense else {"pooling": pooling}
    found = integrated_gradients(model, SOME, target=query, unit="token", **MIDPOINT, **own)
    check_written_out(found, model, lambda p, e, _n: p.finish(e) @ query, SOME, **own)


@pytest.mark.parametrize("special", ["fixed", "attributed"])
@pytest.mark.parametrize("family", KNOWN + UNKNOWN)
def test_families_and_special_tokens(family, special):
    found = integrated_gradients(
        pair_of(family), SOME, unit="token", special_tokens=special, **MIDPOINT
    )
    check_written_out(found, pair_of(family), TARGETS[0].values[1], SOME, special=special)
    ends = [score for own in found.scores for score in (own[0], own[-1])]
    assert all(score == 0 for score in ends) == (special == "fixed")


def test_places_are_as_exact_as_the_model():
    """Seven midpoints have no short binary form: in fp64 they must not be rounded to fp32."""
    found = integrated_gradients(
        pair_of(), SOME, unit="token", rule="midpoint", steps=7, progress=False
    )
    parts = parts_of(pair_of())
    for n, text in enumerate(SOME):
        ends = ends_of(parts, text, named_baseline(parts, "pad"))
        full = whole(parts, text)
        exact = written_out(parts.embed, lambda e, full=full: cosine(e, full), *ends, 7)
        assert_allclose(found.scores[n], exact, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("unit", ["word", "token"])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "modernbert"])
def test_words_are_sums_of_their_pieces(family, unit):
    found = integrated_gradients(pair_of(family), TEXTS, unit=unit, **MIDPOINT)
    pieces = integrated_gradients(pair_of(family), TEXTS, unit="token", **MIDPOINT)
    assert found.unit == unit
    for n, text in enumerate(TEXTS):
        code = tokenizer_of(family)(text)
        numbers = code.word_ids()
        assert pieces.tokens[n] == code.tokens()
        if unit == "token":
            continue
        sums = [
            sum(score for score, own in zip(pieces.scores[n], numbers, strict=True) if own == word)
            for word in range(max(x for x in numbers if x is not None) + 1)
        ]
        assert_allclose(found.scores[n], sums, rtol=1e-12, atol=1e-15)
        assert found.tokens[n] == [text[start:end] for start, end in found.spans[n]]
        # What the tokenizer calls a word begins and ends with a letter or a mark, not in a gap.
        assert "".join(found.tokens[n]) == text.replace(" ", "")


def test_pieces_that_are_only_a_gap_belong_to_their_word():
    """RoBERTa writes " 42" as a gap and two digits; the gap's offsets are empty."""
    model, text = pair_of("roberta"), "a 42 cat"
    pieces = tokenizer_of("roberta")(text).tokens()
    assert pieces == ["<s>", "a", "\u0120", "4", "2", "\u0120cat", "</s>"]
    found = integrated_gradients(model, text, target="norm", unit="token", **MIDPOINT)
    check_written_out(found, model, TARGETS[1].values[1], [text])
    words = integrated_gradients(model, text, target="norm", **MIDPOINT)
    assert words.tokens == [["a", "42", "cat"]]
    assert words.scores[0].sum() == pytest.approx(found.scores[0].sum())


def test_words_by_hand():
    found = integrated_gradients(pair_of(), "Quietly, a zebra  runs!", **MIDPOINT)
    assert found.tokens == [["Quietly", ",", "a", "zebra", "runs", "!"]]
    assert found.spans == [[(0, 7), (7, 8), (9, 10), (11, 16), (18, 22), (22, 23)]]
    listed = integrated_gradients(pair_of(), "a singing zebra", unit="token", **MIDPOINT)
    assert listed.tokens == [["[CLS]", "a", "sing", "##ing", "[UNK]", "[SEP]"]]
    assert listed.spans == [[(0, 0), (0, 1), (2, 6), (6, 9), (10, 15), (0, 0)]]


@pytest.mark.parametrize("target", ["self", "norm", "vector", TEXTS[3]], ids=str)
def test_auto_against_255_nodes(target):
    """True errors are about the tolerance at most, and estimated ones cover most of them."""
    covered, true = [], []
    for family in ("bert", "mpnet", "distilbert")[
        : 2 if target == "vector" else 3
    ]:  # so that no single shape of path decides
        options = {"target": target, "unit": "token", "progress": False}
        found = integrated_gradients(pair_of(family), TEXTS, **options)
        exact = integrated_gradients(pair_of(family), TEXTS, rule="midpoint", steps=255, **options)
        kind = "vectors" if target == "vector" else "scores"
        for ours, right, told in zip(
            getattr(found, kind), getattr(exact, kind), found.errors, strict=True
        ):
            true.append(np.linalg.norm(ours - right) / np.linalg.norm(right))
            covered.append(true[-1] <= told + 1e-4)  # what 255 nodes are off themselves
        assert (found.errors <= 0.01).all()
        assert set(found.steps) <= {23, 31, 47, 63, 95, 127, 191, 255}
    assert np.quantile(true, 0.9) <= 0.01
    assert max(true) <= 0.03
    assert np.mean(covered) >= 0.75


def test_255_nodes_are_the_written_out_integral():
    text = TEXTS[0]
    found = integrated_gradients(
        pair_of(), text, unit="token", rule="midpoint", steps=255, progress=False
    )
    parts = parts_of(pair_of())
    ends = ends_of(parts, text, named_baseline(parts, "pad"))
    full = whole(parts, text)
    slopes = looks(parts.embed, lambda e: cosine(e, full), *ends, 255)
    # Uncalibrated, which at so many nodes makes no difference.
    assert_allclose(found.scores[0], slopes.mean(0), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["mapped", "midpoint", "gausslegendre"])
@pytest.mark.parametrize("target", ["self", "norm", "vector"])
def test_completeness(target, rule):
    found = integrated_gradients(
        pair_of(), TEXTS, target=target, rule=rule, steps=15, unit="token", progress=False
    )
    assert_allclose(found.residual, 0, atol=1e-10)
    parts = parts_of(pair_of())
    for n, text in enumerate(TEXTS):
        with torch.no_grad():
            full, empty = map(parts.embed, ends_of(parts, text, named_baseline(parts, "pad")))
        if target == "vector":
            assert_allclose(found.vectors[n].sum(0), full - empty, atol=2e-6)
            assert found.values[n] == pytest.approx(float(full.norm()))
            assert found.baseline_values[n] == pytest.approx(float(empty.norm()))
            continue
        ends = [
            F.cosine_similarity(e, full, dim=0) if target == "self" else e.norm()
            for e in (full, empty)
        ]
        assert found.scores[n].sum() == pytest.approx(float(ends[0] - ends[1]), abs=1e-10)


@pytest.mark.parametrize("target", ["self", "norm", "product"])
def test_captum(target):
    attr = pytest.importorskip("captum.attr")
    model, text = pair_of("distilbert"), TEXTS[5]
    parts = parts_of(model)
    # Converged on both sides, so that the exactness of neither rule plays a part.
    found = integrated_gradients(
        model,
        text,
        target=vectors() if target == "product" else target,
        unit="token",
        rule="gausslegendre",
        steps=100,
        progress=False,
    )
    words, start = ends_of(parts, text, named_baseline(parts, "pad"))
    full = whole(parts, text)
    value = {
        "self": lambda e: F.cosine_similarity(e, full[None]),
        "norm": lambda e: e.norm(dim=1),
        "product": lambda e: e @ vectors(),
    }[target]
    theirs = attr.IntegratedGradients(
        lambda rows: value(model[0](inputs_embeds=rows).last_hidden_state.mean(1))
    ).attribute(words[None], start[None], n_steps=500, method="gausslegendre")
    # captum rounds its weights to fp32
    assert_allclose(found.scores[0], theirs[0].sum(1).detach(), rtol=1e-5, atol=1e-6)
