"""simcse-fast pretrain-mlm."""

import json
import re
from dataclasses import fields

import pytest

pytest.importorskip("sentence_transformers", reason="needs the extra pretrain-mlm")

from train_models import sentences, write_lines
from transformers import AutoModelForMaskedLM

from simcse_fast import cli
from simcse_fast.pretraining import trainer
from simcse_fast.pretraining.options import Options

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = "--layers 1 --width 16 --heads 2 --vocabulary-size 200 --max-length 24 --batch-tokens 512"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("text") / "text.txt", sentences(400))


def command(text, output, *arguments):
    fixed = ["pretrain-mlm", text, "--output", output, *SMALL.split(), "--device", "cpu"]
    return cli.main([str(one) for one in (*fixed, "--cache", text.parent / "cache", *arguments)])


def test_json_tells_everything(text, tmp_path, capsys):
    assert command(text, tmp_path / "out", "--steps", 6, "--evaluation-steps", 4, "--json") == 0
    output = capsys.readouterr()
    told = json.loads(output.out)
    assert "steps/s" not in output.err  # no bar where no one watches
    assert told["model"] == str(tmp_path / "out" / "final")
    assert told["steps"] == len(told["losses"]) == 6
    assert [one["step"] for one in told["evaluations"]] == [0, 4, 6]
    assert set(told["evaluations"][0]) == {"step", "seconds", "loss", "accuracy"}
    assert told["vocabulary_size"] == 200
    assert told["tokens_per_second"] == pytest.approx(told["real_tokens"] / told["seconds"])
    model = AutoModelForMaskedLM.from_pretrained(told["model"])
    assert told["parameters"] == model.num_parameters()
    layers = sum(value.numel() for value in model.bert.encoder.parameters())
    assert told["encoder_parameters"] == layers
    stored = json.loads((tmp_path / "out" / "final" / "history.json").read_text(encoding="utf-8"))
    assert stored["losses"] == told["losses"]


def test_summary_for_people(text, tmp_path, capsys):
    assert command(text, tmp_path / "out", "--epochs", 0.2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Data     400 rows, ")
    assert re.fullmatch(r"Size     [\d,]+ parameters, [\d,]+ in layers; 200 words", lines[-5])
    assert re.fullmatch(r"Steps    [\d,]+ in \d+ s, [\d,]+ tokens/s", lines[-4])
    assert re.fullmatch(r"Tokens   [\d,]+ real, [\d,]+ with padding \(1\.0\d times\)", lines[-3])
    held_out = r"Held out loss 5\.\d{3} -> 5\.\d{3}, guessed \d+\.\d% -> \d+\.\d%"
    assert re.fullmatch(held_out, lines[-2])
    assert lines[-1] == f"Model    {tmp_path / 'out' / 'final'}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--held-out", 1000], "held_out: expected fewer than the corpus has"),
        (["--warmup", 2], "warmup: expected a finite number in [0, 1], got 2"),
        (["--output", "/proc/x"], "output: /proc/x cannot be written"),
        (["--heads", 5], "heads: expected a divisor of the width 16, got 5"),
    ],
)
def test_bad_input_is_one_sentence_and_exits_2(text, tmp_path, capsys, arguments, message):
    assert command(text, tmp_path / "out", *arguments) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"simcse-fast: {message}")
    assert not (tmp_path / "out").exists()


def test_interrupted_says_what_goes_on(text, tmp_path, capsys, monkeypatch):
    compute = trainer.MlmTrainer.compute_loss

    def stopping(self, *arguments, **options):
        self.run.stop.asked = True
        return compute(self, *arguments, **options)

    monkeypatch.setattr(trainer.MlmTrainer, "compute_loss", stopping)
    assert command(text, tmp_path / "out", "--steps", 3) == 130
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("simcse-fast: pretrain-mlm was interrupted; training was stopped; ")
    assert told.endswith("checkpoint-1 is whole, resume goes on from it")
    monkeypatch.undo()
    assert command(text, tmp_path / "out", "--steps", 3, "--resume") == 0
    assert "resumed from" in capsys.readouterr().out


@pytest.mark.parametrize(("width", "rate"), [(16, 1e-3), (192, 1e-3), (384, 5e-4), (768, 2.5e-4)])
def test_wide_models_learn_more_slowly_by_default(width, rate):
    blank = dict.fromkeys([field.name for field in fields(Options)])
    given = blank | {"layers": 1, "width": width, "max_length": 8, "batch_tokens": 8}
    assert Options(**given).highest_rate == pytest.approx(rate)
    assert Options(**given | {"learning_rate": 0.1}).highest_rate == 0.1
