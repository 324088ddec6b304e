"""simcse-fast evaluate: tables, files, runs that go on, and what it refuses."""

import json
import os
import shutil
import sys

import pytest
from evaluation_data import classes, pairs, write_classes, write_sts

from simcse_fast import cli
from simcse_fast.cli.models import weights_of
from simcse_fast.evaluation import Evaluation, evaluate, table

pytest.importorskip("sentence_transformers", reason="needs the extra evaluate")

from sentence_transformers import SentenceTransformer
from train_models import save_bert, save_static
from transformers import AutoModel, AutoTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
SPACE = ["STS-B", "alignment", "uniformity"]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with two models, tasks, and words the models know."""
    folder = tmp_path_factory.mktemp("evaluate")
    save_bert(folder / "bert")
    save_static(folder / "static")
    rows = [
        (source, score, f"c{row} t1w{row % 9}", f"c{row + 1} t{row % 7}w2")
        for row, (source, score, *_) in enumerate(pairs(40))
    ]
    for part in ("dev", "test"):
        write_sts(folder / "data", f"stsb_{part}", rows)
    write_classes(folder / "data", "mr", classes(40, 1))
    return folder


@pytest.fixture
def run(given, monkeypatch, capsys):
    """The command in that folder; its exit code and what it prints."""
    monkeypatch.chdir(given)

    def command(*arguments):
        given = ["evaluate", "--data-dir", "data", "--device", "cpu", *map(str, arguments)]
        code = cli.main(given)
        return code, *capsys.readouterr()

    return command


def scores(given, name, tasks, pooling=None):
    """What the public function says."""
    model = SentenceTransformer(str(given / name), device="cpu")
    if pooling:
        model = tuple(one.from_pretrained(given / name) for one in (AutoModel, AutoTokenizer))
    return evaluate(model, tasks, "data", pooling=pooling, progress=False)


def test_models_stand_side_by_side(run, given):
    code, out, err = run("bert", "static", "--tasks", "sts", "transfer")
    results = {name: scores(given, name, ["sts", "transfer"]) for name in ("bert", "static")}
    assert (code, out.rstrip()) == (0, table(results))
    assert err == ""  # no bar where no one watches
    assert out.splitlines()[2].startswith("| bert   | ")
    assert "STS12 was skipped: neither sts/sts12.tsv" in out


def test_json_and_files(run, given, tmp_path):
    output, plot = tmp_path / "results.json", tmp_path / "space.svg"
    code, out, _ = run(
        "bert", "static", "--tasks", *SPACE, "--output", output, "--plot", plot, "--json"
    )
    told = json.loads(out, parse_constant=pytest.fail)
    assert code == 0
    assert told["settings"] == {"tasks": SPACE, "data_dir": str(given / "data"), "seed": 0}
    assert told["models"]["bert"]["scores"] == pytest.approx(dict(scores(given, "bert", SPACE)))
    assert (told.pop("resumed"), told.pop("changed")) == ([], [])
    assert json.loads(output.read_text(encoding="utf-8")) == told
    assert plot.read_text(encoding="utf-8").startswith("<?xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "space.svg"]


def test_pooling_is_that_of_plain_transformers(run, given):
    code, out, _ = run("bert", "--tasks", "STS-B", "--pooling", "cls", "--json")
    told = json.loads(out)["models"]
    assert code == 0
    assert told["bert (cls)"]["scores"] == pytest.approx(
        dict(scores(given, "bert", "STS-B", "cls"))
    )
    code, _, err = run("static", "--tasks", "STS-B", "--pooling", "cls")
    assert code == 2
    assert "static: pooling: belongs to a pair" in err


def test_next_run_skips_what_is_done(run, tmp_path, monkeypatch):
    output = tmp_path / "results.json"
    fixed = ["--tasks", "STS-B", "--output", output]
    assert run("bert", *fixed)[0] == 0
    told = json.loads(output.read_text(encoding="utf-8"))
    told["models"]["bert"]["scores"]["STS-B"] = 99.99  # to be known again
    output.write_text(json.dumps(told), encoding="utf-8")
    code, out, _ = run("bert", "static", *fixed)
    assert code == 0
    assert "99.99" in out
    assert "Done before  bert; --restart does all again" in out
    assert list(json.loads(output.read_text(encoding="utf-8"))["models"]) == ["bert", "static"]
    code, out, _ = run("static", *fixed, "--json")
    assert json.loads(out)["resumed"] == ["static"]
    assert "99.99" not in run("bert", *fixed, "--restart")[1]
    assert list(json.loads(output.read_text(encoding="utf-8"))["models"]) == ["bert"]


@pytest.fixture
def copied(given, tmp_path):
    """A model whose files a test may change."""
    return shutil.copytree(given / "static", tmp_path / "model")


def other_scores(path):
    """Results that are to be known again."""
    told = json.loads(path.read_text(encoding="utf-8"))
    for one in told["models"].values():
        one["scores"]["STS-B"] = 99.99
    path.write_text(json.dumps(told), encoding="utf-8")
    return told


def test_a_folder_that_was_trained_again_is_evaluated_again(run, copied):
    output = copied / "results.json"  # no part of the model
    fixed = [copied, "bert", "--tasks", "STS-B", "--output", output]
    assert run(*fixed)[0] == 0
    other_scores(output)
    assert json.loads(run(*fixed, "--json")[1])["changed"] == []
    weights = next(copied.rglob("model.safetensors"))
    about = weights.stat()
    os.utime(weights, ns=(about.st_atime_ns, about.st_mtime_ns + 10**9))
    told = json.loads(run(*fixed, "--json")[1])
    assert (told["resumed"], told["changed"]) == (["bert"], [str(copied)])
    assert told["models"][str(copied)]["scores"]["STS-B"] != 99.99
    assert told["models"]["bert"]["scores"]["STS-B"] == 99.99
    assert json.loads(run(*fixed, "--json")[1])["changed"] == []
    (copied / "more.txt").write_text("x", encoding="utf-8")
    out = run(*fixed)[1]
    assert f"Done before  bert; --restart does all again\nDone again  {copied}; files have" in out


def test_results_that_do_not_tell_their_weights_count_as_done(run, copied, tmp_path):
    output = tmp_path / "results.json"
    fixed = [copied, "--tasks", "STS-B", "--output", output, "--json"]
    run(*fixed)
    told = other_scores(output)
    del told["weights"]  # as files of before are
    output.write_text(json.dumps(told), encoding="utf-8")
    told = json.loads(run(*fixed)[1])
    assert (told["resumed"], told["changed"]) == ([str(copied)], [])
    assert told["models"][str(copied)]["scores"]["STS-B"] == 99.99


def test_only_folders_tell_their_weights(copied):
    found = weights_of(str(copied))
    assert weights_of("some/model") is None
    (copied / "picture.png").write_bytes(b"x")
    assert weights_of(str(copied), {copied / "picture.png"}) == found != weights_of(str(copied))


def test_interrupt_keeps_the_models_that_are_done(run, tmp_path, monkeypatch):
    output, done = tmp_path / "results.json", cli.evaluate.run_model

    def second_is_interrupted(name, options):
        if name == "static":
            raise KeyboardInterrupt
        return done(name, options)

    monkeypatch.setattr(cli.evaluate, "run_model", second_is_interrupted)
    code, _, err = run("bert", "static", "--tasks", "STS-B", "--output", output)
    assert code == 130
    assert (
        err
        == f"simcse-fast: evaluate was interrupted; bert is in {output}; run it again to go on\n"
    )
    assert list(json.loads(output.read_text(encoding="utf-8"))["models"]) == ["bert"]
    assert run("static", "--tasks", "STS-B")[2].endswith("interrupted; nothing was written\n")


def test_a_model_that_fails_leaves_those_before_it(run, tmp_path):
    output = tmp_path / "results.json"
    code, _, err = run("bert", "gone/model", "--tasks", "STS-B", "--output", output)
    assert code == 2
    assert "model: gone/model cannot be loaded" in err
    assert err.count("\n") == 1
    assert list(json.loads(output.read_text(encoding="utf-8"))["models"]) == ["bert"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--tasks", "STS17"], "--tasks: expected one or more of sts,", id="task"),
        pytest.param(["--tasks", "CR"], ": tasks: CR cannot run: neither", id="no-data"),
        pytest.param(
            ["--output", "r.txt"], "--output r.txt: expected a name in .json", id="ending"
        ),
        pytest.param(["--output", "no/r.json"], "there is no folder no", id="no-folder"),
        pytest.param(
            ["--output", "data.json"], "data.json: cannot be written (no reg", id="folder"
        ),
        pytest.param(["--output", "/proc/x.json"], "/proc/x.json: cannot be written (", id="proc"),
        pytest.param(
            ["--tasks", *SPACE, "--plot", "/proc/x.png"],
            "--plot /proc/x.png: cannot be written (",
            id="proc-plot",
        ),
        pytest.param(["--plot", "p.txt"], "in .pdf or .png or .svg", id="picture"),
        pytest.param(["--plot", "p.png"], "add alignment and uniformity to --tasks", id="no-space"),
        pytest.param(["--data-dir", "no"], ": data_dir: there is no folder no", id="data"),
        pytest.param(["--restart"], "--restart: belongs to --output", id="restart"),
        pytest.param(["--output", "other.json"], "holds no results of this command", id="other"),
        pytest.param(["--output", "list.json"], "holds no results of this command", id="list"),
        pytest.param(
            ["--output", "mr.json"], "holds results for tasks ['MR'], not ['STS12'", id="tasks"
        ),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, run, given, monkeypatch):
    monkeypatch.setattr(cli.evaluate, "run_model", pytest.fail)  # all of it is found before
    (given / "data.json").mkdir(exist_ok=True)
    (given / "other.json").write_text('{"models": 3}', encoding="utf-8")
    (given / "list.json").write_text("[1", encoding="utf-8")
    settings = {"tasks": ["MR"], "data_dir": str(given / "data"), "seed": 0}
    text = json.dumps({"settings": settings, "models": {"m": Evaluation({}, {}).to_dict()}})
    (given / "mr.json").write_text(text, encoding="utf-8")
    code, out, err = run("bert", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_matplotlib_is_asked_for_before_the_work(run, monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "simcse_fast.evaluation.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(cli.evaluate, "run_model", pytest.fail)
    code, _, err = run("bert", "--tasks", *SPACE, "--plot", tmp_path / "p.png")
    assert code == 2
    assert "evaluate needs the package matplotlib" in err
    assert "pip install 'simcse-fast[evaluate]'" in err
