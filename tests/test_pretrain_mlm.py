"""Pre-training from nothing: the loss, the batches, what is held out, and what comes out."""

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra pretrain-mlm")

from sentence_transformers import SentenceTransformer
from train_models import WORDS, save_bert, sentences, weights_hash
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from simcse_fast import pretrain_mlm, train
from simcse_fast.errors import InputError
from simcse_fast.pretraining import batches, held_out, model, trainer, vocabulary
from simcse_fast.training.batches import Batch
from simcse_fast.training.encoders import load
from simcse_fast.training.identity import weights_of
from simcse_fast.training.masking import Hider
from simcse_fast.training.text_encoder import TextEncoder
from simcse_fast.training.tokens import token_data

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"layers": 1, "width": 16, "heads": 2, "vocabulary_size": 200, "max_length": 24}
SMALL |= {"batch_tokens": 512, "evaluation_steps": 5, "save_steps": 4, "device": "cpu"}
REPEATED = [" ".join([f"w{row % 25}"] * (4 + row % 9)) for row in range(400)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pretrain")


@pytest.fixture
def run(folder, tmp_path):
    """Pre-trains on toy sentences; options can be changed."""

    def pretrained(name="out", **options):
        given = SMALL | {"steps": 12, "cache": folder / "cache"} | options
        return pretrain_mlm(sentences(400), output=tmp_path / name, **given)

    return pretrained


@pytest.fixture(scope="module")
def learned(folder):
    """A run long enough to learn that a hidden word is the one around it."""
    options = SMALL | {"width": 32, "steps": 100, "learning_rate": 1e-2, "dropout": 0.0}
    options |= {"evaluation_steps": 50, "save_steps": 1000}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = pretrain_mlm(REPEATED, output=folder / "learned", **options)
    torch.set_num_threads(threads)
    return result


@pytest.fixture(scope="module")
def parts(folder):
    """Token ids, their masked batches, and a tokenizer."""
    tokenizer = vocabulary.learned_tokenizer(sentences(400), 200, 24, folder / "c", lambda _: None)
    data = token_data(sentences(400), "corpus", TextEncoder(tokenizer, 24), folder / "c")
    special = np.zeros(len(tokenizer), bool)
    special[tokenizer.all_special_ids] = True
    guesses = batches.Guesses(
        data, Hider(tokenizer.mask_token_id, special, len(tokenizer)), (0, "right")
    )
    return data, guesses, tokenizer


def order_of(data, rows, budget=512, seed=0):
    offsets = data.columns[0].offsets
    return batches.ByLength(rows, offsets[rows + 1] - offsets[rows], budget, seed)


def small_bert(tokenizer):
    options = type("Options", (), SMALL | {"number_of_heads": 2, "dropout": 0.0})
    torch.manual_seed(3)
    made = model.make_model(options, tokenizer)
    for parameter in made.parameters():  # beginning weights hardly tell tokens apart
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("number", [0, 3, 7])  # shortest sentences, and longer ones
def test_loss_and_gradient_are_those_of_transformers(parts, number):
    data, guesses, tokenizer = parts
    batch = guesses(
        sorted(order_of(data, data.rows).drawn(0), key=lambda one: len(one.rows))[number]
    )
    ours, theirs = small_bert(tokenizer), small_bert(tokenizer)
    labels = torch.full(batch["input_ids"].shape, -100)
    labels.view(-1)[batch["place"]] = batch["guessed"]
    loss = model.loss_of(ours, batch)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected = theirs(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert one.grad is not None, name
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_logits_are_of_the_tokens_to_guess_alone(parts):
    data, guesses, tokenizer = parts
    batch = guesses(order_of(data, data.rows).drawn(0)[0])
    logits = model.logits_of(small_bert(tokenizer), batch)
    assert logits.shape == (len(batch["guessed"]), len(tokenizer))
    assert 0 < len(logits) < batch["input_ids"].numel() / 3
    nothing = batch | {name: batch[name][:0] for name in ("place", "guessed")}
    assert model.loss_of(small_bert(tokenizer), nothing).item() == 0


def test_what_is_hidden_is_what_is_to_be_guessed(parts):
    data, guesses, tokenizer = parts
    batch = order_of(data, data.rows).drawn(0)[0]
    shown, again = guesses(batch), guesses(batch)
    assert all(np.array_equal(shown[name], again[name]) for name in shown)
    other = guesses(Batch(batch.rows, batch.key + 1))
    assert not torch.equal(shown["place"], other["place"])
    ids, lengths = data.columns[0].take(batch.rows)
    true = shown["input_ids"].clone()
    true.view(-1)[shown["place"]] = shown["guessed"]
    assert np.array_equal(true[shown["attention_mask"].bool()].numpy(), ids)
    assert shown["real"] == lengths.sum()
    changed = torch.nonzero(true.flatten() != shown["input_ids"].flatten()).flatten()
    assert set(changed.tolist()) < set(shown["place"].tolist())
    assert not set(shown["guessed"].tolist()) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("budget", [24, 100, 512, 100_000])
def test_batches_hold_every_row_once_and_little_padding(parts, budget):
    data, _, _ = parts
    order = order_of(data, data.rows, budget)
    drawn = order.drawn(0)
    rows = np.concatenate([batch.rows for batch in drawn])
    assert len(np.unique(rows)) == len(rows) <= len(data.rows)
    lengths = dict(zip(order.rows.tolist(), order.lengths.tolist(), strict=True))
    widths = [max(lengths[row] for row in batch.rows.tolist()) for batch in drawn]
    computed = [width * len(b.rows) for width, b in zip(widths, drawn, strict=True)]
    assert max(computed) <= budget
    left = sum(lengths.values()) - sum(lengths[row] for row in rows.tolist())
    assert left <= (budget if len(drawn) > 1 else 0)
    if budget == 512:
        assert sum(computed) < 1.1 * sum(lengths[row] for row in rows.tolist())


def test_order_comes_from_the_seed_and_the_epoch(parts):
    data, _, _ = parts
    order, again, other = (order_of(data, data.rows, seed=seed) for seed in (1, 1, 2))

    def flat(drawn):
        return np.concatenate([batch.rows for batch in drawn]).tolist()

    assert flat(order.drawn(0)) == flat(again.drawn(0)) != flat(other.drawn(0))
    assert flat(order.drawn(0)) != flat(order.drawn(1))
    order.steps = len(order.drawn(0)) + 3
    steps = list(order)
    assert len(steps) == len(order) == order.steps
    assert flat(steps) == flat([*order.drawn(0), *order.drawn(1)[:3]])


def test_held_out_sentences_are_not_trained_on_however_often_they_occur(folder, parts):
    texts = sentences(60) * 3
    data = token_data(texts, "corpus", TextEncoder(parts[2], 24), folder / "c")
    rows, kept = held_out.split(data, 7, seed=5)
    assert len(kept) == 7
    apart = {texts[row] for row in kept}
    assert len(apart) == 7
    assert len(rows) == 180 - 3 * 7
    assert not apart & {texts[row] for row in rows}
    assert not np.array_equal(kept, held_out.split(data, 7, seed=6)[1])
    assert len(held_out.split(data, None, seed=5)[1]) == 3  # one in 20


def test_held_out_loss_and_accuracy_are_of_all_hidden_tokens(parts):
    data, guesses, tokenizer = parts
    order = order_of(data, data.rows[:30], budget=100)
    measure, bert = held_out.HeldOut(order, guesses), small_bert(tokenizer).train()
    loss, accuracy = measure(bert, torch.device("cpu"))
    assert bert.training
    assert len(measure.batches) > 3
    losses, right = [], []
    for batch in measure.batches:
        logits = model.logits_of(bert.eval(), batch).detach()
        losses.append(-logits.log_softmax(1)[range(len(logits)), batch["guessed"]])
        right.append(logits.argmax(1) == batch["guessed"])
    assert loss == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    assert accuracy == pytest.approx(torch.cat(right).double().mean().item())


def test_a_toy_corpus_is_learned(learned):
    assert learned.before.loss == pytest.approx(np.log(learned.vocabulary_size), rel=0.05)
    assert learned.after.loss < 1
    assert learned.before.accuracy < 0.2
    assert learned.after.accuracy > 0.8
    assert np.mean(learned.history.losses[-5:]) < 1
    assert [one.step for one in learned.history.evaluations] == [0, 50, 100]
    history = learned.history
    assert 0 < history.real_tokens <= history.padded_tokens < 1.1 * history.real_tokens
    assert 0.1 < history.guessed_tokens / history.real_tokens < 0.16


def test_the_result_is_a_model_of_transformers(learned, tmp_path):
    masked, told = AutoModelForMaskedLM.from_pretrained(learned.folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert masked.num_parameters() == learned.parameters
    assert masked.config.hidden_dropout_prob == 0.1  # though it was pre-trained without
    tokenizer = AutoTokenizer.from_pretrained(learned.folder)
    assert tokenizer.model_max_length == 24
    encoded = tokenizer("W1 w2 w3", "w4")
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"])[0] == "[CLS]"
    assert tokenizer.decode(encoded["input_ids"]) == "[CLS] w1 w2 w3 [SEP] w4 [SEP]"
    plain = AutoModel.from_pretrained(learned.folder)
    assert torch.equal(
        plain.encoder.layer[0].output.dense.weight, masked.bert.encoder.layer[0].output.dense.weight
    )
    encoder = SentenceTransformer(str(learned.folder), device="cpu")
    assert np.isfinite(encoder.encode(["w1 w2"])).all()
    options = {"steps": 2, "batch_size": 8, "mlm_weight": 0.1, "device": "cpu", "max_length": 24}
    going_on = train(str(learned.folder), unsupervised=REPEATED, output=tmp_path, **options)
    assert not [note for note in going_on.notes if "begins with random weights" in note]
    assert going_on.history.mlm_losses[0] < learned.before.loss - 1  # its head goes on


def test_what_the_result_lacks_is_the_same_whenever_it_is_loaded(learned):
    """A masked language model has no pooler; runs that go on know a model by its weights."""
    before = torch.random.get_rng_state()
    known = {weights_of(load(str(learned.folder), "cpu")[0]) for _ in range(2)}
    assert len(known) == 1
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_model_that_learned_nothing_but_frequencies_is_named(run, learned):
    assert not [note for note in learned.notes if "commonest token" in note]
    (note,) = (note for note in run(learning_rate=1e-9).notes if "commonest token" in note)
    assert "a lower learning_rate or a longer warmup may help" in note


def test_the_same_seed_comes_to_the_same_bits(run):
    one, two, other = run("one"), run("two"), run("other", seed=1)
    hashes = [
        weights_hash(AutoModelForMaskedLM.from_pretrained(r.folder)) for r in (one, two, other)
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    assert one.history.losses == two.history.losses
    assert one.before[2:] != other.before[2:]


@pytest.mark.parametrize("stop", [1, 4, 6, 12])  # early, at a checkpoint, after one, in the last
def test_stopped_and_resumed_is_uninterrupted(run, monkeypatch, stop):
    whole = run("whole")
    compute = trainer.MlmTrainer.compute_loss

    def stopping(self, *arguments, **options):
        loss = compute(self, *arguments, **options)
        self.run.stop.asked = len(self.run.history.losses) == stop
        return loss

    monkeypatch.setattr(trainer.MlmTrainer, "compute_loss", stopping)
    if stop < 12:
        with pytest.raises(KeyboardInterrupt, match=f"checkpoint-{stop} is whole, resume goes on"):
            run("stopped")
    monkeypatch.setattr(trainer.MlmTrainer, "compute_loss", compute)
    resumed = run("stopped", resume=True)
    assert resumed.history.losses == whole.history.losses
    pairs = zip(resumed.history.evaluations, whole.history.evaluations, strict=True)
    assert all(one._replace(seconds=0) == two._replace(seconds=0) for one, two in pairs)
    hashes = [
        weights_hash(AutoModelForMaskedLM.from_pretrained(r.folder)) for r in (resumed, whole)
    ]
    assert hashes[0] == hashes[1]
    assert (
        weights_hash(AutoModelForMaskedLM.from_pretrained(run("stopped", resume=True).folder))
        == hashes[0]
    )


def test_time_ends_a_run_and_lowers_the_rate(run, monkeypatch):
    rates = []
    compute = trainer.MlmTrainer.compute_loss

    def noted(self, *arguments, **options):
        rates.append(self.optimizer.param_groups[0]["lr"])
        return compute(self, *arguments, **options)

    monkeypatch.setattr(trainer.MlmTrainer, "compute_loss", noted)
    monkeypatch.setattr(trainer.Run, "elapsed", lambda self: 6.0 * len(self.history.losses))
    result = run(steps=None, minutes=1, warmup=0.2, learning_rate=1e-3)
    assert result.steps == len(rates) == 10
    expected = [0, 0.5, 1, *(n / 8 for n in (7, 6, 5, 4, 3, 2, 1))]
    assert np.allclose(rates, 1e-3 * np.array(expected))
    assert result.after.step == 10
    assert result.after.seconds == 60


def test_steps_lower_the_rate_to_nothing(run, monkeypatch):
    rates = []
    compute = trainer.MlmTrainer.compute_loss

    def noted(self, *arguments, **options):
        rates.append(self.optimizer.param_groups[0]["lr"])
        return compute(self, *arguments, **options)

    monkeypatch.setattr(trainer.MlmTrainer, "compute_loss", noted)
    run(steps=10, warmup=0.2, learning_rate=1e-3)
    middle = (np.arange(10) + 0.5) / 10
    expected = np.where(middle < 0.2, middle / 0.2, (1 - middle) / 0.8)
    assert np.allclose(rates, 1e-3 * expected)


def test_epochs_are_passes_over_the_corpus(run):
    one, two = run("one", steps=None), run("two", steps=None, epochs=2.0)
    assert two.steps == 2 * one.steps
    assert 0.9 * 380 < one.history.sentences <= 380  # 20 of 400 are held out


def test_bfloat16_learns_about_the_same(run):
    full, half = run("full", dropout=0.0), run("half", dropout=0.0, bf16=True)
    assert full.history.losses != half.history.losses
    assert np.allclose(full.history.losses, half.history.losses, atol=0.02)


def test_a_vocabulary_is_learned_once(run, monkeypatch):
    first = run("first", steps=1)
    monkeypatch.setattr(vocabulary, "learn", None)
    again = run("again", steps=1)
    tokenizers = [AutoTokenizer.from_pretrained(result.folder) for result in (first, again)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    numbers = [tokenizers[0].convert_tokens_to_ids(word) for word in vocabulary.SPECIAL.values()]
    assert numbers == [0, 1, 2, 3, 4]
    assert first.vocabulary_size == 200


def test_an_existing_tokenizer_is_used(run, tmp_path):
    bert = save_bert(tmp_path / "bert")
    result = run(tokenizer=bert, vocabulary_size=None, steps=2)
    assert result.vocabulary_size == len(WORDS) + 5
    made = AutoTokenizer.from_pretrained(result.folder)
    assert made.get_vocab() == AutoTokenizer.from_pretrained(bert).get_vocab()


def test_an_iterator_is_read_once(folder, tmp_path):
    given = SMALL | {"steps": 1, "cache": folder / "cache"}
    result = pretrain_mlm(iter(sentences(400)), output=tmp_path, **given)
    assert result.data.rows == 400


BAD = [
    ({"steps": 5, "epochs": 1.0}, "epochs: expected one of epochs, steps and minutes, got epochs"),
    ({"minutes": 0.0, "steps": None}, "minutes: expected a finite number > 0, got 0"),
    ({"heads": 3}, "heads: expected a divisor of the width 16, got 3"),
    ({"batch_tokens": 20}, "batch_tokens: expected at least max_length, 24, got 20"),
    ({"layers": 0}, "layers: expected a whole number >= 1, got 0"),
    ({"dropout": 1.5}, r"dropout: expected a finite number in \[0, 1\], got 1.5"),
    ({"learning_rate": float("nan")}, "learning_rate: expected a finite number"),
    ({"tokenizer": "x"}, "vocabulary_size: the tokenizer that was given has one"),
    ({"tokenizer": "no/such", "vocabulary_size": None}, "tokenizer: no/such cannot be loaded"),
    ({"held_out": 400}, "held_out: expected fewer than the corpus has different sentences, "),
    ({"device": "abacus"}, "device: expected cpu"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input_is_named(run, monkeypatch, options, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=message):
        run(**options)


def test_bad_corpora_are_named(tmp_path):
    with pytest.raises(InputError, match=r"corpus: .*gone.txt cannot be read"):
        pretrain_mlm(tmp_path / "gone.txt", output=tmp_path / "out", **SMALL)
    with pytest.raises(InputError, match="corpus: list is empty"):
        pretrain_mlm([], output=tmp_path / "out", **SMALL)
    with pytest.raises(TypeError, match="corpus: expected"):
        pretrain_mlm(3, output=tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="runs in one process; start it without torchrun"):
        run()


def test_another_run_is_not_mixed_in(run):
    run(steps=4)
    with pytest.raises(InputError, match="holds an earlier run; resume it, or name another"):
        run(steps=4)
    with pytest.raises(InputError, match="was trained with width 16, now it is 32; give the same"):
        run(steps=4, width=32, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(run, monkeypatch):
    monkeypatch.setattr(trainer, "loss_of", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(InputError, match="the loss of step 1 is nan; a lower learning_rate may"):
        run()
