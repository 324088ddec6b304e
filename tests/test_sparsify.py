"""`sparsify` from pairs to a saved model and a report, its command, and what both refuse."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra sparsify")

from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sparsity_cases import TEXTS, bert, pair, pairs
from torch import nn
from train_models import save_static, triplets, weights_hash, write_lines

from simcse_fast import alignment, cli, sparsify, uniformity
from simcse_fast.sparsity import Layout
from simcse_fast.sparsity.layouts import BERT

pytestmark = pytest.mark.usefixtures("one_thread")
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bert(tmp_path_factory.mktemp("bert")).eval()


@pytest.fixture(scope="module")
def swept(model):
    return sparsify(
        *(model, pairs(60)), sparsity=[0.25, 0.5], development=pairs(40, 1), test=pairs(40, 2),
        seeds=2, **QUIET,
    )  # fmt: skip


def spearman(model, scored):
    first, second, scores = zip(*scored, strict=True)
    x, y = (torch.tensor(model.encode(list(texts))) for texts in (first, second))
    return 100 * spearmanr(torch.cosine_similarity(x, y), scores)[0]


def test_a_sweep_chooses_on_development_pairs_and_reports_test_pairs(model, swept):
    ours = {row["sparsity"]: row for row in swept.curve if row["criterion"] == "SparseCSE"}
    assert list(ours) == [0.0, 0.25, 0.5]
    assert swept.sparsity == max((0.25, 0.5), key=lambda s: ours[s]["spearman"])
    assert ours[0.0]["spearman"] == pytest.approx(spearman(model, pairs(40, 1)), abs=1e-4)
    best = ours[swept.sparsity]
    assert best["spearman"] == pytest.approx(spearman(swept.model, pairs(40, 1)), abs=1e-4)
    assert best["test_spearman"] == pytest.approx(spearman(swept.model, pairs(40, 2)), abs=1e-4)
    positive = [(a, b) for a, b, score in pairs(40, 1) if score > 4]
    x, y = (torch.tensor(swept.model.encode(list(texts))) for texts in zip(*positive, strict=True))
    assert best["alignment"] == pytest.approx(alignment(x, y).item(), rel=1e-4)
    texts = list(dict.fromkeys(text for a, b, _ in pairs(40, 1) for text in (a, b)))
    found = uniformity(torch.tensor(swept.model.encode(texts))).item()
    assert best["uniformity"] == pytest.approx(found, rel=1e-4)


def test_other_criteria_stand_beside_ours(swept):
    others = [(row["criterion"], row["seed"]) for row in swept.curve if row["sparsity"] == 0.5]
    for row in swept.curve:
        assert row["removed_neurons"] == pytest.approx(row["sparsity"], abs=0.01)
    expected = [("SparseCSE", None), ("magnitude", None), ("random", 0), ("random", 1)]
    assert others == expected
    assert not any("test_spearman" in row for row in swept.curve if row["criterion"] == "random")
    assert set(swept.to_dataframe().columns) >= {"sparsity", "criterion", "spearman"}


def test_the_model_given_is_not_changed(tmp_path):
    model = bert(tmp_path).train()
    before = weights_hash(model)
    found = sparsify(model, pairs(20), sparsity=0.5, compare=(), **QUIET)
    assert weights_hash(model) == before
    assert model.training
    assert found.model is not model
    assert found.removed == {"heads": 0.5, "neurons": 0.5}


def test_saved_models_are_normal_ones(swept, tmp_path):
    swept.save(tmp_path / "sparse")
    loaded = SentenceTransformer(str(tmp_path / "sparse"), device="cpu")
    difference = abs(loaded.encode(TEXTS) - swept.model.encode(TEXTS)).max()
    assert difference < 1e-6
    widest = max(swept.selection.widths)
    assert loaded[0].model.config.intermediate_size == min(32, -(-widest // 8) * 8)
    swept.save(tmp_path / "sparse")  # in place of the first
    assert [path.name for path in tmp_path.iterdir()] == ["sparse"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="no folder"):
        swept.save(tmp_path / "file")


def test_positive_pairs_without_scores_and_a_transformers_pair(tmp_path):
    model, tokenizer = pair(tmp_path, "MPNet")
    positives = ((a, b) for a, b, score in pairs(40) if score > 4)
    found = sparsify((model, tokenizer), positives, sparsity=0.5, allocation="layer", **QUIET)
    assert found.curve == []
    assert found.selection.widths == [16, 16]
    assert found.selection.head_counts == [2, 2]
    assert found.notes == (
        "All feed-forward layers have 16 neurons instead of 32.",
        (
            "4 of 8 heads are zeros and stay in place: the width of such a model is that of all "
            "its heads."
        ),
    )
    found.save(tmp_path / "small")
    assert type(model).from_pretrained(tmp_path / "small").config.intermediate_size == 16


def test_single_weights(model):
    found = sparsify(model, pairs(40), sparsity=0.4, units="weights", seeds=1, **QUIET)
    assert found.removed["weights"] == pytest.approx(0.4, abs=1e-4)
    criteria = [row["criterion"] for row in found.curve]
    assert criteria == ["SparseCSE", "SparseCSE", "magnitude", "random"]
    assert found.notes == ("Weights that are gone are zeros; matrices keep their shapes.",)


@pytest.mark.parametrize("units", ["neurons", "weights"])
def test_retraining_keeps_what_is_gone_away(units, model, tmp_path):
    recipe = {"triplets": triplets(40), "output": tmp_path, "steps": 3, "batch_size": 8}
    found = sparsify(
        *(model, pairs(40)), sparsity=0.5, units=units, compare=(), development=pairs(40, 1),
        test=pairs(40, 2), retrain=recipe, **QUIET,
    )  # fmt: skip
    assert found.retraining.steps == 3
    assert found.retraining.history.losses
    assert found.model is found.retraining.model
    assert found.retrained_scores["spearman"] == pytest.approx(
        spearman(found.model, pairs(40, 1)), abs=1e-3
    )
    assert "test_spearman" in found.retrained_scores
    linears = [m.weight for m in found.model[0].model.encoder.modules() if isinstance(m, nn.Linear)]
    zeros = sum(int((weight == 0).sum()) for weight in linears)
    if units == "weights":
        gone = sum(int((~mask).sum()) for mask in found.selection)
        assert zeros >= gone == round(0.5 * sum(weight.numel() for weight in linears))
    else:
        width = linears[4].shape[0]
        assert width == -(-max(found.selection.widths) // 8) * 8
        assert zeros >= 2 * 16 * sum(width - own for own in found.selection.widths)


def test_rewinding_removes_from_another_model(model, tmp_path):
    early = bert(tmp_path / "early")
    with torch.no_grad():
        for parameter in early.parameters():
            parameter.add_(torch.randn_like(parameter))
    recipe = {"unsupervised": [a for a, *_ in pairs(40)], "output": tmp_path / "out", "steps": 1}
    found = sparsify(
        *(model, pairs(40)), sparsity=0.5, compare=(), rewind=early,
        retrain=recipe | {"learning_rate": 1e-12, "batch_size": 4}, **QUIET,
    )  # fmt: skip
    expected = found.apply(early)
    assert abs(found.model.encode(TEXTS) - expected.encode(TEXTS)).max() < 1e-5
    assert abs(found.model.encode(TEXTS) - found.apply(model).encode(TEXTS)).max() > 0.1


def test_the_report_holds_everything(swept, tmp_path):
    page = swept.report(tmp_path / "out").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page
    assert re.search(r"<td>25 %</td><td>random</td><td>-?\d+\.\d+ ± \d+\.\d+</td>", page)
    told = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert told["curve"] == swept.curve
    assert told["widths"] == swept.selection.widths
    assert len(swept.plot_scores().axes) == 12
    lines = {line.get_label(): line for line in swept.plot().axes[0].lines}
    assert list(lines["magnitude"].get_xdata()) == [0, 0.25, 0.5]
    assert lines["SparseCSE"].get_ydata()[1] == swept.curve[1]["spearman"]


def test_command(model, tmp_path, capsys):
    model.save(str(tmp_path / "model"), create_model_card=False)
    scored = write_lines(tmp_path / "scored.tsv", pairs(40))
    arguments = ["sparsify", tmp_path / "model", "--pairs", scored, "--output", tmp_path / "out"]
    arguments += ["--sparsity", "0.25", "0.5", "--seeds", "1", "--units", "neurons"]
    capsys.readouterr()  # what saving shows
    assert cli.main([*map(str, arguments), "--json"]) == 0
    output = capsys.readouterr()
    told = json.loads(output.out)
    assert output.err == ""
    assert {row["criterion"] for row in told["curve"]} == {"SparseCSE", "magnitude", "random"}
    assert SentenceTransformer(told["model"], device="cpu").encode(["c1"]).shape == (1, 16)
    assert cli.main([*map(str, arguments), "--test", str(scored), "--check", "6"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^ +50%  random 0 +-?\d", shown, re.MULTILINE)
    assert re.search(r"^Removed \d+\.\d % of the neurons$", shown, re.MULTILINE)
    assert re.search(r"^Check .* correlate by -?\d\.\d\d \(alignment\)", shown, re.MULTILINE)


def test_what_was_found_is_saved_before_training(model, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("simcse_fast.sparsity.result.train", interrupted)
    model.save(str(tmp_path / "model"), create_model_card=False)
    scored = write_lines(tmp_path / "scored.tsv", pairs(40))
    data = write_lines(tmp_path / "triplets.tsv", triplets(20))
    arguments = ["sparsify", tmp_path / "model", "--pairs", scored, "--output", tmp_path / "out"]
    arguments += ["--sparsity", "0.5", "--seeds", "1", "--triplets", data]
    assert cli.main([*map(str, arguments)]) == 130
    assert SentenceTransformer(str(tmp_path / "out" / "model"), device="cpu").encode(["c1"]).any()
    assert (tmp_path / "out" / "report.html").exists()


def test_command_refuses_in_one_sentence(tmp_path, capsys):
    scored = write_lines(tmp_path / "scored.tsv", ["a\tb\t1", "a\tb"])
    arguments = ["sparsify", str(tmp_path), "--output", str(tmp_path / "out"), "--pairs"]
    assert cli.main([*arguments, str(scored), "--sparsity", "0.5"]) == 2
    assert re.fullmatch(r"simcse-fast: model: .* cannot be loaded .*\n", capsys.readouterr().err)
    options = ["--sparsity", "0.5", "--epochs", "2"]
    assert cli.main([*arguments, str(scored), *options]) == 2
    message = "simcse-fast: --epochs: belongs to --unsupervised or --triplets\n"
    assert capsys.readouterr().err == message


def test_command_refuses_a_folder_that_cannot_be_written(model, tmp_path, capsys):
    model.save(str(tmp_path / "model"), create_model_card=False)
    scored = write_lines(tmp_path / "scored.tsv", pairs(40))
    capsys.readouterr()
    arguments = ["sparsify", tmp_path / "model", "--pairs", scored, "--sparsity", "0.5"]
    assert cli.main([*map(str, arguments), "--output", "/proc/x"]) == 2
    message = r"simcse-fast: --output /proc/x: /proc/x cannot be written \(.*\)\n"
    assert re.fullmatch(message, capsys.readouterr().err)


NONE_POSITIVE = [(a, b, score / 5) for a, b, score in pairs(20)]
WRONG = Layout("encoder.block", BERT.value, BERT.out, BERT.up, BERT.down)
TRAINED = {"triplets": [("a", "b")] * 4, "output": "x"}
BAD = [
    ({"sparsity": 1.0}, ValueError, r"sparsity: expected in \[0, 1\), got 1"),
    ({"sparsity": -0.1}, ValueError, r"sparsity: expected a finite number in \[0, 1\], got -0.1"),
    ({"sparsity": math.nan}, ValueError, "sparsity: expected a finite number"),
    ({"sparsity": "0.1"}, TypeError, "sparsity: expected a number, got '0.1'"),
    ({"sparsity": []}, ValueError, "sparsity: expected a number or several, got none"),
    ({"balance": 2}, ValueError, "balance: expected a finite number in"),
    ({"units": "layers"}, ValueError, "units: expected some of heads, neurons, or 'weights'"),
    ({"units": ()}, ValueError, r"units: .* got \(\)"),
    ({"compare": "chance"}, ValueError, "compare: expected some of magnitude, random; got 'chan"),
    ({"seeds": 0}, ValueError, "seeds: expected a whole number >= 1"),
    ({"allocation": "row"}, ValueError, "allocation: expected global or layer, got 'row'"),
    ({"aggregate": "mean"}, ValueError, "aggregate: expected absolute or total, got 'mean'"),
    ({"positive_above": None}, TypeError, "positive_above: expected a number, got None"),
    ({"retrain": "now"}, TypeError, "retrain: expected the arguments of simcse_fast.train"),
    ({"retrain": {}}, ValueError, "retrain: missing a required argument: 'output'"),
    ({"retrain": {"output": "x", "lr": 1}}, ValueError, "retrain: got an unexpected .* 'lr'"),
    ({"retrain": {"output": "x"}}, ValueError, "retrain: expected either unsupervised or trip"),
    (
        {"retrain": {"output": "x", "triplets": "t", "steps": 0}},
        *(ValueError, "retrain: steps: expected a whole number >= 1, got 0"),
    ),
    ({"pooling": "cls"}, ValueError, "pooling: a SentenceTransformer has its own"),
    ({"pairs": []}, ValueError, "pairs: list is empty"),
    ({"pairs": [("a", "a")]}, ValueError, "pairs: expected two or more distinct sentences, got 1"),
    ({"sparsity": None}, TypeError, "sparsity: expected a number or several, got None"),
    ({"units": None}, ValueError, "units: .* got None"),
    ({"compare": None}, ValueError, "compare: .* got None"),
    ({"layout": {}}, TypeError, "layout: expected a Layout, got dict"),
    ({"retrain": TRAINED | {"triplets": "none.tsv"}}, ValueError, "retrain: there is no file none"),
    ({"retrain": TRAINED | {"output": "/proc/x"}}, ValueError, "retrain: output /proc/x: "),
    ({"pairs": NONE_POSITIVE}, ValueError, "pairs: none of 20 pairs has a score above 4"),
    ({"pairs": [("a", "b", 1.0)] * 2}, ValueError, "pairs: column 2 must hold .* not all equal"),
    ({"pairs": [("a", "b"), ("a",)]}, ValueError, "pairs: row 1 has 1 texts; expected 2 or 3"),
    ({"pairs": [("a", 1)]}, TypeError, "pairs: column 1: expected an Arrow array of strings"),
    ({"pairs": "none.tsv"}, ValueError, "pairs: none.tsv cannot be read"),
    ({"development": NONE_POSITIVE}, ValueError, "development: none of 20 pairs has a score"),
    ({"pairs": [("a", "b")], "test": pairs(9)}, ValueError, "test: needs development"),
    (
        {"pairs": [("a", "b")], "sparsity": [0.1, 0.2]},
        *(ValueError, "development: needed to choose between several sparsities, got none"),
    ),
    ({"layout": WRONG}, ValueError, "layout: BertModel has no such part"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD)
def test_bad_input(options, kind, message, model):
    given = {"pairs": pairs(20), "sparsity": 0.5, **QUIET} | options
    with pytest.raises(kind, match=message):
        sparsify(model, given.pop("pairs"), **given)


def test_bad_models(tmp_path):
    (tmp_path / "malformed.tsv").write_text("a\tb\t1\na\tb\n", encoding="utf-8")
    model, tokenizer = pair(tmp_path / "bert", "Bert")
    with pytest.raises(ValueError, match=r"malformed.tsv, line 2: expected 3 tab-separated"):
        sparsify((model, tokenizer), tmp_path / "malformed.tsv", sparsity=0.5)
    with pytest.raises(TypeError, match="retrain: expected a SentenceTransformer to train, got tu"):
        sparsify((model, tokenizer), pairs(9), sparsity=0.5, retrain={})
    with pytest.raises(
        TypeError, match=r"model: expected a SentenceTransformer or a pair .* got s"
    ):
        sparsify("bert", pairs(9), sparsity=0.5)
    static = SentenceTransformer(str(save_static(tmp_path / "static")), device="cpu")
    with pytest.raises(ValueError, match="begins with a Transformer, got StaticEmbedding"):
        sparsify(static, pairs(9), sparsity=0.5)
    model.encoder.layer[1].output.dense = nn.Bilinear(32, 32, 16)
    with pytest.raises(ValueError, match=r"model: output.dense is a Bilinear; expected nn.Linear"):
        sparsify((model, tokenizer), pairs(9), sparsity=0.5)


def test_other_ways_to_say_the_same(model):
    import numpy as np  # noqa: PLC0415

    scored = pairs(30)
    given = {"compare": (), "units": "neurons", **QUIET}
    expected = sparsify(model, scored, sparsity=[0.25, 0.5], **given)
    columns = dict(zip(("sentence1", "sentence2", "score"), zip(*scored, strict=True), strict=True))
    with torch.inference_mode():
        found = sparsify(model, columns, sparsity=np.array([0.5, 0.25]), **given)
    assert found.curve == expected.curve
    assert torch.equal(found.selection.neurons, expected.selection.neurons)


def test_models_of_another_shape_are_refused(model, swept, tmp_path):
    deep = bert(tmp_path / "deep", layers=3)
    message = "2 layers of 2 heads and 32 neurons, 16 wide; got 3 layers"
    with pytest.raises(ValueError, match=f"rewind: expected {message}"):
        sparsify(model, pairs(20), sparsity=0.5, rewind=deep, **QUIET)
    with pytest.raises(ValueError, match=f"model: expected {message}"):
        swept.apply(deep)


def test_embeddings_that_are_not_finite_are_refused(tmp_path):
    model = bert(tmp_path)
    with torch.no_grad():
        model[0].model.encoder.layer[1].output.dense.bias[3] = math.nan
    with pytest.raises(ValueError, match=r"model: 40 of 40 embeddings hold NaN or infinity; first"):
        sparsify(model, pairs(20), sparsity=0.5, **QUIET)


def test_prompts_and_shorter_embeddings_are_the_models_own(tmp_path):
    model = bert(tmp_path)
    model.prompts, model.default_prompt_name, model.truncate_dim = {"q": "c1 c2 "}, "q", 4
    found = sparsify(model, pairs(40), sparsity=0.0, **QUIET)
    assert found.curve[0]["spearman"] == pytest.approx(spearman(model, pairs(40)), abs=1e-3)


def test_half_types(tmp_path):
    model = bert(tmp_path).to(torch.bfloat16)
    found = sparsify(model, pairs(40), sparsity=0.5, units="weights", compare=(), **QUIET)
    assert all(score.dtype == torch.float32 for score in found.scores)
    assert found.model[0].model.dtype == torch.bfloat16
    assert found.report(tmp_path / "out").stat().st_size > 10_000


def test_predictions_are_checked_by_removing_units(swept):
    found = swept.check(20, progress=False)
    assert found["units"] == {"heads": 4, "neurons": 16}
    assert found["alignment"] > 0.5
    assert found["uniformity"] > 0.5


def test_an_unknown_family_is_told_how_to_add_it(tmp_path):
    class Other(type(pair(tmp_path, "Bert")[0])):
        """The same machine under another name."""

    model, tokenizer = pair(tmp_path, "Bert")
    model.__class__ = Other
    message = (
        "model: where Other keeps its heads and neurons is not known; known are BertModel, .*"
        r"T5EncoderModel; for another family give layout=simcse_fast.sparsity.Layout\(...\)"
    )
    with pytest.raises(ValueError, match=message):
        sparsify((model, tokenizer), pairs(9), sparsity=0.5)
    found = sparsify((model, tokenizer), pairs(9), sparsity=0.5, layout=BERT, compare=(), **QUIET)
    assert found.removed["neurons"] == 0.5
