"""`study`: points and rows against what they are made of, before and after, stopped and resumed."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

pytest.importorskip("sentence_transformers", reason="needs the extra study")

from attribution_models import TEXTS, pair_of
from scipy.stats import linregress
from train_models import save_bert, save_static, sentences, write_lines

from simcse_fast import information_gain, integrated_gradients, study
from simcse_fast.studies import run as runs
from simcse_fast.studies.rows import CHANGE
from simcse_fast.studies.words import relative

pytestmark = pytest.mark.usefixtures("one_thread")
QUIET = {"progress": False, "resamples": 50}
CORPUS = [text for text in TEXTS for _ in range(5)]
SENTENCES = [f"{a}, {b}." for a in TEXTS[:6] for b in TEXTS[:6]]


@pytest.fixture(scope="module")
def pair():
    """Two encoders of different tokenizers and poolings."""
    return pair_of("bert"), pair_of("roberta")


@pytest.fixture(scope="module")
def found(pair):
    return study(
        *pair,
        CORPUS,
        {"all": SENTENCES, "few": SENTENCES[:3]},
        samples=16,
        quantities=("information_gain", "self_information", "corrected"),
        **QUIET,
    )


def test_weights_are_those_of_the_method(pair, found):
    """Of plain words, which are one unit of the tokenizer each."""
    points = found.points["few", "ig"]
    words = found.table.column("word")[points.row]
    for name, model in zip(("before", "after"), pair, strict=True):
        expected = []
        for text in SENTENCES[:3]:
            result = integrated_gradients(model, text, progress=False)
            own = [t.strip().lower() for t in result.tokens[0]]
            kept = [i for i, token in enumerate(own) if token.isalnum()]
            weights = relative(result.scores[0][kept])
            expected += [
                (own[i], weight)
                for i, weight in zip(kept, weights, strict=True)
                if own[i] in found.table
            ]
        assert [word for word, _ in expected] == words.tolist()
        np.testing.assert_allclose(points.weights[name], [w for _, w in expected], rtol=1e-6)


def test_rows_are_lines_through_the_points(found):
    frame = found.points_dataframe()
    kept = frame[(frame["set"] == "all") & (frame["method"] == "shap")]
    place = {"set": "all", "method": "shap", "band": "all", "quantity": "information_gain"}
    for encoder in ("before", "after"):
        (row,) = found.select(**place, encoder=encoder, level="occurrence")
        line = linregress(kept["information_gain"], kept[f"weight_{encoder}"])
        assert row["r_squared"] == pytest.approx(line.rvalue**2, rel=1e-9)
        assert row["beta"] == pytest.approx(line.slope, rel=1e-9)
        assert (row["points"], row["clusters"]) == (len(kept), kept["sentence"].nunique())
        assert row["r_squared_low"] <= row["r_squared"] <= row["r_squared_high"]
    by_word = kept.groupby("word")[["information_gain", "weight_after"]].mean()
    (row,) = found.select(**place, encoder="after", level="word")
    assert row["points"] == len(by_word)
    assert "too few points" in row["note"]  # a dozen words


def test_the_change_is_after_less_before(found):
    place = {"set": "all", "method": "ig", "band": "all", "quantity": "corrected"}
    rows = {row["encoder"]: row for row in found.select(**place, level="occurrence")}
    for name in ("r_squared", "beta", "spearman", "partial_r_squared"):
        difference = rows["after"][name] - rows["before"][name]
        assert rows[CHANGE][name] == pytest.approx(difference, abs=1e-12)
    # Drawn together: narrower than the sum of both.
    width = {n: row["r_squared_high"] - row["r_squared_low"] for n, row in rows.items()}
    assert width[CHANGE] <= width["before"] + width["after"]


def test_the_same_encoder_does_not_change(pair):
    same = study(pair[0], pair[0], CORPUS, SENTENCES, methods="ig", **QUIET)
    changes = same.select(encoder=CHANGE)
    assert changes
    for row in changes:
        assert {row[n] for n in ("r_squared", "r_squared_low", "r_squared_high")} == {0.0}


def test_bands_are_powers_of_ten_of_the_count(found):
    frame = found.points_dataframe()
    kept = frame[(frame["set"] == "all") & (frame["method"] == "ig")]
    rows = found.select(
        set="all", method="ig", level="occurrence", quantity="self_information", encoder="before"
    )
    counted = {row["band"]: row["points"] for row in rows}
    assert counted == {
        "all": len(kept),
        "10 to 99": int((kept["count"] < 100).sum()),
    }


def test_words_that_the_corpus_lacks_are_told(pair):
    texts = [f"{text} zebra storm" for text in TEXTS]
    found = study(None, pair[0], CORPUS, texts, methods="ig", **QUIET)
    words = [word for text in texts for word in re.findall(r"\w+", text)]
    (one,) = found.coverage
    lacking = sum(word not in found.table for word in words)
    assert (one["words"], one["known"]) == (len(words), len(words) - lacking)
    assert one["unknown_share"] == pytest.approx(lacking / len(words))
    assert one["points"] == one["known"]


def test_lengths_of_rows_of_p(pair):
    found = study(None, pair[0], CORPUS, SENTENCES[:2], methods="norms", norm_limit=1, **QUIET)
    (texts,) = found.sentences.values()
    result = integrated_gradients(pair[0], texts, target="vector", progress=False)
    kept = [i for i, token in enumerate(result.tokens[0]) if token.isalnum()]
    expected = relative(result.scores[0][kept])
    known = [i for i, k in enumerate(kept) if result.tokens[0][k].lower() in found.table]
    (points,) = found.points.values()
    np.testing.assert_allclose(points.weights["after"], expected[known], rtol=1e-6)


def test_a_limit_draws_the_same_sentences_again():
    texts = [str(n) for n in range(100)]
    drawn = runs.sample(texts, 10, seed=1)
    assert drawn == runs.sample(texts, 10, seed=1) != runs.sample(texts, 10, seed=2)
    assert drawn == sorted(set(drawn), key=int)
    assert runs.sample(texts, None, 0) == runs.sample(texts, 100, 0) == texts


def test_sentences_of_pairs_are_those_of_both_columns(tmp_path):
    file = write_lines(tmp_path / "pairs.tsv", [("a cat", "a dog", 5), ("a cat ", "birds", 1)])
    assert runs.texts_of({"one": str(file)}) == {"one": ["a cat", "a dog", "birds"]}


def test_a_table_stands_for_the_corpus(pair, found):
    table = information_gain(CORPUS, min_count=1, correction="null", progress=False)
    again = study(*pair, table, {"all": SENTENCES}, methods="ig", quantities="corrected", **QUIET)
    place = {"set": "all", "method": "ig", "quantity": "corrected"}
    # The same threshold of 10; other rounding.
    expected = pd.DataFrame(found.select(**place))
    pd.testing.assert_frame_equal(again.to_dataframe(), expected, rtol=1e-9, atol=1e-12)
    plain = information_gain(CORPUS, min_count=1, progress=False)
    with pytest.raises(ValueError, match=r'no column corrected; count it with correction="null"'):
        study(*pair, plain, SENTENCES, quantities="corrected", **QUIET)


def test_a_stopped_study_goes_on(pair, tmp_path, monkeypatch):
    calls = []
    original = runs.Batch.run

    def stopping(self, **options):
        calls.append(self.out.name)
        if len(calls) == 3:
            raise KeyboardInterrupt("16 of 36 sentences are done")
        return original(self, **options)

    monkeypatch.setattr(runs.Batch, "run", stopping)
    arguments = (*pair, CORPUS, SENTENCES)
    with pytest.raises(KeyboardInterrupt, match=r"sentences, shap, before: 16 of 36"):
        study(*arguments, samples=8, output=tmp_path, **QUIET)
    monkeypatch.setattr(runs.Batch, "run", original)
    again = study(*arguments, samples=8, output=tmp_path, **QUIET)
    assert [(one["method"], one["encoder"]) for one in again.seconds] == [
        ("shap", "before"),
        ("shap", "after"),
    ]
    whole = study(*arguments, samples=8, **QUIET)
    assert json.dumps(again.summary()["rows"]) == json.dumps(whole.summary()["rows"])


def test_a_report_holds_everything(found, tmp_path):
    page = found.report(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    pictures = {f"scatter-{a}-{b}" for a in ("all", "few") for b in ("ig", "shap")} | {"bars"}
    assert names == {f"{one}.{kind}" for one in pictures for kind in ("png", "svg")} | {
        "report.html", "table.csv", "table.md", "study.json", "points.parquet",
    }  # fmt: skip
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 5
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    stored = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert len(stored["rows"]) == len(found.rows)
    assert pq.read_table(tmp_path / "points.parquet").num_rows == len(found.points_dataframe())
    (row,) = found.select(
        set="all", method="ig", band="all", quantity="information_gain", level="occurrence",
        encoder="after",
    )  # fmt: skip
    line = next(
        line
        for line in (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| all | Integrated Gradients | information gain |")
    )
    assert f"{row['r_squared']:.3f}" in line
    assert f"{row['beta']:.3f} ± {row['beta_error']:.3f}" in line


def test_static_encoders_are_weighed_by_their_vectors(tmp_path):
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - slow

    folder = save_static(tmp_path / "static")
    before, after = (SentenceTransformer(str(folder), device="cpu") for _ in range(2))
    table = information_gain(sentences(400), min_count=10, progress=False)
    words, gain = table.column("word").tolist(), table.column("information_gain")
    numbers = before.tokenizer.get_vocab()
    place = [numbers[word] for word in words]
    vectors = after[0].embedding.weight.data
    # Vectors as long as the theory has them: |u|^2 = 2 KL.
    for row, value in zip(place, gain, strict=True):
        vectors[row] *= np.sqrt(2 * value) / vectors[row].norm()
    found = study(before, after, table, **QUIET)
    rows = {row["encoder"]: row for row in found.select(
        method="norm_squared", quantity="information_gain", band="all")}  # fmt: skip
    assert rows["after"]["r_squared"] == pytest.approx(1, abs=1e-5)
    assert rows["after"]["beta"] == pytest.approx(2, rel=1e-4)
    assert rows["before"]["r_squared"] < 0.1
    assert rows["after"]["points"] == len(words)
    share = table.column("probability") / table.column("probability").sum()
    u = vectors[place].double().numpy()
    centred = u - share @ u
    covariance = (centred * share[:, None]).T @ centred
    for method, matrix in (
        ("whitened_squared", np.linalg.inv(covariance)),
        ("weighted_squared", covariance),
    ):
        weights = found.points["vocabulary", method].weights["after"]
        expected = np.einsum("wi,ij,wj->w", centred, matrix, centred)
        np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert found.report(tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("ig", "lime")}, "methods: expected some of ig, shap, norms; got 'lime'"),
        ({"methods": ()}, "methods: expected one or more of ig, shap, norms, each once; got none"),
        ({"quantities": "surprise"}, "quantities: expected some of .*; got 'surprise'"),
        ({"limit": 0}, "limit: expected a whole number >= 1, got 0"),
        ({"sentences": {}}, "sentences: expected at least one set, got none"),
        ({"sentences": {"a/b": ["x"]}}, "sentences: expected names of letters.*got 'a/b'"),
        ({"sentences": None}, "sentences: expected some for encoders that are transformers"),
        ({"sentences": ["  "]}, "sentences: expected at least one sentence, found none"),
        ({"sentences": ["Zebras zigzag."]}, "sentences: of their 2 words none is in the corpus 10"),
        ({"corpus": ["a b"]}, "corpus: none of its 2 words occurs 10 times"),
        ({"before": "no-such-model"}, "before: no-such-model cannot be loaded"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(change, message, pair):
    given = {"before": pair[0], "after": pair[0], "corpus": CORPUS, "sentences": SENTENCES}
    with pytest.raises(ValueError, match=message):
        study(**{**given, **change, **QUIET})


def test_encoders_that_are_none(pair, tmp_path):
    with pytest.raises(TypeError, match="after: expected a SentenceTransformer or a pair"):
        study(None, 3, CORPUS, SENTENCES, **QUIET)
    static = str(save_static(tmp_path / "static"))
    with pytest.raises(ValueError, match="before: after is a static encoder and the other is not"):
        study(pair[0], static, CORPUS, SENTENCES, **QUIET)
    with pytest.raises(
        ValueError, match="before: no word of the corpus is a word of every encoder"
    ):
        study(None, static, CORPUS, **QUIET)


def test_names_load_models_and_pooling_is_for_plain_ones(tmp_path):
    bert = str(save_bert(tmp_path / "bert"))
    texts = sentences(4)
    mean, cls = (
        study(None, bert, sentences(400), texts, methods="ig", pooling=pooling, **QUIET)
        for pooling in (None, "cls")
    )
    weights = [next(iter(one.points.values())).weights["after"] for one in (mean, cls)]
    assert not np.allclose(*weights)
    assert mean.encoders == {"after": bert}
