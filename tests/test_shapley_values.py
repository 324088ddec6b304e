"""Shapley values of sentences: what each masking shows the model, against rows made by hand."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra encoders")

from attribution_models import (
    POOLINGS,
    TEXTS,
    WIDTH,
    dense,
    named_baseline,
    pair_of,
    parts_of,
    pooled,
    sentence_transformer,
    tokenizer_of,
)
from numpy.testing import assert_allclose, assert_array_equal
from sentence_transformers.sentence_transformer.modules import Normalize
from test_shapley import by_all_orders

from simcse_fast.attribution import shapley_values

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = {"progress": False}
QUERY = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
LONG = "the old dog chased the quick cat over the very large green river and a bird"  # 16 words
MASKINGS = ["mask", "pad", "delete", "attention"]
# A word in pieces; a word twice; a single word.
GAMES = ["a singing zebra", "the cat, the dog", "storm"]


def embedding_by_hand(model, text, present, masking, pooling="mean", unit="word"):
    """(D,) with only some of the words there."""
    parts = parts_of(model)
    code = parts.tokenizer(text)
    ids, numbers = torch.tensor(code["input_ids"]), code.word_ids()
    if unit == "token":
        numbers = [None, *range(len(ids) - 2), None]
    keep = torch.tensor([number is None or number in present for number in numbers])
    if masking == "delete":
        ids, keep = ids[keep], keep[keep]
    words = parts.table(ids)
    if masking in {"mask", "pad"}:
        words = torch.where(keep[:, None], words, named_baseline(parts, masking))
        keep = torch.ones_like(keep)
    with torch.no_grad():
        out = model[0](inputs_embeds=words[None], attention_mask=keep[None].long())
        return pooled(out.last_hidden_state[0][keep], pooling)


def scores_by_hand(model, text, value, words, masking, **options):
    return by_all_orders(
        words,
        lambda some: float(value(embedding_by_hand(model, text, some, masking, **options))),
    )


def cosine(a, b):
    return a @ b / a.norm() / b.norm()


@pytest.mark.parametrize("text", GAMES)
@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_maskings(family, masking, text):
    model = pair_of(family)
    found = shapley_values(model, text, masking=masking, **QUIET)
    words = len(found.tokens[0])
    full = embedding_by_hand(model, text, set(range(words)), masking)
    empty = embedding_by_hand(model, text, set(), masking)
    exact = scores_by_hand(model, text, lambda e: cosine(e, full), words, masking)
    assert_allclose(found.scores[0], exact, rtol=1e-9, atol=1e-12)
    assert found.values[0] == pytest.approx(1, abs=1e-12)
    assert found.baseline_values[0] == pytest.approx(float(cosine(empty, full)), rel=1e-10)
    assert found.residual[0] == pytest.approx(0, abs=1e-12)
    assert (found.steps[0], found.errors[0]) == (2**words, 0)
    assert (found.method, found.unit, found.target) == ("Shapley values", "word", "self")


@pytest.mark.parametrize(
    ("masking", "pooling"),
    # Under "attention" weightedmean goes by the places of all words, seen or not: left out.
    [
        (masking, pooling)
        for masking in ("mask", "delete", "attention")
        for pooling in POOLINGS
        if (masking, pooling) != ("attention", "weightedmean")
    ],
)
def test_poolings(masking, pooling):
    """Under "attention" a word that is not seen is not pooled either."""
    model, text = pair_of(), GAMES[0]
    found = shapley_values(model, text, target="norm", masking=masking, pooling=pooling, **QUIET)
    exact = scores_by_hand(model, text, lambda e: e.norm(), 3, masking, pooling=pooling)
    assert_allclose(found.scores[0], exact, rtol=1e-9, atol=1e-12)


def test_tokens():
    text = GAMES[0]
    found = shapley_values(pair_of(), text, target=QUERY, unit="token", **QUIET)
    assert found.tokens[0] == ["[CLS]", "a", "sing", "##ing", "[UNK]", "[SEP]"]
    exact = scores_by_hand(pair_of(), text, lambda e: e @ QUERY, 4, "mask", unit="token")
    assert_allclose(found.scores[0], [0, *exact, 0], rtol=1e-9, atol=1e-12)
    assert found.steps[0] == 16


@pytest.mark.parametrize("masking", MASKINGS)
def test_words_alike_have_alike_values_without_positions(masking):
    """Deleted words leave no place behind: of equal neighbours all orders are one text."""
    found = shapley_values(pair_of(), "cat cat cat", masking=masking, **QUIET)
    if masking == "delete":
        assert_allclose(found.scores[0], found.scores[0].mean(), rtol=1e-12)
    assert found.scores[0].sum() == pytest.approx(1 - found.baseline_values[0], rel=1e-12)


def test_deleted_sets_that_are_one_text_are_encoded_once():
    transformer = copy.deepcopy(pair_of()[0])
    rows = []
    transformer.register_forward_pre_hook(
        lambda _m, _a, given: rows.append(len(given["inputs_embeds"])), with_kwargs=True
    )
    model = transformer, tokenizer_of("bert")
    shapley_values(model, "cat cat cat", masking="delete", **QUIET)
    assert sum(rows) == 1 + 4  # the whole; no cat, one, two, three
    rows.clear()
    shapley_values(model, "cat cat cat", masking="mask", **QUIET)
    assert sum(rows) == 1 + 8


@pytest.mark.parametrize("text", [GAMES[1], LONG], ids=["exact", "sampled"])
def test_vectors_serve_every_projection(text):
    model = sentence_transformer(dense(), Normalize())
    rows = shapley_values(model, text, target="vector", samples=64, **QUIET)
    norm = shapley_values(model, text, target="norm", samples=64, **QUIET)
    assert rows.values[0] == pytest.approx(norm.values[0], rel=1e-12)
    assert_allclose(rows.scores[0], np.linalg.norm(rows.vectors[0], axis=1), rtol=1e-6)
    model = pair_of()  # whose embeddings are not normalised: projections are linear in them
    rows = shapley_values(model, text, target="vector", samples=64, **QUIET)
    for query in (QUERY, torch.eye(WIDTH, dtype=torch.float64)[5]):
        own = shapley_values(model, text, target=query, samples=64, **QUIET)
        assert_allclose(rows.vectors[0] @ query.numpy(), own.scores[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "value"),
    [
        pytest.param("norm", lambda e: e.norm(), id="norm"),
        pytest.param(TEXTS[1], None, id="sentence"),
        pytest.param(lambda rows: rows.square().sum(1), lambda e: e.square().sum(), id="callable"),
    ],
)
def test_targets(target, value):
    if value is None:
        other = embedding_by_hand(pair_of(), TEXTS[1], {0, 1, 2}, "mask")
        value = lambda e: cosine(e, other)  # noqa: E731
    found = shapley_values(pair_of(), GAMES, target=target, **QUIET)
    for text, scores in zip(GAMES, found.scores, strict=True):
        exact = scores_by_hand(pair_of(), text, value, len(scores), "mask")
        assert_allclose(scores, exact, rtol=1e-9, atol=1e-12)


def test_a_vector_for_each_sentence():
    queries = torch.stack([QUERY, -QUERY, QUERY.roll(1)])
    found = shapley_values(pair_of(), GAMES, target=queries, **QUIET)
    for n, text in enumerate(GAMES):
        own = shapley_values(pair_of(), text, target=queries[n], **QUIET)
        assert_allclose(found.scores[n], own.scores[0], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("masking", MASKINGS)
def test_no_words_and_one(masking):
    found = shapley_values(pair_of(), ["", "storm", "  "], masking=masking, **QUIET)
    assert found.tokens == [[], ["storm"], []]
    assert [len(own) for own in found.scores] == [0, 1, 0]
    assert list(found.steps) == [1, 2, 1]
    assert_allclose(found.residual, 0, atol=1e-12)
    assert_allclose(found.errors, 0, atol=0)
    assert found.scores[1][0] == pytest.approx(1 - found.baseline_values[1], rel=1e-10)
    for empty in (0, 2):
        assert found.values[empty] == found.baseline_values[empty] == pytest.approx(1)


@pytest.mark.parametrize("masking", MASKINGS)
def test_batches_are_their_sentences(masking):
    options = {"samples": 40, "masking": masking, "progress": False}
    together = shapley_values(pair_of(), [*TEXTS[:4], LONG], **options)
    small = shapley_values(pair_of(), [*TEXTS[:4], LONG], batch_tokens=1, **options)
    for n, text in enumerate([*TEXTS[:4], LONG]):
        alone = shapley_values(pair_of(), text, **options)
        for one in (together, small):
            assert_allclose(one.scores[n], alone.scores[0], rtol=1e-9, atol=1e-11)
            assert one.steps[n] == alone.steps[0]


def test_samples():
    looks = {}
    for samples in (2, 18, 40, "auto", 100):
        found = shapley_values(pair_of(), [LONG, TEXTS[2]], samples=samples, seed=1, **QUIET)
        looks[samples] = found
        assert list(found.steps) == [512 if samples == "auto" else samples, 2]
        assert found.scores[0].sum() == pytest.approx(
            found.values[0] - found.baseline_values[0], abs=1e-9
        )
        assert found.errors[0] > 0
        assert found.errors[1] == 0
    assert looks[2].errors[0] > looks[40].errors[0] > looks["auto"].errors[0]
    # Six words: "auto" takes all 64 sets, and so does any number they fit in.
    exact = shapley_values(pair_of(), TEXTS[0], samples="exact", **QUIET)
    for samples in ("auto", 64, 1000):
        found = shapley_values(pair_of(), TEXTS[0], samples=samples, **QUIET)
        assert_array_equal(found.scores[0], exact.scores[0])
        assert found.steps[0] == 64
    # What is reported covers what is wrong, in two standard deviations.
    for samples in (14, 24, 48):
        found = shapley_values(pair_of(), TEXTS[0], samples=samples, **QUIET)
        off = np.linalg.norm(found.scores[0] - exact.scores[0])
        assert off <= 2 * found.errors[0] * np.linalg.norm(found.scores[0])


def test_seeds():
    runs = [
        shapley_values(pair_of(), LONG, samples=50, seed=seed, **QUIET).scores[0]
        for seed in (0, 0, 1)
    ]
    assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 1e-6


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_of_autograd_and_training_change_nothing(mode):
    exact = shapley_values(pair_of(), GAMES, **QUIET)
    model = copy.deepcopy(pair_of("bert", dropout=0.5)[0]).train()
    before = [module.training for module in model.modules()]
    with mode():
        found = shapley_values((model, tokenizer_of("bert")), GAMES, **QUIET)
    assert [module.training for module in model.modules()] == before
    for ours, theirs in zip(found.scores, exact.scores, strict=True):
        assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("masking", MASKINGS)
def test_a_default_prompt_is_always_there(masking):
    model = sentence_transformer(
        Normalize(), prompts={"q": "query : "}, default_prompt_name="q", include_prompt=False
    )
    found = shapley_values(model, GAMES[0], target=QUERY, masking=masking, **QUIET)
    assert found.tokens == [["a", "singing", "zebra"]]
    own = model.encode(GAMES[0], convert_to_tensor=True)
    assert found.values[0] == pytest.approx(float(own @ QUERY), rel=1e-9)
    assert found.residual[0] == pytest.approx(0, abs=1e-12)


def test_all_sets_of_words_are_asked_for():
    """Counted without the model: the masks that the transformer sees under "attention"."""
    transformer, seen = copy.deepcopy(pair_of()[0]), set()

    def note(_module, _arguments, given):
        mask, width = given["attention_mask"], given["inputs_embeds"].shape[1]
        rows = torch.ones(1, width).long() if mask is None else mask
        seen.update(tuple(row[1:4].tolist()) for row in rows)

    transformer.register_forward_pre_hook(note, with_kwargs=True)
    shapley_values((transformer, tokenizer_of("bert")), "a cat jumps", masking="attention", **QUIET)
    assert seen == set(itertools.product((0, 1), repeat=3))
