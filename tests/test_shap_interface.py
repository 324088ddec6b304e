"""shap's explainers over our evaluator, against exact Shapley and Owen values."""

import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from attribution_models import TEXTS, Toy, pair_of, sentence_transformer, tokenizer_of

from simcse_fast.attribution import shap_interface, shapley_values
from simcse_fast.attribution.shap_interface import shap_model

shap = pytest.importorskip("shap")

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = [text for text in TEXTS if len(text.split()) <= 4]
MASKINGS = ["mask", "pad", "delete", "attention"]


def values_of(explanation):
    return [np.asarray(own, np.float64) for own in explanation.values]


def test_exact_explainer_finds_our_exact_values():
    pair = pair_of("bert")
    f, masker = shap_model(pair, clustering=False)
    explanation = shap.Explainer(f, masker, algorithm="exact")(SHORT, silent=True)
    ours = shapley_values(pair, SHORT, samples="exact", progress=False)
    for shaps, own in zip(values_of(explanation), ours.scores, strict=True):
        np.testing.assert_allclose(shaps, own, atol=1e-12)
    np.testing.assert_allclose(explanation.base_values, ours.baseline_values, atol=1e-12)
    assert [list(names) for names in explanation.feature_names] == ours.tokens
    assert ["".join(words) for words in explanation.data] == SHORT


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("unit", ["word", "token"])
@pytest.mark.parametrize("target", ["self", "vector"])
def test_partition_explainer_is_exact_for_two_words(masking, unit, target):
    """Two words have one tree, so Owen values are Shapley values."""
    pair = pair_of("bert")
    options = {"masking": masking, "unit": unit, "target": target}
    f, masker = shap_model(pair, **options)
    explanation = shap.Explainer(f, masker, algorithm="partition")(["very quick"], silent=True)
    ours = shapley_values(pair, "very quick", samples="exact", progress=False, **options)
    expected = ours.scores[0] if target == "self" else ours.vectors[0]
    expected = expected[1:-1] if unit == "token" else expected  # [CLS] and [SEP]
    atol = 1e-12 if target == "self" else 1e-6  # vectors are kept in fp32
    np.testing.assert_allclose(explanation.values[0], expected, atol=atol)
    again = shapley_values(
        pair, "very quick", samples="exact", method="partition", progress=False, **options
    )
    np.testing.assert_allclose(again.scores[0], ours.scores[0], atol=atol)
    assert again.tokens == ours.tokens


def test_permutation_explainer_is_exact_for_pairs_of_words_that_interact():
    """A sum squared has interactions of two words at most: an order and its reverse suffice."""
    pair = Toy(2), tokenizer_of("bert")
    direction = torch.randn(6, generator=torch.Generator().manual_seed(0))
    texts = [TEXTS[0], TEXTS[1]]
    f, masker = shap_model(pair, target=direction, clustering=False)
    explainer = shap.Explainer(f, masker, algorithm="permutation", seed=0)
    explanation = explainer(texts, max_evals=2 * 13, silent=True)  # six words: two orders
    ours = shapley_values(pair, texts, target=direction, samples="exact", progress=False)
    for shaps, own in zip(values_of(explanation), ours.scores, strict=True):
        np.testing.assert_allclose(shaps, own, atol=1e-12)


def test_where_words_add_up_every_explainer_is_exact():
    pair = Toy(1), tokenizer_of("bert")
    direction = torch.randn(6, generator=torch.Generator().manual_seed(0))
    ours = shapley_values(pair, TEXTS, target=direction, samples="exact", progress=False)
    f, masker = shap_model(pair, target=direction)
    for algorithm in ("partition", "permutation"):
        explanation = shap.Explainer(f, masker, algorithm=algorithm)(TEXTS, silent=True)
        for shaps, own in zip(values_of(explanation), ours.scores, strict=True):
            np.testing.assert_allclose(shaps, own, atol=1e-12)


def orders_of(tree, node, words):
    """All orders of the words below a node in which each group stays together."""
    if node < words:
        return [[node]]
    left, right = (orders_of(tree, int(child), words) for child in tree[node - words][:2])
    return [x + y for a in left for b in right for x, y in permutations((a, b), 2)]


@pytest.mark.parametrize("text", ["quietly singing storms", "a zebra runs!", TEXTS[0]])
def test_partition_finds_owen_values(text):
    """Marginal contributions over all orders that the tree allows, one look at a time."""
    pair = pair_of("bert")
    f, masker = shap_model(pair)
    words = masker.shape(text)[1]
    orders = orders_of(masker.clustering(text), 2 * words - 2, words)
    expected = np.zeros(words)
    for order in orders:
        keep = np.zeros(words, bool)
        before = f(*masker(keep, text))[0]
        for word in order:
            keep[word] = True
            after = f(*masker(keep, text))[0]
            expected[word] += (after - before) / len(orders)
            before = after
    found = shapley_values(pair, text, samples="exact", method="partition", progress=False)
    np.testing.assert_allclose(found.scores[0], expected, atol=1e-12)
    assert found.method == "Owen values"
    assert found.steps[0] <= 2**words
    assert np.isnan(found.errors).all()


@pytest.mark.parametrize("samples", [2, 8, 30, "auto"])
@pytest.mark.parametrize("target", ["self", "vector"])
def test_scores_add_up_however_few_the_evaluations(samples, target):
    pair = pair_of("bert")
    made = shapley_values(
        pair, TEXTS, samples=samples, target=target, method="partition", progress=False
    )
    assert np.abs(made.residual).max() < 1e-12
    assert (made.steps <= (512 if samples == "auto" else samples + 1)).all()
    if target == "self":
        ours = shapley_values(pair, TEXTS, progress=False)
        np.testing.assert_allclose(made.values, ours.values, atol=1e-12)
        np.testing.assert_allclose(made.baseline_values, ours.baseline_values, atol=1e-12)


def test_the_additivity_check_can_fail(monkeypatch):
    call = shap.explainers.PartitionExplainer.__call__

    def wrong(self, *args, **options):
        explanation = call(self, *args, **options)
        explanation.values = explanation.values + 0.5
        return explanation

    monkeypatch.setattr(shap.explainers.PartitionExplainer, "__call__", wrong)
    made = shapley_values(pair_of("bert"), "very quick", method="partition", progress=False)
    np.testing.assert_allclose(made.residual, [1.0], atol=1e-12)


def test_texts_are_tokenized_once_and_coalitions_evaluated_once(monkeypatch):
    model, tokenizer = pair_of("bert")
    read, rows = [], []

    def counted(encoder, texts, tokenize=shap_interface.tokenize):
        read.extend(texts)
        return tokenize(encoder, texts)

    monkeypatch.setattr(shap_interface, "tokenize", counted)
    f, masker = shap_model((model, tokenizer), clustering=False)
    watch = model.register_forward_hook(lambda _, __, out: rows.append(len(out[0])))
    explainer = shap.Explainer(f, masker, algorithm="permutation", seed=0)
    explainer(["a zebra runs!", "a zebra runs!"], max_evals=400, silent=True)
    watch.remove()
    assert read == [shap_interface.PROBE, "a zebra runs!"]
    assert sum(rows) <= 1 + 2**4  # the sentence, and all sets of four words


def test_each_sentence_has_its_own_target_also_if_a_text_comes_twice():
    pair = pair_of("bert")
    targets = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    both = shapley_values(
        pair, ["very quick"] * 2, target=targets, method="partition", progress=False
    )
    for row in range(2):
        one = shapley_values(pair, "very quick", target=targets[row], progress=False)
        np.testing.assert_allclose(both.scores[row], one.scores[0], atol=1e-12)


@pytest.mark.parametrize("target", ["norm", "the storm", "vector of one", "callable"])
def test_targets_are_those_of_the_other_functions(target):
    model = sentence_transformer()
    if target == "vector of one":
        target = torch.ones(32)
    elif target == "callable":
        target = lambda e: e.square().sum(-1)  # noqa: E731
    f, masker = shap_model(model, target=target, clustering=False)
    explanation = shap.Explainer(f, masker, algorithm="exact")(["very quick"], silent=True)
    ours = shapley_values(model, "very quick", target=target, progress=False)
    np.testing.assert_allclose(explanation.values[0], ours.scores[0], atol=1e-12)


def test_partition_is_repeatable_and_leaves_numpys_generator_alone():
    pair, text = pair_of("bert"), TEXTS[3]
    np.random.seed(5)  # noqa: NPY002
    first = np.random.rand()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    options = {"samples": 9, "method": "partition", "progress": False}
    made = shapley_values(pair, text, **options)
    assert np.random.rand() == first  # noqa: NPY002
    np.testing.assert_array_equal(made.scores[0], shapley_values(pair, text, **options).scores[0])


def test_partition_result_is_like_any_other():
    pair = pair_of("bert")
    texts = ["storm", "", "very quick"]
    made = shapley_values(pair, texts, unit="token", method="partition", progress=False)
    assert [len(own) for own in made.scores] == [3, 2, 4]
    assert made.scores[2][[0, -1]].tolist() == [0, 0]  # [CLS] and [SEP]
    assert made.steps.tolist() == [2, 1, 4]
    np.testing.assert_allclose(made.residual, 0, atol=1e-12)
    assert "not known" in repr(made)


def test_model_is_left_as_it_was():
    model, tokenizer = pair_of("bert", dropout=0.5)
    model.train()
    learning = [p.requires_grad for p in model.parameters()]
    f, masker = shap_model((model, tokenizer))
    one, other = (f(*masker(np.ones(2, bool), "very quick")) for _ in range(2))
    np.testing.assert_allclose([one, other], 1, atol=1e-12)  # no dropout
    assert model.training
    assert learning == [p.requires_grad for p in model.parameters()]
    model.eval()


def test_bad_arguments_are_named(monkeypatch):
    pair = pair_of("bert")
    with pytest.raises(ValueError, match=r"method: .*'kernel'"):
        shapley_values(pair, TEXTS, method="kernel", progress=False)
    with pytest.raises(ValueError, match=r"masking: .*'blank'"):
        shap_model(pair, masking="blank")
    with pytest.raises(ValueError, match=r"unit: .*'letter'"):
        shap_model(pair, unit="letter")
    with pytest.raises(ValueError, match=r"target: .*\(3, 32\)"):
        shap_model(pair, target=torch.ones(3, 32))
    f, masker = shap_model(pair)
    with pytest.raises(ValueError, match="sentences: expected some words in each, got ''"):
        shap.Explainer(f, masker, algorithm="partition")([""], silent=True)
    monkeypatch.setitem(sys.modules, "shap", None)
    shapley_values(pair, "storm", progress=False)  # needs no shap
    with pytest.raises(ModuleNotFoundError):
        shapley_values(pair, "storm", method="partition", progress=False)


@pytest.mark.parametrize("unit", ["word", "token"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_names_with_their_spaces_are_the_sentence(family, unit):
    """Also where a token is only a gap, as byte-level tokenizers make before other scripts."""
    text = "  a zebra runs \u4f60\u597d! "
    _, masker = shap_model(pair_of(family), unit=unit)
    (words,) = masker.data_transform(text)
    assert "".join(words) == text
    assert len(words) == len(masker.feature_names(text)[0])
