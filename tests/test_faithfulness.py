"""Faithfulness measures against loops written out, and against answers known beforehand."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from attribution_models import TEXTS, Toy, pair_of, tokenizer_of
from scipy.stats import kendalltau

from simcse_fast.attribution import integrated_gradients, shapley_values
from simcse_fast.attribution.faithfulness import FRACTIONS, faithfulness

pytestmark = pytest.mark.usefixtures("one_thread")
MASKINGS = ["mask", "pad", "delete", "attention"]


def cosine_with_all(model, tokenizer, text, players, keep, masking):
    """The target of a sentence with some of its words, from its ids alone."""

    def embedding(ids, mask):
        states = model(inputs_embeds=model.get_input_embeddings()(ids)[None], attention_mask=mask)
        weight = mask[0, :, None].to(states.last_hidden_state)
        return (states.last_hidden_state[0] * weight).sum(0) / weight.sum()

    ids = torch.tensor(tokenizer(text)["input_ids"])
    stays = torch.tensor([player is None or player in keep for player in players])
    whole = embedding(ids, torch.ones(1, len(ids)))
    mask = torch.ones(1, len(ids))
    if masking == "delete":
        ids, mask = ids[stays], mask[:, stays]
    elif masking == "attention":
        mask = stays[None].double()
    else:
        ids = torch.where(stays, ids, getattr(tokenizer, f"{masking}_token_id"))
    return torch.cosine_similarity(embedding(ids, mask), whole, dim=0).item()


def written_out(pair, text, scores, unit, masking):
    """The three measures of one sentence: one pass a look."""
    words = pair[1](text).word_ids()
    tokens = itertools.count()
    players = words
    if unit == "token":
        players = [None if word is None else next(tokens) for word in words]
        scores = [s for s, word in zip(scores, words, strict=True) if word is not None]
    count = len(scores)

    def target(keep):
        with torch.no_grad():
            return cosine_with_all(*pair, text, players, set(keep), masking)

    everything = range(count)
    order = sorted(everything, key=lambda i: -scores[i])
    sizes = sorted({int(round(f * count, 6)) for f in FRACTIONS} - {0})
    full = target(everything)
    without = [full - target(set(everything) - set(order[:k])) for k in sizes]
    only = [full - target(order[:k]) for k in sizes]
    one = [full - target(set(everything) - {i}) for i in everything]
    tau = kendalltau(one, scores)[0] if count > 1 else np.nan
    return np.mean(without), np.mean(only), tau


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("unit", ["word", "token"])
def test_equals_a_loop_over_looks(masking, unit):
    pair = pair_of("bert")
    made = integrated_gradients(pair, TEXTS, steps=7, unit=unit, progress=False)
    result = faithfulness(pair, made, masking=masking, progress=False)
    for row, text in enumerate(TEXTS):
        expected = written_out(pair, text, made.scores[row], unit, masking)
        found = result.comprehensiveness[row], result.sufficiency[row], result.loo_correlation[row]
        np.testing.assert_allclose(found, expected, atol=1e-9)


def additive(seed=0):
    """Embeddings that are means of states, and a direction: leaving a word out has one price."""
    model, tokenizer = Toy(1, seed=seed), tokenizer_of("bert")
    direction = torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def prices(text):
        code = tokenizer(text)
        words = model.words(torch.tensor(code["input_ids"])) - model.words.weight[4]  # [MASK]
        own = (model.map(words) @ direction).detach().numpy() / len(words)
        found = np.zeros(max(w for w in code.word_ids() if w is not None) + 1)
        for word, price in zip(code.word_ids(), own, strict=True):
            if word is not None:
                found[word] += price
        return found

    return (model, tokenizer), direction, prices


def test_where_every_word_has_its_price_the_measures_are_known():
    pair, direction, prices = additive()
    made = shapley_values(pair, TEXTS, target=direction, samples="exact", progress=False)
    result = faithfulness(pair, made, target=direction, progress=False)
    for row, text in enumerate(TEXTS):  # of ten words at most: every k from 1 to n
        price = np.sort(prices(text))[::-1]
        np.testing.assert_allclose(np.sort(made.scores[row])[::-1], price, atol=1e-12)
        drops = price.cumsum()
        np.testing.assert_allclose(result.comprehensiveness[row], drops.mean(), atol=1e-12)
        np.testing.assert_allclose(result.sufficiency[row], price.sum() - drops.mean(), atol=1e-12)
    several = [len(set(prices(text))) == len(prices(text)) > 1 for text in TEXTS]
    assert sum(several) >= 3  # the others have one word, or one twice
    np.testing.assert_allclose(result.loo_correlation[several], 1, atol=1e-12)


def test_right_scores_beat_random_ones_and_reversed_ones():
    pair, direction, _ = additive(seed=3)
    made = shapley_values(pair, TEXTS, target=direction, progress=False)
    random = np.random.default_rng(0)
    orders = {
        "right": made,
        "random": replace(made, scores=[random.permutation(s) for s in made.scores]),
        "reversed": replace(made, scores=[-s for s in made.scores]),
    }
    means = {
        name: faithfulness(pair, one, target=direction, progress=False).summary()
        for name, one in orders.items()
    }
    for name, sign in (("comprehensiveness", 1), ("sufficiency", -1), ("loo_correlation", 1)):
        right, by_chance, wrong = (sign * means[order][name] for order in orders)
        assert right > by_chance > wrong


@pytest.mark.parametrize("method", ["integrated gradients", "Shapley values"])
def test_attributions_of_an_encoder_beat_their_reverse(method):
    pair = pair_of("bert")
    make = integrated_gradients if method == "integrated gradients" else shapley_values
    baseline = {"baseline": "mask"} if method == "integrated gradients" else {}
    made = make(pair, TEXTS, progress=False, **baseline)
    result = faithfulness(pair, made, progress=False).summary()
    turned = replace(made, scores=[-s for s in made.scores])
    against = faithfulness(pair, turned, progress=False).summary()
    assert result["comprehensiveness"] > against["comprehensiveness"]
    assert result["sufficiency"] < against["sufficiency"]
    assert result["loo_correlation"] == pytest.approx(-against["loo_correlation"])


def test_equal_looks_share_one_pass(monkeypatch):
    model, tokenizer = pair_of("bert")
    made = shapley_values((model, tokenizer), TEXTS[0], progress=False)
    rows = []
    watch = model.register_forward_hook(lambda _, __, out: rows.append(len(out.last_hidden_state)))
    faithfulness((model, tokenizer), made, progress=False)
    watch.remove()
    # Six words: all of them; the top 1 to 5; all but the top 1 to 6; of all but one word four more.
    assert sum(rows) == 1 + (1 + 5 + 6 + 4)  # and the sentence itself, before
    assert len(rows) == 2


@pytest.mark.parametrize("batch_tokens", [1, 40, 100_000])
def test_passes_do_not_change_results(batch_tokens):
    pair = pair_of("bert")
    made = integrated_gradients(pair, TEXTS, steps=3, progress=False)
    one, other = (
        faithfulness(pair, made, progress=False, batch_tokens=tokens)
        for tokens in (None, batch_tokens)
    )
    assert made.sentences == one.sentences
    for name in ("comprehensiveness", "sufficiency", "loo_correlation"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-12)


def test_fractions_are_rounded_down_and_count_once():
    pair, direction, prices = additive()
    text = "the cat watched a quick bird"  # six words
    made = shapley_values(pair, text, target=direction, progress=False)
    price = np.sort(prices(text))[::-1]
    for fractions, sizes in [
        ((0.34,), [2]),  # 2.04
        ((0.33, 0.2, 0.19), [1]),  # 1.98, 1.2, 1.14
        ((1.0, 0.5), [3, 6]),
        ((0.1, 0.16), []),  # below one word
    ]:
        result = faithfulness(pair, made, target=direction, fractions=fractions, progress=False)
        expected = np.mean([price[:k].sum() for k in sizes]) if sizes else np.nan
        np.testing.assert_allclose(result.comprehensiveness, [expected], atol=1e-12)
        np.testing.assert_allclose(result.sufficiency, [price.sum() - expected], atol=1e-12)


def test_what_has_no_value_is_nan_and_left_out_of_the_means():
    pair = pair_of("bert")
    made = shapley_values(pair, ["very quick", "storm", ""], progress=False)
    result = faithfulness(pair, made, progress=False)
    assert np.isnan(result.loo_correlation).tolist() == [False, True, True]
    assert np.isnan(result.comprehensiveness).tolist() == [False, False, True]
    assert result.sufficiency[1] == pytest.approx(0, abs=1e-12)  # the only word, kept
    means = result.summary()
    assert means["loo_correlation"] == result.loo_correlation[0]
    assert means["comprehensiveness"] == pytest.approx(result.comprehensiveness[:2].mean())
    assert "leave-one-out correlation (higher is better)" in repr(result)
    assert repr(result).splitlines()[-1].endswith(" 1")  # sentence with a correlation
    constant = replace(made, scores=[np.ones_like(s) for s in made.scores])
    assert np.isnan(faithfulness(pair, constant, progress=False).loo_correlation).all()
    empty = faithfulness(pair, shapley_values(pair, "", progress=False), progress=False)
    assert np.isnan(list(empty.summary().values())).all()


def test_equal_scores_count_from_the_left():
    pair, direction, _ = additive()
    text = "the cat watched a quick bird"
    made = shapley_values(pair, text, target=direction, progress=False)
    ties = replace(made, scores=[np.zeros(6)])
    falling = replace(made, scores=[np.arange(6.0)[::-1]])
    one, other = (
        faithfulness(pair, each, target=direction, progress=False) for each in (ties, falling)
    )
    assert one.comprehensiveness == other.comprehensiveness
    assert one.sufficiency == other.sufficiency


def test_data_frame_has_a_row_a_sentence():
    pd = pytest.importorskip("pandas")
    pair = pair_of("bert")
    result = faithfulness(pair, shapley_values(pair, TEXTS[1:3], progress=False), progress=False)
    frame = result.to_dataframe()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame) == ["sentence", "comprehensiveness", "sufficiency", "loo_correlation"]
    assert frame["sentence"].tolist() == [0, 1]
    np.testing.assert_array_equal(frame["loo_correlation"], result.loo_correlation)


def test_bad_arguments_are_named():
    pair = pair_of("bert")
    made = shapley_values(pair, TEXTS[:2], progress=False)
    for options, message in [
        ({"masking": "blank"}, "masking: .*'blank'"),
        ({"target": "vector"}, 'target: "vector"'),
        ({"fractions": ()}, "fractions"),
        ({"fractions": (0.0, 0.5)}, r"fractions: .*\(0.0, 0.5\)"),
        ({"fractions": (0.5, 1.5)}, r"fractions: .*1.5"),
        ({"fractions": (float("nan"),)}, "fractions: .*nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            faithfulness(pair, made, progress=False, **options)
    with pytest.raises(ValueError, match=r"attributions: sentence 0 .* same model"):
        faithfulness(pair_of("roberta"), replace(made, unit="token"), progress=False)
    bad = replace(made, scores=[made.scores[0], made.scores[1] * np.nan])
    with pytest.raises(ValueError, match=r"attributions: .*NaN in sentence 1"):
        faithfulness(pair, bad, progress=False)
