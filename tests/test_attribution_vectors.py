"""P, tokens x dimensions: forward mode by hand and by torch.func against reverse mode."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

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
    module_of,
    named_baseline,
    pair_of,
    parts_of,
    sentence_transformer,
    tokenizer_of,
)
from numpy.testing import assert_allclose
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Normalize,
    Pooling,
    WeightedLayerPooling,
)
from torch import nn

from simcse_fast.attribution import integrated_gradients
from simcse_fast.attribution.baselines import read_baseline
from simcse_fast.attribution.chunks import Budget
from simcse_fast.attribution.encoder import open_encoder
from simcse_fast.attribution.families import stack_of
from simcse_fast.attribution.path import Path, moving
from simcse_fast.attribution.similarity import token_similarity
from simcse_fast.attribution.tokens import tokenize
from simcse_fast.attribution.vectors import _Slopes
from simcse_fast.kernels.path_integral.quadrature import calibrated, midpoint

pytestmark = pytest.mark.usefixtures("one_thread")

NODES = 2  # few digits in every type; each node is compared by itself
TEXT = TEXTS[1]  # words in pieces
QUERY = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def forward_mode(model, text=TEXT, *, by_hand, special="fixed", tokens=1024, pooling=None):
    """(K, S, D) what tokens add to the slope of every dimension, at full precision."""
    encoder = open_encoder(model, pooling)
    sentences = tokenize(encoder, [text])
    moves = [moving(sentences[0], special)]
    path = Path(encoder, sentences, moves, read_baseline("pad", encoder), Budget(tokens))
    stack = stack_of(encoder.transformer) if by_hand else None
    assert (stack is not None) == by_hand
    with encoder.frozen():
        width = path.ends()[0].shape[1]
        return _Slopes(path, 0, stack, width)(midpoint(NODES).alpha)


def reverse_mode(model, text=TEXT, *, special="fixed", nodes=NODES, pooling=None):
    """The same by one vector-Jacobian product a dimension."""
    parts = parts_of(model, pooling)
    words, start = ends_of(parts, text, named_baseline(parts, "pad"), special)
    found = []
    for node in range(nodes):
        point = (start + (node + 0.5) / nodes * (words - start)).requires_grad_()
        embedding = parts.embed(point)
        rows = [torch.autograd.grad(e, point, retain_graph=True)[0] for e in embedding]
        found.append(torch.stack([((words - start) * row).sum(1) for row in rows], dim=1))
    return torch.stack(found).double().numpy()


def change_of(model, text=TEXT, pooling=None):
    parts = parts_of(model, pooling)
    with torch.no_grad():
        ends = map(parts.embed, ends_of(parts, text, named_baseline(parts, "pad")))
        full, empty = ends
    return (full - empty).double().numpy()


@pytest.mark.parametrize("special", ["fixed", "attributed"])
@pytest.mark.parametrize("family", KNOWN)
def test_by_hand_is_reverse_mode(family, special):
    ours = forward_mode(pair_of(family), by_hand=True, special=special)
    exact = reverse_mode(pair_of(family), special=special)
    assert_allclose(ours, exact, rtol=1e-9, atol=1e-9 * np.abs(exact).max())
    assert np.any(ours[:, 0] != 0) == (special == "attributed")


@pytest.mark.parametrize("family", KNOWN)
def test_by_hand_in_fp32(family):
    ours = forward_mode(pair_of(family, torch.float32), by_hand=True)
    exact = reverse_mode(pair_of(family))
    plain = reverse_mode(pair_of(family, torch.float32))
    # No worse than reverse mode in the same type, but for luck.
    ours, plain = (np.linalg.norm(each - exact) for each in (ours, plain))
    assert ours <= 2 * plain + 1e-7 * np.linalg.norm(exact)


@pytest.mark.parametrize("family", UNKNOWN)
def test_by_torch_func_is_reverse_mode(family):
    ours = forward_mode(pair_of(family), by_hand=False)
    exact = reverse_mode(pair_of(family))
    digits = 1e-6 if family == "modernbert" else 1e-9  # which rotates in fp32
    assert_allclose(ours, exact, rtol=digits, atol=digits * np.abs(exact).max())
    assert stack_of(pair_of(family)[0]) is None


@pytest.mark.parametrize("family", ["bert", "mpnet", "distilbert"])
def test_by_hand_is_torch_func(family):
    ours, theirs = (forward_mode(pair_of(family), by_hand=hand) for hand in (True, False))
    assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param(1, id="a-tangent-at-a-time"),
        pytest.param(17, id="two-of-five"),
        pytest.param(45, id="a-node-at-a-time"),
    ],
)
@pytest.mark.parametrize("by_hand", [True, False], ids=["by-hand", "torch-func"])
def test_small_chunks(by_hand, tokens):
    whole = forward_mode(pair_of(), by_hand=by_hand)
    assert_allclose(
        forward_mode(pair_of(), by_hand=by_hand, tokens=tokens), whole, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["bert", "electra"])
def test_kinds_of_attention(family, attention):
    model = pair_of(family, attn_implementation=attention)
    exact = reverse_mode(pair_of(family))
    assert_allclose(forward_mode(model, by_hand=family == "bert"), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu", "gelu_new", "tanh"])
def test_activations(activation):
    model = pair_of("bert", hidden_act=activation)
    exact = reverse_mode(model)
    assert_allclose(forward_mode(model, by_hand=True), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", ["bert", "electra"])
@pytest.mark.parametrize("with_dense", [False, True], ids=["pooling-alone", "dense-and-normalize"])
def test_poolings(with_dense, family, pooling):
    """What follows the pooling is part of P; a final Normalize is not."""
    tail = [dense(), Normalize()] if with_dense else []
    model = sentence_transformer(*tail, family=family, pooling=pooling)
    exact = reverse_mode(model)
    assert exact.shape[2] == (20 if with_dense else WIDTH)
    ours = forward_mode(model, by_hand=family == "bert")
    assert_allclose(ours, exact, rtol=1e-9, atol=1e-9 * np.abs(exact).max())


def test_several_poolings_side_by_side():
    model = sentence_transformer(pooling=("mean", "max"))
    ours = forward_mode(model, by_hand=True)
    parts = [reverse_mode(sentence_transformer(pooling=mode)) for mode in ("mean", "max")]
    assert_allclose(ours, np.concatenate(parts, axis=2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_dimensions_are_integrated_and_completed_one_by_one(family):
    found = integrated_gradients(
        pair_of(family),
        TEXT,
        target="vector",
        unit="token",
        rule="midpoint",
        steps=4,
        progress=False,
    )
    slopes, change = reverse_mode(pair_of(family), nodes=4), change_of(pair_of(family))
    weight = calibrated(midpoint(4).weight, slopes.sum(1), change)
    exact = (weight[:, None] * slopes).sum(0)
    assert found.vectors[0].dtype == np.float32
    assert_allclose(found.vectors[0], exact, rtol=1e-6, atol=1e-6)
    assert_allclose(found.scores[0], np.linalg.norm(exact, axis=1), rtol=1e-9)
    assert_allclose(found.vectors[0].sum(0), change, rtol=1e-5, atol=1e-5)
    assert found.residual[0] == pytest.approx(0, abs=1e-10)


def test_words_are_sums_of_vectors():
    options = {"target": "vector", "steps": 7, "progress": False}
    words = integrated_gradients(pair_of(), TEXT, **options)
    pieces = integrated_gradients(pair_of(), TEXT, unit="token", **options)
    assert pieces.tokens == [["[CLS]", "quiet", "##ly", "sing", "##ing", "storm", "##s", "[SEP]"]]
    sums = pieces.vectors[0][1:-1].reshape(3, 2, WIDTH).sum(1)
    assert_allclose(words.vectors[0], sums, rtol=1e-5, atol=1e-6)
    assert_allclose(words.scores[0], np.linalg.norm(sums, axis=1), rtol=1e-6)


@pytest.mark.parametrize("unit", ["word", "token"])
def test_token_similarity_adds_up_to_the_changes(unit):
    """sum(A) = a.b - a.r_b - r_a.b + r_a.r_b, as xsbert has it."""
    pairs = [(TEXTS[0], TEXTS[3]), (TEXTS[1], TEXTS[2])]
    options = {"target": "vector", "steps": 7, "unit": unit, "progress": False}
    sides = [integrated_gradients(pair_of(), [p[k] for p in pairs], **options) for k in (0, 1)]
    for found, (a, b) in zip(token_similarity(*sides), pairs, strict=True):
        exact = change_of(pair_of(), a) @ change_of(pair_of(), b)
        assert found.matrix.sum(dtype=np.float64) == pytest.approx(exact, rel=1e-5)


def test_shares_of_a_projection():
    """P q is what each token adds to E . q: exactly where both integrals are."""
    toy = Toy(2), tokenizer_of("bert")
    options = {"unit": "token", "rule": "midpoint", "progress": False}
    rows = integrated_gradients(toy, TEXTS, target="vector", steps=1, **options)
    scores = integrated_gradients(toy, TEXTS, target=QUERY[:6], steps=1, **options)
    for vectors, own in zip(rows.vectors, scores.scores, strict=True):
        assert_allclose(vectors @ QUERY[:6].numpy(), own, rtol=1e-5, atol=1e-5)
    # An encoder needs the nodes: the least change of weights is another for each target.
    rows = integrated_gradients(pair_of(), TEXTS[:3], target="vector", steps=63, **options)
    scores = integrated_gradients(pair_of(), TEXTS[:3], target=QUERY, steps=63, **options)
    for vectors, own in zip(rows.vectors, scores.scores, strict=True):
        off = np.linalg.norm(vectors @ QUERY.numpy() - own) / np.linalg.norm(own)
        assert off <= 0.01


class Adapted(nn.Linear):
    """More than its weight, as adapters are."""

    def forward(self, given):
        return super().forward(given) + 0.5 * given.roll(1, -1).sin()


@pytest.mark.parametrize(
    "place",
    ["encoder.layer.0.attention.self.query", "encoder.layer.1.attention.output.dense"],
    ids=["query", "output"],
)
def test_layers_that_were_replaced_are_not_taken_for_known(place):
    transformer = copy.deepcopy(pair_of()[0])
    old = transformer.get_submodule(place)
    new = Adapted(WIDTH, WIDTH, dtype=torch.float64)
    new.load_state_dict(old.state_dict())
    transformer.set_submodule(place, new)
    model = transformer.eval(), tokenizer_of("bert")
    assert stack_of(pair_of()[0]) is not None
    assert stack_of(transformer) is None
    exact = reverse_mode(model)
    assert_allclose(forward_mode(model, by_hand=False), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["forward-hook", "norm", "subclass", "decoder"])
def test_models_that_were_changed_are_not_taken_for_known(kind):
    transformer = copy.deepcopy(pair_of()[0])
    layer = transformer.encoder.layer[0]
    if kind == "forward-hook":  # as steering vectors and some adapters are put in
        layer.output.dense.register_forward_hook(lambda _m, _i, out: 2 * out)
    elif kind == "norm":
        layer.output.LayerNorm = nn.RMSNorm(WIDTH, dtype=torch.float64)
    elif kind == "subclass":
        transformer.__class__ = type("BertModel", (type(transformer),), {"__module__": "mine"})
    else:
        transformer.config.is_decoder = True
    assert stack_of(transformer) is None


def test_no_words():
    found = integrated_gradients(pair_of(), ["", TEXT], target="vector", steps=3, progress=False)
    assert found.vectors[0].shape == (0, WIDTH)
    assert found.residual[0] == 0
    alone = integrated_gradients(pair_of(), TEXT, target="vector", steps=3, progress=False)
    assert_allclose(found.vectors[1], alone.vectors[0], rtol=1e-6, atol=1e-6)


def test_poolings_over_layers():
    """They take the states of every layer, of which P by hand knows the last."""
    module = copy.deepcopy(module_of("bert", torch.float64))
    module.model.config.output_hidden_states = True
    pool = WeightedLayerPooling(WIDTH, num_hidden_layers=2, layer_start=1)
    model = SentenceTransformer(modules=[module, pool, Pooling(WIDTH)], device="cpu").double()
    options = {"steps": 63, "unit": "token", "progress": False}
    found = integrated_gradients(model, TEXT, target="vector", **options)
    product = integrated_gradients(model, TEXT, target=QUERY, **options)
    plain = integrated_gradients(pair_of(), TEXT, target=QUERY, **options)
    assert_allclose(found.vectors[0] @ QUERY.numpy(), product.scores[0], rtol=1e-4, atol=1e-4)
    assert abs(plain.scores[0] - product.scores[0]).max() > 0.1  # the layers do matter
