"""The adapter with captum's signature, against captum's own class at the same nodes."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from attribution_models import TEXTS, Toy, pair_of, sentence_transformer, tokenizer_of
from torch.nn.functional import cosine_similarity, normalize
from torch.nn.utils.rnn import pad_sequence

from simcse_fast.attribution import integrated_gradients
from simcse_fast.attribution.captum_interface import IntegratedGradients

captum = pytest.importorskip("captum.attr")

pytestmark = pytest.mark.usefixtures("one_thread")
METHODS = ["gausslegendre", "riemann_middle"]
# captum keeps the weights of its rules in fp32.
TOLERANCE = 1e-6


def batch_of(pair, texts=TEXTS, baseline="pad"):
    """Word embeddings, those of the baselines, and the mask, as captum is given them."""
    model, tokenizer = pair
    ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    special = torch.tensor(tokenizer.all_special_ids)
    table = model.get_input_embeddings().weight.detach()
    padded = pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
    mask = pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
    words = table[padded]
    stays = torch.isin(padded, special) & (padded != tokenizer.unk_token_id)
    to = table[getattr(tokenizer, f"{baseline}_token_id")]
    return SimpleNamespace(words=words, mask=mask, start=torch.where(stays[..., None], words, to))


def embedding(model, words, mask):
    """Means over tokens."""
    states = model(inputs_embeds=words, attention_mask=mask).last_hidden_state
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def forward_of(model, batch, target):
    """What captum explains: one number a row; rows of all nodes, one node after the other."""
    whole = embedding(model, batch.words, batch.mask).detach()

    def forward(words, mask):
        found = embedding(model, words, mask)
        if target == "norm":
            return found.norm(dim=-1)
        if isinstance(target, int):
            return found[:, target]
        return cosine_similarity(found, whole.repeat(len(found) // len(whole), 1), dim=-1)

    return forward


def by_captum(model, batch, target, *, start, **options):
    return captum.IntegratedGradients(forward_of(model, batch, target)).attribute(
        batch.words,
        baselines=start,
        additional_forward_args=(batch.mask,),
        return_convergence_delta=True,
        **options,
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_steps", [5, 20])  # odd and even; five are far from enough
@pytest.mark.parametrize("target", [None, "norm", 3])
@pytest.mark.parametrize("baseline", ["pad", "mask"])
def test_sentences_get_captums_numbers(method, n_steps, target, baseline):
    pair = pair_of("bert")
    batch = batch_of(pair, baseline=baseline)
    theirs, off = by_captum(
        pair[0], batch, target, start=batch.start, n_steps=n_steps, method=method
    )
    scores, delta = IntegratedGradients(pair).attribute(
        TEXTS,
        baselines=baseline,
        target=target,
        n_steps=n_steps,
        method=method,
        return_convergence_delta=True,
    )
    assert scores.shape == batch.mask.shape
    np.testing.assert_allclose(scores, theirs.sum(-1), atol=TOLERANCE)
    np.testing.assert_allclose(delta, off, atol=10 * TOLERANCE)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [None, 3])
@pytest.mark.parametrize("baseline", ["none", "number", "tensor", "one for all"])
def test_word_embeddings_get_captums_numbers(method, target, baseline):
    pair = pair_of("bert")
    batch = batch_of(pair)
    start = {
        "none": None,
        "number": 0.25,
        "tensor": batch.start,
        "one for all": batch.start[:1],
    }[baseline]
    theirs, off = by_captum(pair[0], batch, target, start=start, n_steps=9, method=method)
    scores, delta = IntegratedGradients(pair).attribute(
        batch.words,
        start,
        target,
        (batch.mask,),
        9,
        method,
        return_convergence_delta=True,
    )
    assert scores.shape == batch.words.shape
    np.testing.assert_allclose(scores, theirs, atol=TOLERANCE)
    np.testing.assert_allclose(delta, off, atol=10 * TOLERANCE)


def test_single_precision_agrees_too():
    pair = pair_of("bert", torch.float32)
    batch = batch_of(pair)
    theirs, _ = by_captum(pair[0], batch, None, start=batch.start, n_steps=50)
    scores = IntegratedGradients(pair).attribute(TEXTS)
    np.testing.assert_allclose(scores, theirs.sum(-1), atol=1e-4)
    embedded = IntegratedGradients(pair).attribute(batch.words, batch.start, None, batch.mask)
    np.testing.assert_allclose(embedded, theirs, atol=1e-4)


def test_signature_is_captums():
    ours, theirs = (
        inspect.signature(c.attribute).parameters
        for c in (IntegratedGradients, captum.IntegratedGradients)
    )
    assert list(ours) == list(theirs)
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()}


@pytest.mark.parametrize("method", [*METHODS, "mapped"])
def test_delta_is_the_error_of_completeness(method):
    pair = pair_of("bert")
    exact = integrated_gradients(pair, TEXTS, steps=255, unit="token", progress=False)
    change = torch.from_numpy(exact.values - exact.baseline_values)
    found = {}
    for nodes in (4, 64):
        found[nodes], delta = IntegratedGradients(pair).attribute(
            TEXTS, n_steps=nodes, method=method, return_convergence_delta=True
        )
        np.testing.assert_allclose(delta, found[nodes].sum(1) - change, atol=1e-12)
        assert delta.abs().max() > 1e-4 if nodes == 4 else delta.abs().max() < 1e-4
    for row, own in enumerate(exact.scores):
        np.testing.assert_allclose(found[64][row, : len(own)], own, atol=1e-4)
        assert not found[64][row, len(own) :].any()  # padding


def test_captums_trapezoid_is_too_small_and_refused():
    """On a linear encoder a right rule is exact; captum's is short by (n - 1) / n."""
    pair = Toy(1), tokenizer_of("bert")
    batch = batch_of(pair)
    exact = IntegratedGradients(pair).attribute(TEXTS, target=3, n_steps=2)
    theirs, _ = by_captum(
        pair[0], batch, 3, start=batch.start, n_steps=10, method="riemann_trapezoid"
    )
    np.testing.assert_allclose(theirs.sum(-1), 0.9 * exact, atol=TOLERANCE)
    for method, why in [
        ("riemann_trapezoid", r"\(n - 1\) / n"),
        ("riemann_left", "1 / n"),
        ("riemann_right", "1 / n"),
        ("simpson", "is not known"),
    ]:
        with pytest.raises(ValueError, match=rf"method: '{method}' .*{why}.*riemann_middle"):
            IntegratedGradients(pair).attribute(TEXTS, method=method)


@pytest.mark.parametrize("rows", [1, 3, 8, 1000])  # one pass holds a node of a sentence, or all
def test_internal_batch_size_changes_nothing_but_passes(rows):
    model, tokenizer = pair_of("bert")
    adapter, batch = IntegratedGradients((model, tokenizer)), batch_of((model, tokenizer))
    for inputs, start, mask in [(TEXTS, None, None), (batch.words, batch.start, batch.mask)]:
        sizes = []
        watch = model.register_forward_hook(
            lambda _, __, out, sizes=sizes: sizes.append(out[0].shape[0])
        )
        found = adapter.attribute(inputs, start, None, mask, n_steps=6, internal_batch_size=rows)
        watch.remove()
        expected = adapter.attribute(inputs, start, None, mask, n_steps=6)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        if rows == 1000:
            assert sizes[-1] == 6 * len(TEXTS)
        elif isinstance(inputs, torch.Tensor):  # as in captum, one node of all at least
            assert max(sizes) == len(TEXTS)


def test_dimensions_are_those_of_the_embedding_as_the_model_returns_it():
    from sentence_transformers.sentence_transformer.modules import Normalize  # noqa: PLC0415

    model = sentence_transformer(Normalize())
    pair = model[0].model, model.tokenizer
    batch = batch_of(pair)

    def forward(words, mask):
        return normalize(embedding(pair[0], words, mask), dim=-1)

    theirs = captum.IntegratedGradients(forward).attribute(
        batch.words, batch.start, target=5, additional_forward_args=(batch.mask,), n_steps=7
    )
    scores = IntegratedGradients(model).attribute(TEXTS, target=5, n_steps=7)
    np.testing.assert_allclose(scores, theirs.sum(-1), atol=TOLERANCE)


def test_model_is_left_as_it_was():
    model, tokenizer = pair_of("bert", dropout=0.5)
    model.train()
    one, other = (IntegratedGradients((model, tokenizer)).attribute("storm") for _ in range(2))
    assert torch.equal(one, other)  # no dropout
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    model.eval()


def test_inference_mode_changes_nothing():
    adapter = IntegratedGradients(pair_of("bert"))
    plain = adapter.attribute(TEXTS, n_steps=5)
    with torch.inference_mode():
        assert torch.equal(adapter.attribute(TEXTS, n_steps=5), plain)


def test_bad_arguments_are_named():
    pair = pair_of("bert")
    adapter, batch = IntegratedGradients(pair), batch_of(pair)
    for arguments, message in [
        ({"n_steps": 0}, "n_steps: .*0"),
        ({"internal_batch_size": 0}, "internal_batch_size: .*0"),
        ({"target": "vector"}, "target: "),
        ({"target": 32}, "target: .*32"),
        ({"target": -1}, "target: .*-1"),
        ({"baselines": "nothing"}, "baselines: .*'nothing'"),
        ({"target": lambda e: e.detach()[:, 0]}, "target: .*no gradient"),
        ({"inputs": batch.words, "target": lambda e: e.detach()[:, 0]}, "target: .*no gradient"),
        ({"inputs": batch.words, "baselines": torch.zeros(3)}, r"baselines: .*\(8, 12, 32\)"),
        ({"inputs": batch.words, "additional_forward_args": ()}, "additional_forward_args: .*0"),
        ({"additional_forward_args": batch.mask}, "additional_forward_args: sentences"),
        ({"inputs": batch.words[0]}, "inputs: .*"),
        ({"inputs": batch.words[..., :5]}, r"inputs: .*\(8, 12, 5\)"),
        (
            {"inputs": batch.words, "additional_forward_args": batch.mask[:3]},
            r"additional_forward_args: .*\(8, 12\)",
        ),
        (
            {"inputs": batch.words, "additional_forward_args": 0 * batch.mask},
            "additional_forward_args: .*in each row",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            adapter.attribute(**({"inputs": TEXTS} | arguments))
    with pytest.raises(ValueError, match=r"inputs: .*none"):
        adapter.attribute([])
    with pytest.raises(TypeError, match=r"n_steps: .*str"):
        adapter.attribute(TEXTS, n_steps="50")
    with pytest.raises(TypeError, match=r"internal_batch_size: .*float"):
        adapter.attribute(TEXTS, internal_batch_size=8.0)
    with pytest.raises(TypeError, match=r"inputs: .*int"):
        adapter.attribute([3])
