"""Runs of an ablation: none is made twice, whoever stopped it; and what is refused."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sentence_transformers", reason="needs the extra ablate")
pytest.importorskip("scipy", reason="needs the extra ablate")

from ablation_cases import ablated, files
from sentence_transformers import SentenceTransformer
from train_models import save_bert, scored_pairs, sentences, triplets

from simcse_fast.ablations import run as runs_module
from simcse_fast.ablations.store import Store
from simcse_fast.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return files(tmp_path_factory.mktemp("ablate"))


@pytest.fixture
def trainings(monkeypatch):
    """The runs that are made while a test runs."""
    made, original = [], runs_module.one_run

    def counted(bench, name, configuration, seed):
        made.append((configuration.name, seed))
        return original(bench, name, configuration, seed)

    monkeypatch.setattr(runs_module, "one_run", counted)
    return made


def test_nothing_is_trained_twice(given, tmp_path, trainings):
    result = ablated(given, tmp_path / "out", vary=["temperature", "objective"])
    # The model as it is stands in both groups; the first seed comes first.
    assert len(trainings) == 2 * (5 + 3 - 1)
    assert [seed for _, seed in trainings] == [0] * 7 + [1] * 7
    again = ablated(given, tmp_path / "out", vary=["temperature", "objective"])
    assert again.rows == result.rows
    assert len(trainings) == 14
    ablated(given, tmp_path / "out", vary=["temperature"], seeds=3)  # more of the same
    assert trainings[14:] == [(name, 2) for name in ("0.001", "0.01", "0.05", "0.1", "1")]
    ablated(given, tmp_path / "out", vary=["temperature"], seeds=2, trajectories=2)
    assert [seed for _, seed in trainings[19:]] == [1] * 5  # they had no trajectory
    torn = tmp_path / "out" / "runs" / f"{result.rows[0]['run']}.json"
    torn.write_text(torn.read_text(encoding="utf-8")[:99], encoding="utf-8")
    del trainings[:]
    ablated(given, tmp_path / "out", vary=["temperature"], seeds=1)
    assert trainings == [("0.001", 0)]


def test_a_killed_ablation_goes_on(given, tmp_path, trainings):
    command = [sys.executable, Path(__file__).with_name("ablation_killed.py"), given["folder"], "4"]
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    killed = subprocess.run(command, check=False, env=environment)  # noqa: S603
    assert killed.returncode == -9
    folder = given["folder"] / "killed"
    assert len(list(folder.glob("runs/*.json"))) == 4
    result = ablated(given, folder)
    assert len(trainings) == 2 * 5 - 4
    whole = ablated(given, tmp_path / "whole")
    measures = ("run", "development", "alignment", "uniformity", "losses")
    assert [[row[m] for m in measures] for row in result.rows] == [
        [row[m] for m in measures] for row in whole.rows
    ]


def test_an_interrupted_ablation_says_where_it_is(given, tmp_path, monkeypatch):
    original, made = runs_module.one_run, []

    def interrupted(*arguments):
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(runs_module, "one_run", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"2 of 10 runs are in .*; the same again goes on"):
        ablated(given, tmp_path / "out")


def hold(folder, name, ready, done):
    with Store(folder).alone(name):
        ready.set()
        done.wait(60)


def test_two_processes_share_the_runs(given, tmp_path, trainings, monkeypatch):
    result = ablated(given, tmp_path / "out", seeds=1)
    name = result.rows[1]["run"]
    kept = tmp_path / "out" / "runs" / f"{name}.json"
    content = kept.read_text(encoding="utf-8")
    kept.unlink()
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "out", name, ready, done))
    other.start()
    ready.wait(60)
    original, asked = Store.alone, []

    def alone(self, name, *, wait=True):
        asked.append((name, wait))
        if wait and name == result.rows[1]["run"]:
            kept.write_text(content, encoding="utf-8")  # the other one is done
            done.set()
        return original(self, name, wait=wait)

    monkeypatch.setattr(Store, "alone", alone)
    del trainings[:]
    again = ablated(given, tmp_path / "out", seeds=1)
    other.join()
    assert trainings == []
    assert again.rows == result.rows
    assert (name, False) in asked
    assert (name, True) in asked
    assert not list((tmp_path / "out" / "runs").glob("*.lock"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"learning_rate": 1e-4}, "are of training .* 0.0001}; give", id="option"),
        pytest.param({"sentences": sentences(99)}, "are of another sentences", id="text"),
        pytest.param({"development": scored_pairs(20)}, "are of another development", id="pairs"),
        pytest.param({"test": scored_pairs(20)}, "are of another test", id="test"),
        pytest.param({"model": "bert"}, "are of another model", id="model"),
    ],
)
def test_another_ablations_folder_is_refused(given, tmp_path, options, message):
    ablated(given, tmp_path, seeds=1, vary={"a": {}})
    with pytest.raises(InputError, match=f"output: the runs in .* {message}"):
        ablated(given, tmp_path, seeds=1, vary={"a": {}}, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        pytest.param({"vary": "weather"}, ValueError, "vary: expected one or more of", id="group"),
        pytest.param({"vary": []}, ValueError, "expected one or more configurations", id="none"),
        pytest.param({"vary": 3}, TypeError, "vary: expected names of groups", id="number"),
        pytest.param(
            {"vary": ["temperature", "dropout"]},
            ValueError,
            "vary: a static model has no dropout to vary; it has temperature, batch",
            id="static",
        ),
        pytest.param(
            {"vary": "hard_negatives"}, ValueError, "needs triplets with negatives", id="negatives"
        ),
        pytest.param(
            {"sentences": None, "triplets": triplets(40)},
            ValueError,
            "vary: temperature needs sentences, got none",
            id="sentences",
        ),
        pytest.param(
            {"sentences": None}, ValueError, "expected sentences or triplets", id="nothing"
        ),
        pytest.param(
            {"vary": {"a": {"temprature": 1}}},
            ValueError,
            "vary: a: temprature is no option to set; expected some of pooling",
            id="misspelt",
        ),
        pytest.param({"seed": 3}, ValueError, "training: seed is no option to set", id="seed"),
        pytest.param(
            {"vary": {"a": {"temperature": -1}}},
            ValueError,
            "own, a: temperature: expected a finite number > 0, got -1",
            id="value",
        ),
        pytest.param(
            {"vary": {"a": {"batch_size": 999}}},
            ValueError,
            "own, a: batch_size: got 999, the data has 100 rows",
            id="batch",
        ),
        pytest.param(
            {"vary": {"a": {"augmentation": "crop"}}},
            ValueError,
            "own, a: augmentation: a static model has halves of the words",
            id="static-crop",
        ),
        pytest.param(
            {"vary": {"a": {"loss": "contrastive_tension", "temperature": 1.0}}},
            ValueError,
            "loss: contrastive tension has no temperature",
            id="tension",
        ),
        pytest.param({"seeds": 0}, ValueError, "seeds: .*>= 1, got 0", id="seeds"),
        pytest.param({"steps": 0}, ValueError, "training: steps: .*>= 1, got 0", id="steps"),
        pytest.param(
            {"development": [("a", "b")]}, ValueError, "development: row 0 has 2", id="pairs"
        ),
    ],
)
def test_bad_input(given, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        ablated(given, tmp_path / "out", **options)


def test_a_model_that_is_no_name_is_refused(given, tmp_path):
    model = SentenceTransformer(str(given["static"]), device="cpu")
    with pytest.raises(TypeError, match=r"model: expected a name or a folder.*SentenceTransformer"):
        ablated(given | {"loaded": model}, tmp_path / "out", "loaded")


def test_two_layers_of_one_are_refused_before_anything_is_trained(given, tmp_path, trainings):
    shallow = {"shallow": save_bert(tmp_path / "shallow", layers=1)}
    vary = {"first": {}, "second": {"pooling": "avg_top2"}}
    with pytest.raises(InputError, match="second: pooling: avg_top2 needs two layers, the model"):
        ablated(given | shallow, tmp_path / "out", "shallow", vary=vary)
    assert not trainings


def test_pooling_of_a_static_model_is_refused_before_anything_is_trained(
    given, tmp_path, trainings
):
    vary = {"first": {}, "second": {"pooling": "avg_top2"}}
    with pytest.raises(InputError, match="second: pooling: a static model has none to choose"):
        ablated(given, tmp_path / "out", vary=vary)
    assert not trainings
