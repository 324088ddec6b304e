"""Integrated Gradients: what shares a pass, the model's state, its type, modes of autograd."""

from __future__ import annotations

import contextlib
import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra encoders")

from attribution_models import (
    TEXTS,
    WIDTH,
    named_baseline,
    pair_of,
    parts_of,
    sentence_transformer,
    tokenizer_of,
    written_out,
)
from numpy.testing import assert_allclose, assert_array_equal
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import nn

from simcse_fast.attribution import integrated_gradients
from simcse_fast.attribution.steps import Steps, integrate
from simcse_fast.kernels.path_integral.quadrature import RULES

pytestmark = pytest.mark.usefixtures("one_thread")

FIXED = {"steps": 15, "progress": False}
QUIET = {"progress": False}
QUERY = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def assert_same(ours, theirs, rtol):
    """Scores of all sentences, relative to the length of a sentence's scores."""
    for name in ("scores", "vectors"):
        for one, other in zip(getattr(ours, name) or [], getattr(theirs, name) or [], strict=True):
            assert np.linalg.norm(one - other) <= rtol * np.linalg.norm(other)
    assert_allclose(ours.values, theirs.values, rtol=10 * rtol)


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [pytest.param(torch.float64, 1e-10, id="fp64"), pytest.param(torch.float32, 3e-5, id="fp32")],
)
@pytest.mark.parametrize("target", ["self", "norm", "vector"])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_a_batch_is_its_sentences(family, target, dtype, rtol):
    """Padded beside longer ones as alone, where nothing is padded."""
    options = {"target": target, "steps": 7, "unit": "token", "progress": False}
    model, texts = pair_of(family, dtype), TEXTS[:3]
    together = integrated_gradients(model, texts, **options)
    for n, text in enumerate(texts):
        alone = integrated_gradients(model, text, **options)
        assert together.tokens[n] == alone.tokens[0]
        difference = np.linalg.norm(together.scores[n] - alone.scores[0])
        assert difference <= rtol * np.linalg.norm(alone.scores[0])
        if target == "vector":
            assert_allclose(together.vectors[n], alone.vectors[0], rtol=1e-4, atol=1e-5)


def test_results_are_the_same_run_to_run():
    first, second = (integrated_gradients(pair_of(), TEXTS, **QUIET) for _ in range(2))
    for ours, theirs in zip(first.scores, second.scores, strict=True):
        assert_array_equal(ours, theirs)


@pytest.mark.parametrize("target", ["self", "vector"])
@pytest.mark.parametrize(
    "batch_tokens",
    [
        pytest.param(1, id="less-than-a-sentence"),
        pytest.param(13, id="one-sentence"),
        pytest.param(64, id="some"),
    ],
)
def test_small_chunks_change_nothing(batch_tokens, target):
    texts = TEXTS[1:4]
    options = {"target": target, "steps": 7, "progress": False}
    small = integrated_gradients(pair_of(), texts, batch_tokens=batch_tokens, **options)
    large = integrated_gradients(pair_of(), texts, batch_tokens=100_000, **options)
    assert_same(small, large, 1e-7 if target == "vector" else 1e-10)


@pytest.mark.parametrize("target", ["self", "vector", QUERY.expand(8, -1)], ids=["self", "P", "q"])
def test_results_stand_in_the_order_of_the_sentences(target):
    order = [3, 0, 7, 2, 5, 1, 6, 4]
    straight = integrated_gradients(pair_of(), TEXTS, target=target, **QUIET)
    mixed = integrated_gradients(pair_of(), [TEXTS[n] for n in order], target=target, **QUIET)
    for place, n in enumerate(order):
        assert mixed.tokens[place] == straight.tokens[n]
        assert mixed.steps[place] == straight.steps[n]
        assert_allclose(mixed.scores[place], straight.scores[n], rtol=1e-9, atol=1e-12)


def test_sentences_alike_get_alike_scores():
    found = integrated_gradients(pair_of(), [TEXTS[0], TEXTS[2], TEXTS[0]], **QUIET)
    assert_allclose(found.scores[0], found.scores[2], rtol=1e-12)


def test_auto_takes_more_nodes_for_less_tolerance():
    steps = []
    for tolerance in (0.1, 0.01, 0.0005):
        found = integrated_gradients(pair_of("mpnet"), TEXTS, tolerance=tolerance, **QUIET)
        assert (found.errors <= tolerance).all()
        steps.append(found.steps)
        # As many as a call with that number takes, to the last bit of its places.
        for n in (0, 3):
            own = integrated_gradients(
                pair_of("mpnet"), TEXTS[n], steps=int(found.steps[n]), progress=False
            )
            assert_allclose(found.scores[n], own.scores[0], rtol=1e-9, atol=1e-12)
            assert found.errors[n] == pytest.approx(own.errors[0], rel=1e-6)
    assert (steps[0] <= steps[1]).all()
    assert (steps[1] <= steps[2]).all()
    assert steps[0].sum() < steps[1].sum() < steps[2].sum()
    assert set(np.concatenate(steps)) <= {23, 47, 95, 191, 383, 767}


def test_auto_says_where_it_does_not_converge():
    with pytest.warns(
        UserWarning, match=r"2 of 2 sentences .* above 1e-12 after 767 nodes"
    ) as told:
        found = integrated_gradients(pair_of(), TEXTS[:2], tolerance=1e-12, **QUIET)
    assert len(told) == 1
    assert told[0].filename == __file__  # where the user called
    assert list(found.steps) == [767, 767]
    assert (found.errors > 1e-12).all()


@pytest.mark.parametrize(
    ("steps", "rule", "known"),
    [
        (1, "mapped", False),  # no smaller rule
        (16, "mapped", False),  # none nested in an even one
        (15, "mapped", True),
        (15, "midpoint", False),
        (15, "gausslegendre", False),
    ],
)
def test_errors_are_told_where_a_rule_is_nested(steps, rule, known):
    found = integrated_gradients(pair_of(), TEXTS[:2], steps=steps, rule=rule, progress=False)
    assert list(found.steps) == [steps] * 2
    assert np.isfinite(found.errors).all() == known
    assert np.isnan(found.errors).all() != known


def training_model():
    model = copy.deepcopy(pair_of("bert", dropout=0.5))
    model[0].train()
    model[0].pooler.eval()  # as of someone who trains a part
    model[0].embeddings.word_embeddings.weight.requires_grad_(requires_grad=False)
    return model


def state_of(model):
    modules = [module.training for module in model.modules()]
    return modules, [(p.requires_grad, p.grad is None) for p in model.parameters()]


@pytest.mark.parametrize("target", ["self", "vector"])
def test_dropout_is_off_and_the_model_as_before(target):
    model = training_model()
    before = state_of(model[0])
    found = integrated_gradients(model, TEXTS[:2], target=target, **FIXED)
    assert state_of(model[0]) == before
    assert_same(found, integrated_gradients(pair_of(), TEXTS[:2], target=target, **FIXED), 1e-9)


def test_threads_may_share_a_model():
    """The first freezes it, the last restores it; each meets the other in the middle."""
    model = training_model()
    before = state_of(model[0])
    plain = integrated_gradients(pair_of(), TEXTS[:2], target=lambda e: e[:, 0], **FIXED)
    meeting = Barrier(2, timeout=60)

    def target(embeddings):
        if not meeting.broken:
            with contextlib.suppress(BrokenBarrierError):
                meeting.wait()
        return embeddings[:, 0]

    def run(number):
        found = integrated_gradients(model, TEXTS[:2], target=target, **FIXED)
        meeting.abort()  # the other one goes on alone
        return found

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run, range(2)))
    assert state_of(model[0]) == before
    for found in results:
        assert_same(found, plain, 1e-9)


def test_the_model_is_as_before_after_an_error():
    model = training_model()
    before, calls = state_of(model[0]), []

    def target(embeddings):
        calls.append(model[0].training)
        if len(calls) == 3:  # with gradients, in the middle of the path
            raise ZeroDivisionError("the user's own")
        return embeddings[:, 0]

    with pytest.raises(ZeroDivisionError, match="the user's own"):
        integrated_gradients(model, TEXTS[:2], target=target, **FIXED)
    assert calls == [False] * 3
    assert state_of(model[0]) == before


@pytest.mark.parametrize("target", ["self", "norm", "vector"])
@pytest.mark.parametrize("family", ["bert", "mpnet"])  # mpnet adds fp32 biases to similarities
@pytest.mark.parametrize("how", ["bf16-model", "autocast"])
def test_bf16_is_close_to_fp32(how, family, target):
    exact = integrated_gradients(pair_of(family, torch.float32), TEXTS, target=target, **FIXED)
    if how == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = integrated_gradients(
                pair_of(family, torch.float32), TEXTS, target=target, **FIXED
            )
    else:
        found = integrated_gradients(pair_of(family, torch.bfloat16), TEXTS, target=target, **FIXED)
    kind = "vectors" if target == "vector" else "scores"
    off = [
        np.linalg.norm(ours - right) / np.linalg.norm(right)
        for ours, right in zip(getattr(found, kind), getattr(exact, kind), strict=True)
    ]
    # Eight bits, through two layers whose slopes are steep.
    assert np.median(off) <= 0.07
    assert max(off) <= 0.5  # of one word, whose weight is a small difference
    assert_allclose(found.residual, 0, atol=1e-5 * np.abs(found.values).max())
    assert all(own.dtype == np.float64 for own in found.scores)


def test_fp32_is_close_to_fp64():
    exact = integrated_gradients(pair_of(), TEXTS, **FIXED)
    assert_same(integrated_gradients(pair_of("bert", torch.float32), TEXTS, **FIXED), exact, 3e-5)


@pytest.mark.parametrize("target", ["self", "vector"])
@pytest.mark.parametrize("family", ["bert", "electra"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_of_autograd_change_nothing(mode, family, target):
    options = {"target": target, "steps": 7, "progress": False}
    plain = integrated_gradients(pair_of(family), TEXTS[:2], **options)
    with mode():
        found = integrated_gradients(pair_of(family), TEXTS[:2], **options)
    assert_same(found, plain, 1e-12)


def test_a_callable_may_have_parameters():
    """A head of the user's: its gradients are neither needed nor left behind."""
    head = nn.Linear(WIDTH, 1).double()
    nn.init.constant_(head.bias, 3.0)
    with torch.no_grad():
        head.weight.copy_(QUERY[None])
    found = integrated_gradients(pair_of(), TEXTS[:2], target=lambda e: head(e)[:, 0], **FIXED)
    product = integrated_gradients(pair_of(), TEXTS[:2], target=QUERY, **FIXED)
    for ours, theirs in zip(found.scores, product.scores, strict=True):
        assert_allclose(ours, theirs, rtol=1e-9)
    assert_allclose(found.values - 3, product.values, rtol=1e-9)
    assert head.weight.grad is None


@pytest.mark.parametrize("target", ["norm", "vector"])
@pytest.mark.parametrize("include", [True, False], ids=["pooled", "not-pooled"])
def test_a_default_prompt_stays(include, target):
    """It stands before every text, fixed along the path, and is listed as no word."""
    prompt = "query : "
    model = sentence_transformer(
        Normalize(), include_prompt=include, prompts={"q": prompt}, default_prompt_name="q"
    )
    texts = ["", TEXTS[0], TEXTS[5]]  # a blank one in the chunk of the others
    options = {"rule": "midpoint", "steps": 8, "progress": False}
    found = integrated_gradients(model, texts, target=target, **options)
    listed = integrated_gradients(model, texts, target=target, unit="token", **options)
    assert found.tokens == [text.replace("!", " !").split() for text in texts]
    product = integrated_gradients(model, texts, target=QUERY, **options)
    for n, text in enumerate(texts):
        assert listed.tokens[n][:3] == ["[CLS]", "query", ":"]
        own = model.encode(text, convert_to_tensor=True)  # with the prompt, as the user has it
        assert product.values[n] == pytest.approx(float(own @ QUERY), rel=1e-9)
        if not text:
            continue
        assert not listed.scores[n][:3].any()
        assert [text[a:b] for a, b in found.spans[n]] == found.tokens[n]
        if target == "norm":
            check_prompted(listed.scores[n], model, prompt + text, include)


def check_prompted(scores, model, text, include):
    parts = parts_of((model[0].model, tokenizer_of("bert")))
    words = parts.table(torch.tensor(parts.tokenizer(text)["input_ids"])).detach()
    moves = torch.ones(len(words), 1, dtype=torch.bool)
    moves[[0, 1, 2, -1]] = False
    start = torch.where(moves, named_baseline(parts, "pad"), words)

    def embed(words):
        states = model[0].model(inputs_embeds=words[None]).last_hidden_state[0]
        return (states if include else states[3:]).mean(0)

    exact = written_out(embed, lambda e: e.norm(), words, start, 8)
    assert_allclose(scores, exact, rtol=1e-9, atol=1e-12)


def test_a_peak_between_the_nodes_is_told():
    """Both nested rules miss it; the known change of the target does not."""
    peak, width = RULES["mapped"](31).alpha[15:17].mean(), 1e-3

    def slopes(alpha):  # two tokens: a smooth one, and one that acts at one place only
        bump = np.exp(-(((alpha - peak) / width) ** 2)) / (width * np.sqrt(np.pi))
        return np.stack([np.ones_like(alpha), bump], axis=1)

    steps = Steps(31, 0.01, "mapped")
    (found,) = integrate(
        steps, "self", [np.array(2.0)], lambda looks: [slopes(looks[0][1])], lambda _: None
    )
    off = np.linalg.norm(found.scores - [1, 1]) / np.linalg.norm(found.scores)
    assert 0.3 < off < 2 * found.error
