"""The masked language model of training: transformers' own loss, by any way, and no trace of it."""

import json
import signal

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra train")

from sentence_transformers import SentenceTransformer
from train_models import SPECIAL, WORDS, save_bert, save_static, sentences, triplets, weights_hash
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, BertForMaskedLM

from simcse_fast import cli, train
from simcse_fast.errors import InputError
from simcse_fast.training import trainer
from simcse_fast.training.batches import Batch, Collator
from simcse_fast.training.encoders import head_parameters, heads_of, load_encoder
from simcse_fast.training.masking import Hider, add_masking, load_language_model, with_encoder
from simcse_fast.training.objective import Contrast, Objective
from simcse_fast.training.text_encoder import TextEncoder
from simcse_fast.training.tokens import token_data

MASK, VOCABULARY = SPECIAL.index("[MASK]"), len(SPECIAL) + len(WORDS)
LINES = sentences(40)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A BERT without a head, the same without dropout, one with a head, and a static model."""
    folder = tmp_path_factory.mktemp("models")
    made = {"bert": save_bert(folder / "bert"), "static": save_static(folder / "static")}
    made["calm"] = save_bert(folder / "calm", dropout=0.0)
    made["headed"] = save_bert(folder / "headed")
    BertForMaskedLM.from_pretrained(made["headed"]).save_pretrained(made["headed"])
    return made


def trained(model, output, **options):
    fixed = {"unsupervised": LINES, "batch_size": 16, "steps": 5, "mlm_weight": 0.1}
    fixed |= {"device": "cpu", "learning_rate": 1e-3}
    return train(str(model), output=output, **(fixed | options))


def masked(model, cache, *, columns=LINES, argument="unsupervised", dtype=torch.float64, **options):
    """An objective with a masked language model, and a batch for it."""
    encoder = load_encoder(str(model), pooling="avg", supervised=False, device="cpu")
    encoder.model.to(dtype).train()
    masking = add_masking(encoder, 0.5)
    contrast = Contrast(0.05, False, *options.get("memory", (None, 0.5)), 1)
    data = token_data(columns, argument, TextEncoder(encoder.model.tokenizer, 32), cache)
    twins = argument == "unsupervised"
    collate = Collator(data, static=False, twins=twins, hider=masking.hider)
    batch = collate(Batch(np.arange(len(columns)), 7))
    return Objective(encoder.model, contrast, static=False, masking=masking), batch


def expected_loss(objective, batch, model):
    """Transformers' loss of the masked columns, by its own model around the same encoder."""
    encoder, head = objective.model[0].model, objective.masking.head
    whole = AutoModelForMaskedLM.from_pretrained(model).to(torch.float64).train()
    whole.bert.load_state_dict(encoder.state_dict(), strict=False)
    whole.cls.load_state_dict(head.language_model.cls.state_dict())
    total = 0.0
    for column in batch["masked"]:
        labels = torch.where(column["targets"] > 0, column["targets"] - 1, -100)
        inputs = {name: column[name] for name in ("input_ids", "attention_mask")}
        total = total + whole(**inputs, labels=labels).loss * (labels >= 0).sum()
    return total / batch["guessed"], whole


def gradient_of(whole, name):
    """In transformers' model, of a parameter that has this name in ours."""
    encoder, head = name.removeprefix("0.model."), name.partition(".language_model.")[2]
    return dict(whole.named_parameters()).get(head or f"bert.{encoder}", torch.tensor(0)).grad


@pytest.mark.parametrize("argument", ["unsupervised", "triplets"])
@pytest.mark.parametrize(
    "memory",
    [
        pytest.param((None, 0.5), id="kept"),
        pytest.param((64, 0.0), id="embedded-again"),  # many mini-batches, no graph kept
    ],
)
def test_loss_and_gradient_are_those_of_transformers(models, tmp_path, argument, memory):
    columns = LINES if argument == "unsupervised" else triplets(20)
    given = {"columns": columns, "argument": argument, "memory": memory}
    objective, batch = masked(models["calm"], tmp_path, **given)
    loss = objective(batch["columns"], batch)
    expected, whole = expected_loss(objective, batch, models["calm"])
    assert objective.mlm_loss.item() == pytest.approx(expected.item(), rel=1e-10)
    loss.backward()
    found = {name: p.grad for name, p in objective.model.named_parameters()}
    objective.model.zero_grad()
    plain = Objective(objective.model, objective.contrast, static=False)
    contrast = plain(batch["columns"], {**batch, "masked": []})
    assert loss.item() == pytest.approx((contrast + 0.5 * expected).item(), rel=1e-10)
    contrast.backward()
    (0.5 * expected).backward()
    for name, parameter in objective.model.named_parameters():
        parts = [parameter.grad, gradient_of(whole, name)]
        wanted = [part for part in parts if part is not None]
        if not wanted:
            assert found[name] is None, name  # BERT's own pooler
        else:
            torch.testing.assert_close(found[name], sum(wanted), rtol=1e-9, atol=1e-12, msg=name)


def test_embedded_again_draws_the_same_dropout(models, tmp_path):
    found = []
    for memory in ((64, 0.5), (64, 0.0)):
        torch.manual_seed(0)
        objective, batch = masked(models["bert"], tmp_path, memory=memory)
        loss = objective(batch["columns"], batch)
        loss.backward()
        gradients = [p.grad for p in objective.model.parameters() if p.grad is not None]
        found.append([loss, *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_tokens_are_hidden_as_bert_has_it():
    special = np.zeros(1100, bool)  # a model of 1,100 ids, a vocabulary of 1,000
    special[:5] = True
    ids = np.random.default_rng(0).integers(0, 1000, 400_000)
    shown, targets = Hider(4, special, 1000)(ids, np.random.default_rng(1))
    assert shown.max() == 999
    guessed = targets > 0
    assert np.array_equal(targets[guessed] - 1, ids[guessed])
    assert not (guessed & special[ids]).any()
    assert np.array_equal(shown[~guessed], ids[~guessed])
    shares = [guessed[ids >= 5].mean(), (shown[guessed] == 4).mean()]
    shares.append((shown[guessed] == ids[guessed]).mean())
    # Five standard deviations of shares of 400,000 and of 60,000 tokens.
    assert shares == pytest.approx([0.15, 0.8, 0.1], abs=0.008)


def test_hidden_tokens_are_those_of_the_batch_for_any_number_of_processes(models, tmp_path):
    encoder = load_encoder(str(models["bert"]), pooling=None, supervised=False, device="cpu")
    hider = add_masking(encoder, 1.0).hider
    data = token_data(LINES, "unsupervised", TextEncoder(encoder.model.tokenizer, 32), tmp_path)

    def rows(share, key=3):
        collate = Collator(data, static=False, twins=True, share=share, hider=hider)
        content = collate(Batch(np.arange(23), key))
        (view,) = content["masked"]
        return [
            (ids[:n].tolist(), targets[:n].tolist(), content["guessed"])
            for ids, targets, n in zip(
                view["input_ids"], view["targets"], view["attention_mask"].sum(1), strict=True
            )
        ]

    assert [row for rank in range(3) for row in rows((rank, 3))] == rows((0, 1))
    assert rows((0, 1), key=4) != rows((0, 1))
    assert sum(np.count_nonzero(targets) for _, targets, _ in rows((0, 1))) == rows((0, 1))[0][2]


def test_it_falls_and_leaves_no_trace(models, tmp_path):
    options = {"steps": 60, "batch_size": 40, "learning_rate": 1e-2, "mlm_weight": 1.0}
    result = trained(models["bert"], tmp_path / "out", **options)
    losses = result.history.mlm_losses
    assert len(losses) == 60
    assert np.mean(losses[:5]) == pytest.approx(np.log(VOCABULARY), abs=0.2)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.4
    assert not heads_of(result.model)
    assert "begins with random weights" in result.notes[-1]
    without = trained(models["bert"], tmp_path / "without", steps=1, mlm_weight=0.0)
    files = [
        sorted(str(path.relative_to(one.folder)) for path in one.folder.rglob("*"))
        for one in (result, without)
    ]
    assert files[0] == files[1]
    stored = SentenceTransformer(str(result.folder), device="cpu")
    assert set(stored.state_dict()) == set(without.model.state_dict())
    assert weights_hash(stored) == weights_hash(result.model)


def test_weight_of_0_changes_no_bit(models, tmp_path):
    runs = []
    for name, options in (("out", {}), ("zero", {"mlm_weight": 0.0}), ("some", {})):
        given = {"unsupervised": LINES, "batch_size": 16, "steps": 2, "device": "cpu"}
        given |= {"mlm_weight": 0.1} if name == "some" else options
        runs.append(train(str(models["bert"]), output=tmp_path / name, **given))
    plain, zero, some = (weights_hash(one.model) for one in runs)
    assert plain == zero != some
    assert runs[0].history.losses == runs[1].history.losses
    assert runs[1].history.mlm_losses == []


def test_resumed_is_uninterrupted_bit_for_bit(models, tmp_path, monkeypatch):
    options = {"pooling": "cls", "mlm_weight": 0.5}
    whole = trained(models["bert"], tmp_path / "whole", **options)
    record = trainer.SimCSETrainer.record

    def recorded(self, loss, inputs):
        record(self, loss, inputs)
        if len(self.run.history.losses) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trainer.SimCSETrainer, "record", recorded)
    with pytest.raises(KeyboardInterrupt):
        trained(models["bert"], tmp_path / "out", **options)
    monkeypatch.undo()
    resumed = trained(models["bert"], tmp_path / "out", resume=True, **options)
    assert weights_hash(resumed.model) == weights_hash(whole.model)
    assert resumed.history.losses == whole.history.losses
    assert resumed.history.mlm_losses == whole.history.mlm_losses
    heads = [tmp_path / name / "checkpoint-5" / trainer.HEAD for name in ("whole", "out")]
    assert heads[0].read_bytes() == heads[1].read_bytes()
    with pytest.raises(InputError, match=r"mlm_weight 0\.5, now it is 0\.1"):
        trained(models["bert"], tmp_path / "out", resume=True, pooling="cls")


def test_head_of_the_checkpoint_is_used(models):
    whole = BertForMaskedLM.from_pretrained(models["headed"])
    encoder = load_encoder(str(models["headed"]), pooling="cls", supervised=False, device="cpu")
    masking = add_masking(encoder, 0.1)
    assert masking.fresh is None
    found = head_parameters(encoder.model)
    for name, value in whole.cls.named_parameters():
        if "decoder" not in name:  # the word embeddings, and the same bias again
            assert torch.equal(found[f"MaskedHead.language_model.cls.{name}"], value)
    vectors = encoder.model[0].model.get_input_embeddings().weight
    assert masking.head.language_model.get_output_embeddings().weight is vectors
    assert not any(value is vectors for value in found.values())


KINDS = [
    pytest.param("mpnet", {}, id="mpnet"),
    pytest.param("distilbert", {"dim": 16, "hidden_dim": 32, "n_heads": 2}, id="distilbert"),
    pytest.param("modernbert", dict.fromkeys(("bos_token_id", "eos_token_id"), 3), id="modernbert"),
    pytest.param("rembert", {"bos_token_id": 2, "eos_token_id": 3}, id="decoder-of-its-own"),
    pytest.param("longformer", {"attention_window": 4}, id="bias-left-empty-by-from_pretrained"),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_heads_of_other_kinds_are_those_of_transformers(tmp_path, kind, options):
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
    sizes |= {"cls_token_id": 2, "sep_token_id": 3} if kind == "modernbert" else {}
    torch.manual_seed(0)
    encoder = AutoModel.from_config(AutoConfig.for_model(kind, **(sizes | options))).eval()
    encoder.save_pretrained(tmp_path)
    model, whole = load_language_model(AutoConfig.from_pretrained(tmp_path))
    assert not whole
    assert max(p.abs().max() for p in model.parameters()) <= 1  # as new, norms at 1
    ids = torch.randint(4, 50, (2, 8))
    setattr(model.eval(), model.base_model_prefix, encoder)
    model.tie_weights()
    expected = model(input_ids=ids).logits.flatten(0, 1)
    head = with_encoder(model, encoder)
    torch.testing.assert_close(head.logits(encoder(ids)[0].flatten(0, 1)), expected)
    assert head.logits(torch.zeros(0, 16)).shape == (0, 50)  # no token of a mini-batch


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        pytest.param("static", {}, "is a static model, which cannot guess tokens", id="static"),
        pytest.param("bert", {"mlm_weight": -1.0}, "finite number >= 0, got -1.0", id="negative"),
        pytest.param("kind", {}, "kind other, for which transformers has no masked", id="kind"),
        pytest.param("mask", {}, "has a tokenizer without a mask token", id="tokenizer"),
    ],
)
def test_models_that_cannot_guess_are_refused(
    models, tmp_path, monkeypatch, model, options, message
):
    if model == "kind":
        monkeypatch.setattr("simcse_fast.training.masking.MODEL_FOR_MASKED_LM_MAPPING", {})
        message = message.replace("other", "bert")
    given = SentenceTransformer(str(models.get(model, models["bert"])), device="cpu")
    if model == "mask":
        given.tokenizer.mask_token = None
    options = {"unsupervised": LINES, "mlm_weight": 0.1, "device": "cpu"} | options
    with pytest.raises(InputError, match="mlm_weight: ") as refused:
        train(given, output=tmp_path / "out", **options)
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()
    assert not heads_of(given)


def test_command_tells_the_loss(models, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n".join(LINES), encoding="utf-8")
    arguments = ["train", "--unsupervised", str(tmp_path / "text.txt"), "--device", "cpu"]
    arguments += ["--model", str(models["headed"]), "--mlm-weight", "0.1", "--batch-size", "20"]
    assert cli.main([*arguments, "--output", str(tmp_path / "a"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["mlm_losses"]) == 2
    assert cli.main([*arguments, "--output", str(tmp_path / "b")]) == 0
    lines = capsys.readouterr().out.splitlines()
    first, last = told["mlm_losses"]
    assert f"MLM    loss {first:.4f} -> {last:.4f}" in lines
