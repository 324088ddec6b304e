"""simcse-fast ablate: its table, its JSON, what it refuses, and Ctrl-C."""

import json

import pytest

pytest.importorskip("sentence_transformers", reason="needs the extra ablate")
pytest.importorskip("scipy", reason="needs the extra ablate")

from train_models import save_static, scored_pairs, sentences, write_lines

from simcse_fast import cli
from simcse_fast.ablations import run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablate")
    return {
        "MODEL": save_static(folder / "static"),
        "TEXT": write_lines(folder / "text.txt", sentences(100)),
        "PAIRS": write_lines(folder / "pairs.tsv", scored_pairs(40)),
    }


def command(given, output, *arguments):
    fixed = "--model MODEL --unsupervised TEXT --development PAIRS --steps 2 --batch-size 64"
    fixed = [*fixed.split(), "--seeds", "2", "--device", "cpu", "--output", str(output)]
    names = {key: str(path) for key, path in given.items()}
    return cli.main(["ablate", *(names.get(one, one) for one in [*fixed, *arguments])])


def test_json_and_table_tell_the_same(given, tmp_path, capsys):
    arguments = ["--vary", "temperature", "batch", "--test", "PAIRS"]
    assert command(given, tmp_path / "out", *arguments, "--json") == 0
    output = capsys.readouterr()
    told = json.loads(output.out)
    assert "runs/s" not in output.err  # no bar where no one watches
    assert told["output"] == str(tmp_path / "out")
    names = [(one["group"], one["configuration"]) for one in told["summary"]]
    assert names[:2] == [("temperature", "0.001"), ("temperature", "0.01")]
    assert names[5:] == [("batch", "64")]
    assert all(one["runs"] == 2 for one in told["summary"])
    assert all(one["test"] == one["development"] for one in told["summary"])
    assert "batches of 256, 1,024" in told["notes"][0]
    assert command(given, tmp_path / "out", *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["development", "test", "alignment", "uniformity", "loss", "seconds"]
    first = told["summary"][0]
    shown = f"{first['development']:.2f} \u00b1 {first['development_deviation']:.2f}"
    assert lines[1].startswith("temperature")
    assert shown in lines[1]
    assert lines[-1] == f"Tables  {tmp_path / 'out'}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--vary", "dropout"], "a static model has no dropout", id="static"),
        pytest.param(["--vary", "temperature", "--test", "TEXT"], "test: ", id="test"),
        pytest.param(["--vary", "temperature", "--model", "no/such"], "no/such cannot", id="model"),
        pytest.param(
            ["--vary", "temperature", "--epochs", "1"], "steps or epochs, got both", id="both"
        ),
        pytest.param(
            ["--vary", "temperature", "--output", "TEXT"], "cannot be written", id="output"
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exits_2(given, tmp_path, capsys, arguments, message):
    assert command(given, tmp_path / "out", *arguments) == 2
    error = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("simcse-fast")
    ]
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "out" / "runs").exists()


def test_an_unknown_group_is_one_sentence(given, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        command(given, tmp_path / "out", "--vary", "weather")
    assert left.value.code == 2
    assert "invalid choice: 'weather'" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(given, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "one_run", interrupted)
    assert command(given, tmp_path / "out", "--vary", "temperature") == 130
    told = capsys.readouterr().err
    assert f"0 of 10 runs are in {tmp_path / 'out'}; the same again goes on" in told
