"""Sentences without words and too long ones, and memory that does not suffice."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra encoders")

from attribution_models import POSITIONS, TEXTS, Toy, pair_of, tokenizer_of
from numpy.testing import assert_allclose
from test_attribution_errors import METHODS, attribute

from simcse_fast.attribution import integrated_gradients, shapley_values, vectors
from simcse_fast.attribution.chunks import Budget, in_chunks
from simcse_fast.attribution.encoder import Encoder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", ["self", "norm", "vector"])
def test_empty_sentences_have_no_scores(method, target):
    texts = ["", "a cat", " \t\n", "storm"]
    found = attribute(method, texts, target=target)
    assert found.tokens == [[], ["a", "cat"], [], ["storm"]]
    assert [len(own) for own in found.scores] == [0, 2, 0, 1]
    for empty in (0, 2):
        assert found.residual[empty] == 0
        assert found.values[empty] == found.baseline_values[empty]
    for full in (1, 3):
        own = attribute(method, texts[full], target=target)
        assert_allclose(found.scores[full], own.scores[0], rtol=1e-7)
    if target != "vector":  # one word: all there is
        change = found.values[3] - found.baseline_values[3]
        assert found.scores[3][0] == pytest.approx(change, rel=1e-10)
    listed = attribute(method, [""], target=target, unit="token")
    assert listed.tokens == [["[CLS]", "[SEP]"]]
    assert listed.scores[0].tolist() == [0, 0]


@pytest.mark.parametrize("method", METHODS)
def test_empty_sentences_without_special_tokens(method):
    """Then not one token is left, and no model takes that."""
    model = Toy(1), tokenizer_of("bert", special_tokens=False)
    options = {"masking": "pad"} if method is shapley_values else {}
    found = attribute(method, ["", "a cat"], model=model, target="norm", **options)
    assert found.tokens == [[], ["a", "cat"]]
    assert len(found.scores[0]) == 0
    assert found.residual[1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_long_sentences_are_cut_and_counted(method, family):
    long = " ".join(["cat"] * 60)
    texts = [long, "the dog", long + " bird"]
    with pytest.warns(
        UserWarning, match=r"2 of 3 sentences are longer than the model's 40 tok"
    ) as w:
        found = attribute(method, texts, model=pair_of(family), target="norm")
    assert len(w) == 1
    assert w[0].filename == __file__  # where the user called
    assert [len(own) for own in found.scores][1] == 2
    assert len(found.scores[0]) == len(found.scores[2]) <= POSITIONS - 2
    assert found.tokens[0][0] == "cat"
    assert found.spans[0][-1][1] < len(long)
    assert_allclose(found.scores[0], found.scores[2], rtol=1e-9)
    assert_allclose(found.residual, 0, atol=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = attribute(method, "the dog", model=pair_of(family), target="norm")
    assert_allclose(found.scores[1], alone.scores[0], rtol=1e-9)


@pytest.fixture
def small_memory(monkeypatch):
    """An encoder that has room for few tokens; returns what the calls were given."""
    calls, plain = [], Encoder.__call__

    def full(self, words, mask, **options):
        calls.append(words.shape[0] * words.shape[1])
        if calls[-1] > full.room:
            raise torch.OutOfMemoryError("no room")
        return plain(self, words, mask, **options)

    monkeypatch.setattr(Encoder, "__call__", full)
    full.calls = calls
    return full


@pytest.mark.parametrize("method", METHODS)
def test_chunks_that_do_not_fit_are_halved(method, small_memory):
    small_memory.room = 10_000
    plain = attribute(method, TEXTS, batch_tokens=1000)
    small_memory.calls.clear()
    small_memory.room = 20
    with pytest.warns(UserWarning, match=r"a chunk of [0-9,]+ tokens did not fit the memory") as w:
        found = attribute(method, TEXTS, batch_tokens=1000)
    failed = [tokens for tokens in small_memory.calls if tokens > 20]
    assert len(failed) == 3  # 96 tokens, 48 and 24; and none afterwards
    assert all(after <= 0.6 * before for before, after in itertools.pairwise(failed))
    for ours, theirs in zip(found.scores, plain.scores, strict=True):
        assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert_allclose(found.residual, 0, atol=1e-9)
    assert len(w) == 1  # said once, however often it was halved


@pytest.mark.parametrize("method", METHODS)
def test_a_row_that_does_not_fit_alone(method, small_memory):
    small_memory.room = 5
    # Its two rows: alone, without warnings, since no half of it is left to try.
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        attribute(method, TEXTS[:1], batch_tokens=1)
    assert small_memory.calls == [9]  # six words, one in two pieces, and two special tokens


@pytest.mark.parametrize("method", METHODS)
def test_other_errors_of_the_model_are_not_taken_for_full_memory(method, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Encoder, "__call__", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        attribute(method)


def test_tangents_that_do_not_fit_are_halved(monkeypatch):
    """Those of one node make a pass: fewer of them are taken at a time."""
    plain = integrated_gradients(pair_of(), TEXTS[:1], target="vector", steps=7, progress=False)
    calls, through = [], vectors.states_and_tangents

    def full(stack, words, ways, places):
        calls.append(len(words) * len(ways))
        if calls[-1] > 3:
            raise torch.OutOfMemoryError("no room")
        return through(stack, words, ways, places)

    monkeypatch.setattr(vectors, "states_and_tangents", full)
    with pytest.warns(UserWarning, match=r"a chunk of [0-9,]+ tokens did not fit the memory"):
        found = integrated_gradients(
            pair_of(), TEXTS[:1], target="vector", steps=7, progress=False, batch_tokens=1000
        )
    assert max(calls) > 3 >= calls[-1]
    assert_allclose(found.vectors[0], plain.vectors[0], rtol=1e-5, atol=1e-7)
    monkeypatch.setattr(vectors, "states_and_tangents", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        integrated_gradients(pair_of(), TEXTS[:1], target="vector", steps=7, progress=False)


def test_chunks_end_where_padding_would_cost_more_than_another_one():
    def chunks_of(lengths, tokens=320):
        found = []
        in_chunks(lengths, Budget(tokens), lambda rows: found.append([lengths[r] for r in rows]))
        return found

    assert chunks_of([7, 8, 7, 8]) == [[8, 8, 7, 7]]
    assert chunks_of([9, 30, 9, 9]) == [[30], [9, 9, 9]]
    assert chunks_of([30, 29, 9]) == [[30, 29], [9]]  # 21 numbers of padding are more than 320 / 16
    assert chunks_of([30, 29, 10]) == [[30, 29, 10]]
    assert chunks_of([160, 160, 160]) == [[160, 160], [160]]
