"""A corpus attributed into a file is what the method itself returns."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("sentence_transformers", reason="needs the extra explain")

from attribution_files import CORPUS, attributed, check_table, left_in
from attribution_models import TEXTS, pair_of

from simcse_fast.attribution import integrated_gradients, parts, shapley_values
from simcse_fast.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.parquet"


@pytest.mark.parametrize(
    ("method", "options"),
    [
        pytest.param("integrated_gradients", {}, id="auto"),
        pytest.param(
            "integrated_gradients",
            {"steps": 8, "unit": "token"},  # errors are not known, and NaN in the file
            id="tokens",
        ),
        pytest.param("integrated_gradients", {"target": "the cat", "baseline": "mask"}, id="text"),
        pytest.param("integrated_gradients", {"target": [1.0] * 32}, id="direction"),
        pytest.param("integrated_gradients", {"target": "vector", "steps": 7}, id="vector"),
        pytest.param("shapley", {"samples": 20, "masking": "delete"}, id="shapley"),
        pytest.param("shapley", {"samples": 20, "target": "vector"}, id="shapley-vector"),
    ],
)
def test_file_holds_what_the_method_returns(out, method, options):
    function = {"integrated_gradients": integrated_gradients, "shapley": shapley_values}[method]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = attributed(out, CORPUS, method=method, **options)
        result = function(pair_of(), CORPUS, progress=False, **options)
    check_table(table, result)
    assert ("vectors" in table.column_names) == (options.get("target") == "vector")
    if "vectors" in table.column_names:
        assert table.schema.field("vectors").type == pa.list_(pa.list_(pa.float32()))
        for got, wanted in zip(table["vectors"].to_pylist(), result.vectors, strict=True):
            rows = np.array(got, np.float32).reshape(wanted.shape)
            np.testing.assert_allclose(rows, wanted, rtol=1e-5, atol=1e-6)
    assert left_in(out.parent) == ["out.parquet"]


def test_columns_are_those_of_the_page(out):
    table = attributed(out)
    assert {field.name: str(field.type) for field in table.schema} == {
        "sentence": "int64",
        "text": "string",
        "tokens": "list<element: string>",
        "starts": "list<element: int32>",
        "ends": "list<element: int32>",
        "scores": "list<element: double>",
        **dict.fromkeys(["value", "baseline_value", "residual"], "double"),
        "steps": "int64",
        "error": "double",
    }
    settings = json.loads(table.schema.metadata[parts.ABOUT])
    assert (settings["method"], settings["target"]) == ("integrated_gradients", "self")


def test_blank_sentences_are_rows_with_empty_lists(out):
    with pytest.warns(UserWarning, match="cut off"):
        rows = attributed(out, CORPUS).to_pylist()
    assert [rows[n]["text"] for n in (5, 10)] == ["", "  "]
    for row in (rows[5], rows[10]):
        assert [row[name] for name in ("tokens", "starts", "ends", "scores")] == [[], [], [], []]
    only_blank_in_a_part = attributed(out, ["cat", "", ""], rows_per_part=1)
    assert only_blank_in_a_part["tokens"].to_pylist() == [["cat"], [], []]


def test_every_kind_of_source_is_read(out, tmp_path):
    lines, objects, table = (tmp_path / f"in{end}" for end in (".txt", ".jsonl", ".parquet"))
    lines.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    objects.write_text("\n".join(json.dumps({"text": one}) for one in TEXTS), encoding="utf-8")
    pq.write_table(pa.table({"sentence": TEXTS}), table)
    wanted = attributed(out)
    for source in (str(lines), lines, objects, table, iter(TEXTS), pa.array(TEXTS)):
        assert attributed(out, source).equals(wanted)


def test_parts_and_passes_do_not_change_scores(out):
    wanted = attributed(out)
    for options in ({"rows_per_part": 1}, {"rows_per_part": 100}, {"batch_tokens": 20}):
        scores = attributed(out, **options)["scores"]
        for got, own in zip(scores.to_pylist(), wanted["scores"].to_pylist(), strict=True):
            np.testing.assert_allclose(got, own, rtol=1e-9, atol=1e-12)


def test_row_groups_of_the_file_are_not_those_of_the_parts(out):
    attributed(out, rows_per_part=1)
    assert pq.ParquetFile(out).metadata.num_row_groups == 1


def test_a_cut_is_told_once_with_all_of_them(out):
    with pytest.warns(UserWarning, match="cut off") as told:
        attributed(out, CORPUS)
    (one,) = [str(each.message) for each in told]
    assert one == (
        "2 of 12 sentences are longer than the model's 40 tokens; the rest was cut off and "
        "has no score."
    )
    assert told[0].filename == attributed.__code__.co_filename  # whoever calls


def test_what_does_not_converge_is_told_once(out):
    with pytest.warns(UserWarning, match="estimated error") as told:
        table = attributed(out, tolerance=1e-13)
    count = (table["error"].to_numpy() > 1e-13).sum()
    (one,) = [str(each.message) for each in told]
    assert re.fullmatch(
        f"{count} of 8 sentences have an estimated error above 1e-13 after ... nodes; see the "
        "column error.",
        one,
    )


def test_bad_options_leave_nothing(out):
    with pytest.raises(InputError, match="baseline: expected one of"):
        attributed(out, baseline="nothing")
    assert left_in(out.parent) == []


def test_errors_name_the_sentence_of_the_corpus(out):
    texts = [*TEXTS[:4], "the old dog chased the old cat over the very very quick green house"]
    with pytest.raises(InputError, match=r"sentence 4 has 14; use") as refused:
        attributed(out, texts, method="shapley", samples="exact")
    assert "12 words at most" in str(refused.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        pytest.param({"method": "lime"}, InputError, "method: expected one of", id="method"),
        pytest.param({"samples": 9}, TypeError, "integrated_gradients: .*'samples'", id="option"),
        pytest.param({"rows_per_part": 0}, InputError, "rows_per_part: expected at l", id="parts"),
        pytest.param({"target": ["a"] * 8}, InputError, "target: expected one for", id="texts"),
        pytest.param({"target": np.ones((8, 32))}, InputError, "one for all", id="vectors"),
        pytest.param({"corpus": []}, InputError, "source: expected at least one", id="no-sentence"),
        pytest.param({"corpus": ["", " "]}, InputError, "found none", id="all-blank"),
        pytest.param({"corpus": ["a", 1]}, TypeError, "source: entry 1 is int", id="not-a-string"),
        pytest.param({"corpus": 3}, TypeError, "source: expected sentences", id="number"),
        pytest.param({"corpus": ([1], [0, 1])}, TypeError, "got token ids", id="ids"),
        pytest.param({"corpus": "gone.txt"}, InputError, "source: no file 'gone.txt'", id="gone"),
        pytest.param({"corpus": "latin.txt"}, InputError, "latin.txt, line 2: inv", id="latin-1"),
        pytest.param({"corpus": "empty.txt"}, InputError, "empty.txt is empty", id="empty"),
        pytest.param({"out": "out.csv"}, InputError, "a name in .parquet, got out.csv", id="csv"),
        pytest.param({"out": "no/out.parquet"}, InputError, "no folder no", id="no-folder"),
        pytest.param({"out": "dir.parquet"}, InputError, "is a folder", id="folder"),
        pytest.param(
            {"corpus": "in.parquet", "out": "in.parquet"}, InputError, "is the source", id="itself"
        ),
    ],
)
def test_bad_input(tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes(b"one\ncaf\xe9\n")
    Path("empty.txt").write_bytes(b"\n")
    Path("dir.parquet").mkdir()
    pq.write_table(pa.table({"text": TEXTS}), "in.parquet")
    before = left_in(tmp_path)
    with pytest.raises(error, match=message):
        attributed(**{"out": "out.parquet"} | options)
    assert left_in(tmp_path) == before
