"""Training: it learns, it repeats itself bit for bit, and its result is a normal model."""

import importlib
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra train")

from sentence_transformers import SentenceTransformer
from torch.nn import functional as F
from train_models import (
    TOPICS,
    save_bert,
    save_static,
    scored_pairs,
    sentences,
    triplets,
    weights_hash,
    write_lines,
)

from simcse_fast import info_nce, train
from simcse_fast.training.encoders import heads_of, load_encoder, without_heads
from simcse_fast.training.objective import Contrast, Objective
from simcse_fast.training.options import POOLINGS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Models and texts."""
    folder = tmp_path_factory.mktemp("train")
    return {
        "bert": save_bert(folder / "bert"),
        "static": save_static(folder / "static"),
        "text": write_lines(folder / "text.txt", sentences(300)),
        "triplets": write_lines(folder / "triplets.tsv", triplets(300)),
        "pairs": write_lines(folder / "pairs.tsv", [row[:2] for row in triplets(300)]),
        "scored": write_lines(folder / "scored.tsv", scored_pairs(60, seed=3)),
    }


def loaded(path):
    return SentenceTransformer(str(path), device="cpu")


def accuracy(model) -> float:
    """Share of held-out anchors whose nearest positive is one of their own topic."""
    rows = triplets(100, seed=9)
    anchor, positive = (
        F.normalize(model.encode([row[k] for row in rows], convert_to_tensor=True), dim=1)
        for k in (0, 1)
    )
    nearest = (anchor @ positive.T).argmax(1)
    return ((nearest - torch.arange(len(rows))) % TOPICS == 0).double().mean().item()


def trained(model, output, **options):
    options = {"batch_size": 64, "steps": 30, "device": "cpu"} | options
    return train(model, output=output, **options)


@pytest.mark.parametrize(
    ("model", "data", "options", "least"),
    [
        pytest.param("static", "text", {"learning_rate": 2e-2}, 0.9, id="static-halves"),
        pytest.param("static", "triplets", {"learning_rate": 2e-2}, 0.8, id="static-triplets"),
        pytest.param("bert", "triplets", {"pooling": "avg"}, 0.9, id="transformer-triplets"),
        pytest.param(
            "bert", "pairs", {"pooling": "avg", "symmetric": True}, 0.9, id="transformer-pairs"
        ),
    ],
)
def test_held_out_pairs_are_found_after_training(given, tmp_path, model, data, options, least):
    argument = "unsupervised" if data == "text" else "triplets"
    before = accuracy(loaded(given[model]))
    options = {"learning_rate": 3e-3, argument: given[data]} | options
    result = trained(given[model], tmp_path / "out", **options)
    losses = result.history.losses
    assert before < 0.5
    assert accuracy(result.model) > least
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1
    assert (result.steps, len(losses), result.history.sentences) == (30, 30, 30 * 64)
    assert result.history.real_tokens <= result.history.padded_tokens


def test_unsupervised_transformer_learns_to_tell_its_twins_apart(given, tmp_path):
    options = {"unsupervised": given["text"], "learning_rate": 2e-3}
    losses = trained(given["bert"], tmp_path / "out", **options).history.losses
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2


@pytest.mark.parametrize("model", ["bert", "static"])
def test_the_same_seed_gives_the_same_bits(given, tmp_path, model):
    hashes = []
    for name, seed in (("once", 3), ("again", 3), ("other", 4)):
        options = {"unsupervised": given["text"], "steps": 4, "seed": seed}
        hashes.append(weights_hash(trained(given[model], tmp_path / name, **options).model))
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_mini_batches_and_memory_change_no_row(given, tmp_path):
    # Without dropout the gradient is that of the batch, whatever the mini-batches.
    model = save_bert(tmp_path / "bert", dropout=0.0)
    losses = []
    for number, options in enumerate(({}, {"mini_batch_tokens": 64, "memory_share": 0.0})):
        options |= {"triplets": given["triplets"], "steps": 6, "pooling": "avg"}
        result = trained(model, tmp_path / str(number), learning_rate=1e-3, **options)
        losses.append(result.history.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0] - 0.05


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("supervised", [False, True], ids=["unsupervised", "supervised"])
def test_poolings_are_what_they_are_called(given, pooling, supervised):
    encoder = load_encoder(str(given["bert"]), pooling=pooling, supervised=supervised, device="cpu")
    model = encoder.model.eval()
    texts = ["t1w1 c2 c3", "t2w2", "c1 c2 c3 c4 c5 t3w3"]
    features = model.preprocess(texts)
    features = {name: features[name] for name in ("input_ids", "attention_mask")}
    states = model[0].model(**features, output_hidden_states=True).hidden_states
    weight = features["attention_mask"][:, :, None].float()

    def mean(state):
        return (state * weight).sum(1) / weight.sum(1)

    expected = {
        "cls": states[-1][:, 0],
        "cls_before_pooler": states[-1][:, 0],
        "avg": mean(states[-1]),
        "avg_top2": (mean(states[-1]) + mean(states[-2])) / 2,
        "avg_first_last": (mean(states[-1]) + mean(states[1])) / 2,
    }[pooling]
    if pooling == "cls" and supervised:
        linear = model[-1].linear
        expected = torch.tanh(linear(expected))
    found = model.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)
    assert bool(heads_of(model)) == (pooling == "cls" and not supervised)


def test_head_is_there_while_training_only(given):
    encoder = load_encoder(str(given["bert"]), pooling="cls", supervised=False, device="cpu")
    model, (head,) = encoder.model, heads_of(encoder.model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    features = {"input_ids": torch.tensor([[2, 7, 9, 3]]), "attention_mask": torch.ones(1, 4)}
    bare = model.eval()(dict(features))["sentence_embedding"]
    trained_with = model.train()(dict(features))["sentence_embedding"]
    torch.testing.assert_close(trained_with, torch.tanh(head.linear(bare)))
    with without_heads(model) as exported:
        assert not heads_of(exported)
    assert heads_of(model) == [head]


def test_result_loads_without_us(given, tmp_path, monkeypatch):
    expected, folders = [], []
    for pooling in (None, "avg_first_last"):
        options = {"unsupervised": given["text"], "steps": 2, "pooling": pooling}
        result = trained(given["bert"], tmp_path / str(pooling), **options)
        assert not heads_of(result.model)
        assert "- simcse\n" in (result.folder / "README.md").read_text(encoding="utf-8")
        expected.append(result.model.encode(["t1w1 c2", "c4"]))
        folders.append(result.folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "simcse_fast"]:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(ImportError):
        importlib.import_module("simcse_fast.training.encoders")
    found = [loaded(folder).encode(["t1w1 c2", "c4"]) for folder in folders]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_twins_differ_by_dropout_and_share_one_forward(given):
    encoder = load_encoder(str(given["bert"]), pooling="avg", supervised=False, device="cpu")
    model = encoder.model.train()
    contrast = Contrast(0.05, False, None, 0.5, 1)
    objective = Objective(model, contrast, static=False)
    batch = {"input_ids": torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]])}
    batch["attention_mask"] = (batch["input_ids"] > 0).long()
    torch.manual_seed(0)
    loss = objective([batch, batch], {})
    first, second = objective.embeddings
    assert (first != second).all(1).all()
    assert objective.cache.statistics.mini_batches == 1
    assert loss.item() == pytest.approx(info_nce(first, second).item())


def test_best_evaluation_is_the_result(given, tmp_path):
    options = {"triplets": given["triplets"], "evaluate": given["scored"], "evaluation_steps": 4}
    options |= {"learning_rate": 3e-2, "steps": 22, "pooling": "cls"}  # too fast to stay good
    result = trained(given["bert"], tmp_path / "out", **options)
    history = result.history
    assert [step for step, _ in history.evaluations] == [0, 4, 8, 12, 16, 20, 22]
    step, score = history.best()
    assert score == max(score for step, score in history.evaluations if step)
    assert step < 22
    best = loaded(tmp_path / "out" / f"checkpoint-{step}")
    assert weights_hash(best) == weights_hash(loaded(result.folder)) == weights_hash(result.model)
    kept = {path.name for path in (tmp_path / "out").glob("checkpoint-*")}
    assert f"checkpoint-{step}" in kept
    assert len(kept) <= 3  # the newest two, and the best


def test_patience_stops(given, tmp_path):
    options = {"unsupervised": given["text"], "evaluate": given["scored"], "evaluation_steps": 2}
    options |= {"learning_rate": 1e-12, "steps": 40, "patience": 3}  # no step changes a rank
    result = trained(given["static"], tmp_path / "out", **options)
    assert result.steps == 2 + 3 * 2
    assert result.history.best()[0] == 2


def test_bf16_trains_and_keeps_single_precision_weights(given, tmp_path):
    options = {"triplets": given["triplets"], "bf16": True, "pooling": "avg", "steps": 20}
    result = trained(given["bert"], tmp_path / "out", learning_rate=3e-3, **options)
    assert result.history.losses[-1] < result.history.losses[0] - 1
    assert {parameter.dtype for parameter in result.model.parameters()} == {torch.float32}


def test_model_object_is_trained_in_place(given, tmp_path):
    model = loaded(given["static"])
    before = weights_hash(model)
    result = trained(model, tmp_path / "out", unsupervised=sentences(100), steps=2)
    assert result.model is model
    assert weights_hash(model) != before
    assert result.data.rows == 100


def test_duplicates_are_no_negatives(given, tmp_path):
    repeated = sentences(40) * 2
    options = {"unsupervised": repeated, "batch_size": 80, "steps": 1}
    masked = trained(given["static"], tmp_path / "mask", **options)
    kept = trained(given["static"], tmp_path / "keep", duplicates="keep", **options)
    assert masked.data.duplicates == 40
    assert (masked.history.duplicates, kept.history.duplicates) == (40, 0)
    # A twin among the negatives shares the softmax with the positive.
    assert masked.history.losses[0] < kept.history.losses[0]


def test_negatives_that_are_a_positive_of_the_batch_are_masked(given, tmp_path):
    rows = [(f"c{n} c{n + 1}", f"c{n} c{n + 2}", f"c{n + 3} c{n + 5}") for n in range(12)]
    assert len({row[1] for row in rows}) == 12  # no positive repeats; nine are negatives too
    options = {"triplets": rows, "batch_size": 12, "steps": 1}
    masked = trained(given["static"], tmp_path / "mask", **options)
    kept = trained(given["static"], tmp_path / "keep", duplicates="keep", **options)
    assert (masked.history.duplicates, kept.history.duplicates) == (9, 0)
    assert masked.history.losses[0] < kept.history.losses[0]
