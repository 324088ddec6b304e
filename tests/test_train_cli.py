"""simcse-fast train, and the arguments of `train` that it refuses."""

import json
import re

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra train")

from sentence_transformers import SentenceTransformer
from train_models import save_bert, save_static, scored_pairs, sentences, triplets, write_lines

from simcse_fast import cli, train
from simcse_fast.errors import InputError
from simcse_fast.training import progress

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    return {
        "bert": save_bert(folder / "bert"),
        "static": save_static(folder / "static"),
        "text": write_lines(folder / "text.txt", [*sentences(99), "c1 " * 50, "", *sentences(9)]),
        "triplets": write_lines(folder / "triplets.tsv", triplets(100)),
        "scored": write_lines(folder / "scored.tsv", scored_pairs(40)),
    }


def command(given, output, *arguments, model="bert"):
    names = {key.upper(): str(path) for key, path in given.items()}
    arguments = [names.get(argument, argument) for argument in map(str, arguments)]
    fixed = ["--model", str(given[model]), "--output", str(output), "--device", "cpu"]
    return cli.main(["train", *fixed, *arguments])


def test_json_tells_everything(given, tmp_path, capsys):
    options = "--batch-size 20 --evaluate SCORED --evaluation-steps 3 --epochs 2 --max-length 16"
    options = ["--unsupervised", "TEXT", *options.split(), "--learning-rate", 1e-3, "--json"]
    assert command(given, tmp_path / "out", *options) == 0
    output = capsys.readouterr()
    told = json.loads(output.out)
    assert "steps/s" not in output.err  # no bar where no one watches
    assert told["model"] == str(tmp_path / "out" / "final")
    assert (told["steps"], len(told["losses"]), told["sentences"]) == (10, 10, 200)
    assert [one["step"] for one in told["evaluations"]] == [0, 3, 6, 9, 10]
    assert told["best"][1] == max(one["spearman"] for one in told["evaluations"][1:])
    assert told["data"]["rows"] == 109
    assert (told["data"]["dropped"], told["data"]["duplicates"]) == (1, 9)
    assert told["data"]["truncated"] >= 1
    assert told["duplicates_masked"] <= 18
    assert told["sentences_per_second"] == pytest.approx(200 / told["seconds"])
    assert 0 < told["real_tokens"] <= told["padded_tokens"] <= 200 * 2 * 16
    SentenceTransformer(told["model"], device="cpu").encode(["c1"])


def test_summary_for_people(given, tmp_path, capsys):
    options = ["--triplets", "TRIPLETS", "--batch-size", 50, "--steps", 4, "--pooling", "avg"]
    options += ["--evaluate", "SCORED", "--report-to", "none", "--save-steps", 2]
    assert command(given, tmp_path / "out", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Data   100 rows, ")
    assert re.fullmatch(r"Steps  4 in \d+ s, [\d,]+ sentences/s, loss \d\.\d{4} -> .*", lines[-4])
    assert re.fullmatch(r"Tokens [\d,]+ real, [\d,]+ with padding \(1\.\d\d times\)", lines[-3])
    assert re.fullmatch(r"STS    -?\d+\.\d\d -> -?\d+\.\d\d \(step 4\)", lines[-2])
    assert lines[-1] == f"Model  {tmp_path / 'out' / 'final'}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--unsupervised", "gone.txt"], "gone.txt cannot be read", id="no-file"),
        pytest.param(["--triplets", "TEXT"], "expected 2 or 3", id="text-as-triplets"),
        pytest.param(
            ["--unsupervised", "TEXT", "--batch-size", 999], "batch_size: got 999", id="big"
        ),
        pytest.param(["--unsupervised", "TEXT", "--max-length", 65], "has 64 positions", id="long"),
        pytest.param(["--unsupervised", "TEXT", "--temperature", 0], "temperature: ", id="zero"),
        pytest.param(
            ["--unsupervised", "TEXT", "--learning-rate", "nan"], "learning_rate", id="nan"
        ),
        pytest.param(["--unsupervised", "TEXT", "--warmup", 2], "in [0, 1], got 2", id="warmup"),
        pytest.param(["--unsupervised", "TEXT", "--patience", 2], "needs evaluate", id="patience"),
        pytest.param(
            ["--unsupervised", "TEXT", "--epochs", 1, "--steps", 1],
            "got both",
            id="epochs-and-steps",
        ),
        pytest.param(["--triplets", "TRIPLETS", "--symmetric"], "needs pairs", id="symmetric"),
        pytest.param(
            ["--unsupervised", "TEXT", "--model", "no/such"], "no/such cannot be", id="model"
        ),
        pytest.param(
            ["--unsupervised", "TEXT", "--output", "TEXT"], "cannot be written", id="output"
        ),
        pytest.param(
            ["--unsupervised", "TEXT", "--fp16", "--bf16"], "bf16 or fp16", id="precision"
        ),
        pytest.param(
            ["--unsupervised", "TEXT", "--report-to", "x"], "report_to: x is not", id="report"
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exits_2(given, tmp_path, capsys, arguments, message):
    assert command(given, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err.splitlines()
    told = [line for line in error if line.startswith("simcse-fast: ")]
    assert len(told) == 1
    assert message in told[0]
    left = [path.name for path in (tmp_path / "out").glob("*")]
    assert left in ([], ["cache"])  # token ids are of use to the next run
    assert (tmp_path / "out").exists() == bool(left)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            [], "one of the arguments --unsupervised --triplets is required", id="neither"
        ),
        pytest.param(["--unsupervised", "a", "--triplets", "b"], "not allowed with", id="both"),
        pytest.param(
            ["--unsupervised", "a", "--pooling", "max"], "invalid choice: 'max'", id="pool"
        ),
        pytest.param(
            ["--unsupervised", "a", "--batch-size", "1"], ">= 2, got '1'", id="batch-of-one"
        ),
    ],
)
def test_wrong_arguments_are_one_sentence(given, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as left:
        command(given, tmp_path / "out", *arguments)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        pytest.param({}, ValueError, "either unsupervised or triplets, got neither", id="neither"),
        pytest.param({"unsupervised": "a", "triplets": "b"}, ValueError, "got both", id="both"),
        pytest.param({"batch_size": 1}, ValueError, "batch_size: .*>= 2, got 1", id="batch-of-one"),
        pytest.param({"batch_size": 2.5}, TypeError, "batch_size: .*got 2.5", id="half-a-row"),
        pytest.param({"temperature": "hot"}, TypeError, "temperature: .*got 'hot'", id="text"),
        pytest.param(
            {"duplicates": "drop"}, ValueError, "mask or keep, got 'drop'", id="duplicates"
        ),
        pytest.param(
            {"pooling": "max"}, ValueError, "pooling: .*cls.*avg.*got 'max'", id="pooling"
        ),
        pytest.param({"device": "cud"}, ValueError, "device: expected cpu.* 'cud'", id="device"),
        pytest.param({"model": 3}, TypeError, "model: expected a SentenceTransformer", id="model"),
        pytest.param({"unsupervised": ["c1"] * 5 + [7]}, TypeError, "entry 5 is int", id="number"),
        pytest.param(
            {"epochs": float("inf")}, ValueError, "epochs: expected a finite", id="forever"
        ),
    ],
)
def test_bad_arguments_of_train(given, tmp_path, options, error, message):
    fixed = {"model": str(given["bert"]), "output": tmp_path / "out", "device": "cpu"}
    if "unsupervised" not in options and "got neither" not in message:
        fixed["unsupervised"] = given["text"]
    with pytest.raises(error, match=message):
        train(**(fixed | options))


def test_pooling_that_the_model_cannot_have(given, tmp_path):
    fixed = {"unsupervised": given["text"], "output": tmp_path / "out", "device": "cpu"}
    with pytest.raises(InputError, match="a static model has none to choose, got 'avg'"):
        train(str(given["static"]), pooling="avg", **fixed)
    shallow = save_bert(tmp_path / "shallow", layers=1)
    with pytest.raises(InputError, match="avg_top2 needs two layers, the model has 1"):
        train(str(shallow), pooling="avg_top2", **fixed)
    headed = train(
        str(given["bert"]), triplets=given["triplets"], output=tmp_path / "a", steps=1, device="cpu"
    )
    with pytest.raises(InputError, match="for a model that ends in Dense; leave it out"):
        train(headed.model, pooling="avg", **fixed)


def test_loss_that_is_nan_names_step_and_rows(given, tmp_path):
    model = SentenceTransformer(str(given["static"]), device="cpu")
    lines = sentences(40)
    word = lines[3].split()[0]
    with torch.no_grad():
        model[0].embedding.weight[model.tokenizer.token_to_id(word)] = float("nan")
    rows = [row for row, line in enumerate(lines) if word in line.split()]
    named = ", ".join(map(str, rows))
    message = f"the loss of step 1 is nan: embeddings of rows {named} are not finite"
    with pytest.raises(ValueError, match=message):
        train(model, unsupervised=lines, output=tmp_path / "out", batch_size=40, device="cpu")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cache"]


def test_gradient_that_is_nan_stops_before_the_weights(given, tmp_path):
    model = SentenceTransformer(str(given["static"]), device="cpu")
    weight = model[0].embedding.weight
    weight.register_hook(lambda gradient: gradient * torch.nan)
    options = {"unsupervised": sentences(40), "batch_size": 40, "save_steps": 1, "device": "cpu"}
    with pytest.raises(InputError, match="the gradient of step 1 is not finite"):
        train(model, output=tmp_path / "out", **options)
    assert torch.isfinite(weight).all()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cache"]


def test_bar_shows_loss_speed_and_memory(given, tmp_path, monkeypatch):
    shown = []
    real = progress.tqdm

    def watched(*arguments, **options):
        bar = real(*arguments, **(options | {"disable": False}))
        monkeypatch.setattr(bar, "set_postfix_str", lambda text, **_: shown.append(text))
        return bar

    monkeypatch.setattr(progress, "tqdm", watched)
    options = {"unsupervised": given["text"], "evaluate": given["scored"], "steps": 2}
    train(str(given["static"]), output=tmp_path / "out", batch_size=20, device="cpu", **options)
    assert len(shown) == 2
    pattern = r"loss \d+\.\d{4}, [\d,]+ sentences/s, \d+\.\d GiB, STS -?\d+\.\d\d"
    assert all(re.fullmatch(pattern, text) for text in shown)
