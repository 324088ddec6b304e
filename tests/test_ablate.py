"""Ablations: what is trained, that nothing is trained twice, and what is made of it."""

import csv
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra ablate")
pytest.importorskip("scipy", reason="needs the extra ablate")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import ContrastiveTensionLoss
from train_models import (
    save_bert,
    save_static,
    scored_pairs,
    sentences,
    triplets,
    weights_hash,
    write_lines,
)

from simcse_fast import ablate, alignment, train, uniformity
from simcse_fast.ablations import run as runs_module
from simcse_fast.ablations.groups import GROUPS, Facts, configurations
from simcse_fast.ablations.probe import Probe
from simcse_fast.ablations.result import Ablation
from simcse_fast.ablations.store import Store
from simcse_fast.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Models and texts."""
    folder = tmp_path_factory.mktemp("ablate")
    return {
        "folder": folder,
        "bert": save_bert(folder / "bert"),
        "static": save_static(folder / "static"),
        "text": write_lines(folder / "text.txt", sentences(100)),
        "triplets": write_lines(folder / "triplets.tsv", triplets(60)),
        "pairs": write_lines(folder / "pairs.tsv", scored_pairs(40, seed=3)),
    }


@pytest.fixture
def trainings(monkeypatch):
    """The runs that are made while a test runs."""
    made, original = [], runs_module.one_run

    def counted(bench, name, configuration, seed):
        made.append((configuration.name, seed))
        return original(bench, name, configuration, seed)

    monkeypatch.setattr(runs_module, "one_run", counted)
    return made


def ablated(given, output, model="static", **options):
    fixed = {"development": given["pairs"], "vary": "temperature", "seeds": 2, "steps": 2}
    fixed |= {"batch_size": 16, "device": "cpu", "sentences": given["text"], "output": output}
    return ablate(given[model], **(fixed | options))


def facts(**changes):
    training = {"batch_size": 64, "steps": 100}
    fixed = {"static": False, "plain": True, "dropout": 0.1}
    fixed |= {"rows": dict.fromkeys(("sentences", "triplets", "pairs"), 5000)}
    fixed |= {"training": dict.fromkeys(fixed["rows"], training)}
    return Facts(**(fixed | changes))


def test_groups_are_simcses():
    found, notes = configurations(list(GROUPS), facts())
    options = {}
    for one in found:
        options.setdefault(one.group, []).append(
            {
                k: v
                for k, v in one.options.items()
                if (k, v) not in {("steps", 100), ("batch_size", 64)}
            }
        )
    cls = {"pooling": "cls"}
    assert options["dropout"] == [
        *(cls | {"dropout": p} for p in (0.0, 0.01, 0.05)),
        cls,  # the model's own
        *(cls | {"dropout": p} for p in (0.15, 0.2, 0.5)),
        cls | {"augmentation": "fixed_mask"},
    ]
    kinds = [
        (one.get("augmentation"), one.get("augmentation_share")) for one in options["augmentation"]
    ]
    shares = [(kind, share) for kind in ("crop", "delete") for share in (0.1, 0.2, 0.3)]
    assert kinds == [(None, None), *shares, ("delete_one", None)]
    assert [one.get("temperature", 0.05) for one in options["temperature"]] == [
        0.001,
        0.01,
        0.05,
        0.1,
        1,
    ]
    assert [one["pooling"] for one in options["pooling"]][:2] == ["cls", "cls_before_pooler"]
    assert [one.get("loss") for one in options["objective"]] == [
        None,
        "textbook",
        "contrastive_tension",
    ]
    sizes = [
        (one.options["batch_size"], one.options["steps"]) for one in found if one.group == "batch"
    ]
    assert sizes == [(64, 100), (256, 25), (1024, 6), (4096, 2)]
    assert notes == [
        "batches of 16,384, 65,536 were left out: 5,000 sentences, 6,400 of them trained on"
    ]
    assert [one.source for one in found if one.group == "hard_negatives"] == ["triplets", "pairs"]
    # What comes to the same options is one run: the model as it is stands in six groups.
    same = [one for one in found if one.run(0) == found[3].run(0)]
    assert [one.group for one in same] == [
        *("dropout", "augmentation", "pooling", "temperature", "batch", "objective")
    ]
    assert found[3].run(0) != found[3].run(1)


def test_scores_are_those_of_a_training_by_hand(given, tmp_path):
    options = {"learning_rate": 3e-3, "max_length": 16}
    result = ablated(
        given, tmp_path / "out", "bert", vary={"warm": {"temperature": 0.2, "pooling": "avg"}},
        test=scored_pairs(30, seed=9), trajectory_steps=2, steps=5, keep_models=True, **options,
    )  # fmt: skip
    row = result.rows[1]
    assert (row["seed"], row["options"]["temperature"]) == (1, 0.2)
    by_hand = train(
        given["bert"], unsupervised=given["text"], output=tmp_path / "hand", temperature=0.2,
        pooling="avg", steps=5, batch_size=16, seed=1, device="cpu", save=False, **options,
    )  # fmt: skip
    assert row["losses"] == by_hand.history.losses
    assert row["loss"] == pytest.approx(np.mean(by_hand.history.losses))
    model = by_hand.model
    kept = SentenceTransformer(str(tmp_path / "out" / "models" / row["run"]), device="cpu")
    assert weights_hash(kept) == weights_hash(model)
    for name, pairs in (
        ("development", scored_pairs(40, seed=3)),
        ("test", scored_pairs(30, seed=9)),
    ):
        first, second, scores = zip(*pairs, strict=True)
        evaluator = EmbeddingSimilarityEvaluator(first, second, scores, main_similarity="cosine")
        assert row[name] == pytest.approx(100 * evaluator(model)["spearman_cosine"], abs=1e-6)
        if name == "development":
            both = [pair[:2] for pair in pairs if pair[2] > 4]
            x, y = (model.encode([p[k] for p in both], convert_to_tensor=True) for k in (0, 1))
            every = model.encode(list(dict.fromkeys([*first, *second])), convert_to_tensor=True)
            assert row["alignment"] == pytest.approx(alignment(x, y).item(), rel=1e-4)
            assert row["uniformity"] == pytest.approx(uniformity(every).item(), rel=1e-4)
    followed, other = result.rows[0]["trajectory"], row["trajectory"]
    assert [point["step"] for point in followed] == [0, 2, 4, 5]
    assert followed[-1]["alignment"] == result.rows[0]["alignment"]
    assert other == []
    start = Probe(model, *zip(*scored_pairs(40, seed=3), strict=True))
    untrained = SentenceTransformer(str(given["bert"]), device="cpu").eval()
    assert followed[0]["uniformity"] == pytest.approx(start(untrained)["uniformity"], rel=1e-4)


def test_hard_negatives_are_the_only_difference(given, tmp_path):
    options = {"vary": "hard_negatives", "triplets": given["triplets"], "sentences": None}
    result = ablated(given, tmp_path / "out", seeds=1, **options)
    pairs = [row[:2] for row in triplets(60)]
    for row, data in zip(result.rows, (given["triplets"], pairs), strict=True):
        by_hand = train(
            given["static"], triplets=data, output=tmp_path / row["configuration"], steps=2,
            batch_size=16, device="cpu", save=False,
        )  # fmt: skip
        assert row["losses"] == by_hand.history.losses


@pytest.mark.parametrize("model", ["static", "bert"])
def test_contrastive_tension_is_the_librarys_loss_on_the_same_sentences(given, tmp_path, model):
    options = {"vary": {"CT": {"loss": "contrastive_tension"}}, "learning_rate": 1e-3, "steps": 3}
    result = ablated(given, tmp_path / "out", model, seeds=1, trajectory_steps=1, **options)
    assert [point["step"] for point in result.rows[0]["trajectory"]] == [0, 1, 2, 3]
    assert (
        result.rows[0]["trajectory"][3]["uniformity"]
        != result.rows[0]["trajectory"][0]["uniformity"]
    )
    if model == "bert":
        return  # its dropout is drawn
    encoder = SentenceTransformer(str(given["static"]), device="cpu")
    loss = ContrastiveTensionLoss(encoder)
    order = np.random.default_rng((0, 0)).permutation(100)[:16]
    texts = given["text"].read_text(encoding="utf-8").splitlines()
    first = [texts[row] for row in order]
    second = [first[row - 1] if row > 1 else first[row] for row in range(16)]
    features = [encoder.preprocess(side) for side in (first, second)]
    labels = torch.tensor([1, 1] + [0] * 14)  # one in eight is the sentence with itself
    expected = loss(features, labels).item() / 16
    assert result.rows[0]["losses"][0] == pytest.approx(expected, rel=1e-5)


def test_mean_and_deviation_are_numpys():
    rng = np.random.default_rng(0)
    rows = []
    for name in ("a", "b"):
        for seed in range(5):
            scores = {
                m: float(rng.normal()) for m in ("development", "alignment", "loss", "seconds")
            }
            row = {"group": "own", "configuration": name, "run": f"{name}{seed}", "seed": seed}
            rows.append(row | scores | {"test": None, "uniformity": float(seed)})
    rows[7]["uniformity"] = None
    summary = Ablation(rows, (), Path()).summary()
    for one, mine in zip(summary, (rows[:5], rows[5:]), strict=True):
        assert one["runs"] == 5
        for name in ("development", "alignment", "loss", "seconds"):
            values = np.array([row[name] for row in mine])
            assert one[name] == pytest.approx(values.mean(), rel=1e-12)
            assert one[f"{name}_deviation"] == pytest.approx(values.std(ddof=1), rel=1e-12)
        assert (one["test"], one["test_deviation"]) == (None, None)
    assert summary[0]["uniformity"] == 2.0
    assert summary[1]["uniformity"] is None  # a seed without it has no part in a mean


def test_files_say_what_the_rows_say(given, tmp_path):
    result = ablated(given, tmp_path / "out", vary=["temperature", "objective"], trajectories=2)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    plots = {f"{name}.{ending}" for name in ("scores", "trajectories") for ending in ("svg", "png")}
    assert (
        names == {"cache", "runs", "settings.json", "results.json", "table.csv", "table.md"} | plots
    )
    stored = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert stored["rows"] == result.rows
    assert stored["summary"] == result.summary()
    with (tmp_path / "out" / "table.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [float(one["development"]) for one in table] == [
        one["development"] for one in result.summary()
    ]
    lines = (tmp_path / "out" / "table.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 + 8
    first = result.summary()[0]
    told = f"{first['development']:.2f} \u00b1 {first['development_deviation']:.2f}"
    assert lines[2].startswith(f"| temperature | 0.001 | {told} |")
    frame = result.to_dataframe()
    assert len(frame) == 16
    assert frame.groupby(["group", "configuration"])["development"].mean().max() == pytest.approx(
        max(one["development"] for one in result.summary())
    )
    ax = result.plot().axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "0.001",
        "0.01",
        "0.05",
        "0.1",
        "1",
    ]
    lines = result.plot_trajectories().axes[1].get_lines()
    means = np.mean([[p["alignment"] for p in r["trajectory"]] for r in result.rows[10:12]], axis=0)
    np.testing.assert_allclose(lines[0].get_xdata(), means)


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
    command = [sys.executable, str(Path(__file__).with_name("ablation_killed.py"))]
    killed = subprocess.run([*command, str(given["folder"]), "4"], check=False)  # noqa: S603
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
        if (name, wait) == asked[-1] and wait and name == result.rows[1]["run"]:
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
        pytest.param(
            {"learning_rate": 1e-4}, "are of training .*1e-0?4|are of training", id="option"
        ),
        pytest.param({"sentences": sentences(99)}, "are of another sentences", id="text"),
        pytest.param({"development": scored_pairs(20)}, "are of another development", id="pairs"),
        pytest.param({"test": scored_pairs(20)}, "are of another test", id="test"),
        pytest.param({"model": "bert"}, "are of another model", id="model"),
    ],
)
def test_another_ablations_folder_is_refused(given, tmp_path, options, message):
    Store(tmp_path).begin({})
    (tmp_path / "settings.json").unlink()
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
            "vary: a static model has no dropout to vary; it has temperature, batch, hard_negatives",
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
    with pytest.raises(TypeError, match="model: expected a name or a folder.*SentenceTransformer"):
        ablated(given | {"loaded": model}, tmp_path / "out", "loaded")


def test_a_model_without_any_order_has_no_score(given):
    pairs = [("c1 c2", "c2 c1", 5.0), ("c3 c4", "c4 c3", 0.0)]  # bags of words: all cosines are 1
    model = SentenceTransformer(str(given["static"]), device="cpu")
    model[0].embedding.weight.data.fill_(1.0)
    found = Probe(model, *zip(*pairs, strict=True))(model)
    assert found["spearman"] is None
    assert found["alignment"] == pytest.approx(0.0, abs=1e-6)
