"""Ablations: what is trained, that nothing is trained twice, and what is made of it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra ablate")
pytest.importorskip("scipy", reason="needs the extra ablate")

from ablation_cases import ablated, files
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import ContrastiveTensionLoss
from train_models import (
    scored_pairs,
    triplets,
    weights_hash,
)

from simcse_fast import alignment, train, uniformity
from simcse_fast.ablations.groups import GROUPS, Facts, configurations
from simcse_fast.ablations.probe import Probe
from simcse_fast.ablations.result import Ablation

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return files(tmp_path_factory.mktemp("ablate"))


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


def test_contrastive_tension_in_mixed_precision_is_the_same_to_its_digits(given, tmp_path):
    plain = {"loss": "contrastive_tension", "dropout": 0.0}
    vary = {"fp32": plain, "bf16": {**plain, "bf16": True}}
    result = ablated(given, tmp_path / "out", "bert", seeds=1, trajectories=0, vary=vary, steps=2)
    wide, narrow = (row["losses"][0] for row in result.rows)
    assert narrow == pytest.approx(wide, rel=2e-2)
    assert narrow != wide


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


def test_a_model_without_any_order_has_no_score(given):
    pairs = [("c1 c2", "c2 c1", 5.0), ("c3 c4", "c4 c3", 0.0)]  # bags of words: all cosines are 1
    model = SentenceTransformer(str(given["static"]), device="cpu")
    model[0].embedding.weight.data.fill_(1.0)
    found = Probe(model, *zip(*pairs, strict=True))(model)
    assert found["spearman"] is None
    assert found["alignment"] == pytest.approx(0.0, abs=1e-6)
