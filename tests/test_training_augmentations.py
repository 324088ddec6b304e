"""Ways to make two views, the textbook loss, and observers: what ablations ask of training."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra train")

from sentence_transformers import SentenceTransformer
from train_models import (
    SPECIAL,
    save_bert,
    save_static,
    scored_pairs,
    sentences,
    tokenizer,
    triplets,
    weights_hash,
)
from transformers import ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast

from simcse_fast import cli, info_nce, train
from simcse_fast.errors import InputError
from simcse_fast.training.augmentation import Shortener, shortener
from simcse_fast.training.batches import Batch, Collator
from simcse_fast.training.encoders import Encoder, dropout_of, dropouts, load_encoder, with_dropout
from simcse_fast.training.objective import Contrast, Objective
from simcse_fast.training.text_encoder import TextEncoder
from simcse_fast.training.textbook import textbook
from simcse_fast.training.tokens import token_data

pytestmark = pytest.mark.usefixtures("one_thread")
LINES = sentences(60)
CLS, SEP, FIRST = 1, 2, 3  # ids of the planted texts: words are numbered through from FIRST


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"bert": save_bert(folder / "bert"), "static": save_static(folder / "static")}


def planted(words_of_texts, pieces=1):
    """Flat ids of texts between CLS and SEP whose words are all different; each has pieces."""
    ids, lengths, word = [], [], 0
    for words in words_of_texts:
        ids += [CLS, *range(FIRST + word, FIRST + word + words * pieces), SEP]
        lengths.append(words * pieces + 2)
        word += words * pieces
    begins = np.ones(FIRST + word, bool)
    begins[FIRST:] = np.arange(word) % pieces == 0
    special = np.zeros(FIRST + word, bool)
    special[[CLS, SEP]] = True
    return np.array(ids), np.array(lengths), begins, special


def shortened(kind, share, words_of_texts, *, pieces=1, rows=None, key=5):
    """The texts before and after, as lists of ids."""
    ids, lengths, begins, special = planted(words_of_texts, pieces)
    rows = np.arange(len(lengths)) if rows is None else rows
    found, left = Shortener(kind, share, begins, special)(ids, lengths, rows, key)
    assert left.sum() == len(found)
    return (
        [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])],
        [part.tolist() for part in np.split(found, np.cumsum(left)[:-1])],
    )


WORDS = [1, 2, 3, 7, 10, 31, 4, 10, 10, 10]  # one stays whole; 31 is odd; some are alike


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 1.0])
def test_crop_keeps_words_that_stand_together(share):
    starts = set()
    for before, after in zip(*shortened("crop", share, WORDS), strict=True):
        words, kept = before[1:-1], after[1:-1]
        removed = min(max(round(share * len(words)), 1), len(words) - 1)
        assert len(kept) == len(words) - removed
        assert kept == list(range(kept[0], kept[0] + len(kept)))
        assert (after[0], after[-1]) == (CLS, SEP)
        starts.add(kept[0] - words[0])
    assert len(starts) > 1  # at different places


@pytest.mark.parametrize(("kind", "share"), [("delete", 0.2), ("delete", 0.3), ("delete_one", 0.9)])
def test_deleted_words_are_as_many_as_said_and_the_rest_keeps_its_order(kind, share):
    places = set()
    for before, after in zip(*shortened(kind, share, WORDS), strict=True):
        words = len(before) - 2
        removed = 1 if kind == "delete_one" else max(round(share * words), 1)
        assert len(before) - len(after) == min(removed, words - 1)
        assert after == [token for token in before if token in after]
        places |= {before.index(token) for token in set(before) - set(after)}
    assert len(places) > 3


@pytest.mark.parametrize("kind", ["crop", "delete", "delete_one"])
def test_words_of_several_tokens_go_whole(kind):
    for before, after in zip(*shortened(kind, 0.3, WORDS, pieces=3), strict=True):
        gone = sorted(set(before) - set(after))
        assert len(gone) % 3 == 0
        assert all(first % 3 == 0 for first in gone[::3])  # FIRST is 3
        assert all(b - a == 1 for a, b in zip(gone[::3], gone[1::3], strict=True))


def test_what_a_text_loses_depends_on_its_row_and_the_key():
    _, all_rows = shortened("delete", 0.3, [10] * 6)
    lost = [{token - FIRST - 10 * row for token in text[1:-1]} for row, text in enumerate(all_rows)]
    assert len({frozenset(one) for one in lost}) > 3
    _, alone = shortened("delete", 0.3, [10], rows=np.array([4]))
    assert {token - FIRST for token in alone[0][1:-1]} == lost[4]
    _, other_key = shortened("delete", 0.3, [10] * 6, key=6)
    assert other_key != all_rows


@pytest.mark.parametrize(
    ("tokens", "text", "expected"),
    [
        pytest.param(["un", "##do", "it"], [5, 6, 7], [True, False, True], id="wordpiece"),
        pytest.param(["un", "\u0120do", "it"], [5, 6, 7], [False, True, False], id="byte-level"),
        pytest.param(["un", "do", "it"], [5, 6, 7], [True, True, True], id="whole-words"),
    ],
)
def test_words_are_told_by_the_tokenizers_marks(tokens, text, expected):
    class Known:
        def get_vocab(self):
            return {token: number for number, token in enumerate([*SPECIAL, *tokens])}

        def __call__(self, _):
            return {"input_ids": [2, 3]}

    made = shortener(Known(), "crop", 0.1)
    assert made.begins[text].tolist() == expected
    assert np.flatnonzero(made.special).tolist() == [2, 3]  # [UNK] stands for a word


def collated(model, cache, *, share=(0, 1), rows=None, **options):
    encoder = load_encoder(str(model), pooling="avg", supervised=False, device="cpu")
    data = token_data(LINES, "unsupervised", TextEncoder(encoder.model.tokenizer, 32), cache)
    kind = options.pop("kind", None)
    shorten = kind and shortener(encoder.model.tokenizer, kind, 0.3)
    collate = Collator(data, static=False, twins=True, share=share, shorten=shorten, **options)
    return encoder.model, collate(Batch(np.arange(len(LINES)), 7))


def test_shortened_views_are_the_same_for_any_number_of_processes(models, tmp_path):
    _, whole = collated(models["bert"], tmp_path, kind="delete")
    first, second = whole["columns"]
    assert (first["attention_mask"].sum(1) > second["attention_mask"].sum(1)).all()
    assert whole["real"] == sum(int(view["attention_mask"].sum()) for view in whole["columns"])
    texts = []
    for rank in range(3):
        _, part = collated(models["bert"], tmp_path, kind="delete", share=(rank, 3))
        assert part["real"] == whole["real"]
        view = part["columns"][1]
        texts += [ids[: mask.sum()].tolist() for ids, mask in zip(*view.values(), strict=True)]
    expected = [ids[: mask.sum()].tolist() for ids, mask in zip(*second.values(), strict=True)]
    assert texts == expected


def test_a_fixed_mask_gives_the_gradient_of_two_passes_with_the_same_mask(models, tmp_path):
    model, batch = collated(models["bert"], tmp_path, one_mask=True, mask_duplicates=False)
    objective = Objective(model.train(), Contrast(0.05, False, 4096, 0.5, 1), static=False)
    torch.manual_seed(1)
    loss = objective(batch["columns"], batch)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    views = []
    order = batch["columns"][0]["attention_mask"].sum(1).argsort(descending=True, stable=True)
    for _ in range(2):
        torch.manual_seed(1)
        features = {name: x[order] for name, x in batch["columns"][0].items()}
        views.append(model(features)["sentence_embedding"])
    assert torch.equal(*views)  # in training mode, so that their cosine is 1
    expected = info_nce(*views)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in found.items():
        wanted = dict(model.named_parameters())[name].grad
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6, msg=name)


def test_other_twins_are_under_different_masks(models, tmp_path):
    model, batch = collated(models["bert"], tmp_path)
    objective = Objective(model.train(), Contrast(0.05, False, None, 0.5, 1), static=False)
    objective(batch["columns"], batch)
    first, second = objective.embeddings
    assert (first != second).any(1).all()


def trained(model, output, **options):
    fixed = {"batch_size": 20, "steps": 6, "learning_rate": 1e-3, "device": "cpu", "save": False}
    if "triplets" not in options:
        fixed["unsupervised"] = LINES
    return train(str(model), output=output, **(fixed | options))


def test_dropout_is_in_force_while_training_only(models, tmp_path):
    seen = set()

    def observe(model, _):
        seen.update(getattr(module, name) for module, name in dropouts(Encoder(model, False, "")))

    result = trained(models["bert"], tmp_path / "a", dropout=0.4, observe=observe, save=True)
    assert seen == {0.4}
    assert dropout_of(Encoder(result.model, False, "")) == 0.1
    config = json.loads((result.folder / "config.json").read_text(encoding="utf-8"))
    assert (config["hidden_dropout_prob"], config["attention_probs_dropout_prob"]) == (0.1, 0.1)
    assert dropout_of(
        load_encoder(str(result.folder), pooling=None, supervised=False, device="cpu")
    )
    # Without any, both views are the same, as under a fixed mask.
    none = trained(models["bert"], tmp_path / "b", dropout=0.0, steps=1, pooling="avg")
    calm = save_bert(tmp_path / "calm", dropout=0.0)
    fixed = trained(calm, tmp_path / "c", augmentation="fixed_mask", steps=1, pooling="avg")
    assert none.history.losses == pytest.approx(fixed.history.losses, rel=1e-5)
    assert none.history.padded_tokens > 1.5 * fixed.history.padded_tokens


def test_dropout_of_attention_that_keeps_a_number(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"intermediate_size": 16, "attention_dropout": 0.2, "vocab_size": 300}
    small |= {f"{name}_token_id": 0 for name in ("pad", "eos", "bos", "cls", "sep")}
    ModernBertModel(ModernBertConfig(**small)).save_pretrained(tmp_path)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    named = dict(zip(names, SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer(SPECIAL), **named).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), pooling="avg", supervised=False, device="cpu")
    attention = encoder.model[0].model.layers[0].attn
    with with_dropout(encoder, 0.7):
        assert (attention.attention_dropout, dropout_of(encoder)) == (0.7, 0.7)
    assert attention.attention_dropout == 0.2
    assert dropout_of(encoder) is None  # not the same in all layers


@pytest.mark.parametrize("data", ["unsupervised", "triplets", "pairs"])
def test_textbook_loss_is_the_same_training(models, tmp_path, data):
    options = {"unsupervised": LINES[:15] * 4}  # most rows have a duplicate
    if data != "unsupervised":
        width = 2 if data == "pairs" else 3
        options = {"triplets": [row[:width] for row in triplets(40)], "symmetric": width == 2}
    losses = [
        trained(models["bert"], tmp_path / loss, loss=loss, steps=10, pooling="avg", **options)
        for loss in ("info_nce", "textbook")
    ]
    first, second = (result.history.losses for result in losses)
    assert first == pytest.approx(second, abs=1e-5)
    assert first[-1] < first[0]


def test_textbook_loss_gradient():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(n, 8, generator=generator, dtype=torch.double) for n in (5, 9))
    ids = {
        "query_ids": torch.tensor([0, 1, 0, 2, 3]),
        "key_ids": torch.tensor([0, 1, 0, *range(6)]),
    }
    query.requires_grad_(True)
    found = []
    for loss in (textbook, info_nce):
        value = loss(query, key, temperature=0.1, **ids)
        found.append((value.item(), *torch.autograd.grad(value, query)[0].flatten().tolist()))
    assert found[0] == pytest.approx(found[1], rel=1e-9)


@pytest.mark.parametrize("model", ["bert", "static"])
def test_observing_changes_no_bit(models, tmp_path, model):
    seen = []

    def observe(encoder, step):
        modes = {module.training for module in encoder.modules()}
        seen.append((step, modes, torch.is_grad_enabled()))
        encoder.encode(["c1 t1w2"], show_progress_bar=False)
        torch.rand(3)

    options = {"steps": 7, "observe": observe, "observe_steps": 3}
    with_it = trained(models[model], tmp_path / "with", **options)
    without = trained(models[model], tmp_path / "without", steps=7)
    assert weights_hash(with_it.model) == weights_hash(without.model)
    assert with_it.history.losses == without.history.losses
    assert seen == [(step, {False}, False) for step in (0, 3, 6, 7)]


def test_nothing_is_saved_where_nothing_is_wanted(models, tmp_path):
    result = trained(models["bert"], tmp_path / "out", steps=3)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cache"]
    saved = trained(models["bert"], tmp_path / "saved", steps=3, save=True)
    assert weights_hash(result.model) == weights_hash(saved.model)
    loaded = SentenceTransformer(str(saved.folder), device="cpu")
    assert weights_hash(loaded) == weights_hash(result.model)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        pytest.param(
            {"augmentation": "shuffle"},
            ValueError,
            "augmentation: expected none, fixed_mask, crop, delete or delete_one, got 'shuffle'",
            id="augmentation",
        ),
        pytest.param(
            {"augmentation": "crop", "augmentation_share": 0.0},
            ValueError,
            r"augmentation_share: expected a finite number in \(0, 1\], got 0.0",
            id="no-share",
        ),
        pytest.param({"dropout": 1.5}, ValueError, r"dropout: .* \[0, 1\], got 1.5", id="dropout"),
        pytest.param(
            {"loss": "hinge"}, ValueError, "loss: expected info_nce or textbook, got", id="loss"
        ),
        pytest.param(
            {"triplets": triplets(40), "augmentation": "delete"},
            ValueError,
            "augmentation: triplets have their positives as views, got 'delete'",
            id="triplets",
        ),
        pytest.param(
            {"static": True, "augmentation": "fixed_mask"},
            ValueError,
            "augmentation: a static model has halves of the words as views, got 'fixed_mask'",
            id="static-augmentation",
        ),
        pytest.param(
            {"static": True, "dropout": 0.2}, ValueError, "has no dropout to set", id="static"
        ),
        pytest.param(
            {"evaluate": scored_pairs(8)}, ValueError, "save: resume and evaluate", id="evaluate"
        ),
        pytest.param({"observe_steps": 0}, ValueError, "observe_steps: .*>= 1, got 0", id="never"),
    ],
)
def test_bad_input(models, tmp_path, options, error, message):
    model = models["static" if options.pop("static", False) else "bert"]
    with pytest.raises(error, match=message):
        trained(model, tmp_path / "out", **options)


def test_textbook_loss_is_for_one_process(models, tmp_path, monkeypatch):
    from simcse_fast.training import run  # noqa: PLC0415 - heavy

    original = run.make_plan
    monkeypatch.setattr(run, "make_plan", lambda *given: original(*given[:-1], 2))
    with pytest.raises(InputError, match="loss: textbook is for one process, got 2"):
        trained(models["bert"], tmp_path / "out", loss="textbook")


def test_command_line(models, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(LINES), encoding="utf-8")
    options = "--steps 2 --batch-size 20 --dropout 0.2 --augmentation crop --loss textbook --json"
    given = ["train", "--model", str(models["bert"]), "--unsupervised", str(text)]
    given += ["--output", str(tmp_path / "out"), "--augmentation-share", "0.3", "--device", "cpu"]
    assert cli.main([*given, *options.split()]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["real_tokens"] < 1.9 * told["data"]["tokens"] * 40 / 60
