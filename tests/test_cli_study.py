"""`simcse-fast study`: from files to a folder with a report, and what it refuses."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("sentence_transformers", reason="needs the extra study")

from train_models import save_bert, scored_pairs, sentences, write_lines

from simcse_fast import cli
from simcse_fast.cli.study import named_files

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    save_bert(folder / "bert")
    write_lines(folder / "corpus.txt", sentences(400))
    write_lines(folder / "pairs.tsv", scored_pairs(12))
    write_lines(folder / "texts.txt", sentences(15, 1))
    return folder


def command(files, output, *more):
    bert = str(files / "bert")
    return [
        *("study", bert, bert, "--corpus", str(files / "corpus.txt"), "--methods", "ig"),
        *("--resamples", "20", "--output", str(output), *more),
    ]


def test_two_sets_and_a_report(files, tmp_path, capsys):
    sets = ["--sentences", f"sts={files / 'pairs.tsv'}", str(files / "texts.txt")]
    assert cli.main([*command(files, tmp_path), *sets, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sentences"] == {"sts, ig": 24, "texts, ig": 15}
    assert found["report"] == str(tmp_path / "report.html")
    assert found["rows"] == json.loads((tmp_path / "study.json").read_text())["rows"]
    assert {row["encoder"] for row in found["rows"]} == {"before", "after", "change"}
    # Again, with other numbers of resamples: nothing is attributed anew.
    assert cli.main([*command(files, tmp_path, "--resamples", "30"), *sets]) == 0
    told = capsys.readouterr().out
    assert json.loads((tmp_path / "study.json").read_text())["seconds"] == []
    assert "| sts | Integrated Gradients | information gain |" in told
    assert "Integrated Gradients: information gain explains (R²)" in told
    assert f"Report {tmp_path / 'report.html'}" in told


def test_none_studies_one_encoder(files, tmp_path, capsys):
    arguments = command(files, tmp_path, "--sentences", str(files / "texts.txt"))
    arguments[1] = "none"
    assert cli.main([*arguments, "--json"]) == 0
    assert {row["encoder"] for row in json.loads(capsys.readouterr().out)["rows"]} == {"after"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sentences", "no.txt"], "sentences: no file 'no.txt'"),
        ([], "sentences: expected some for encoders that are transformers, got none"),
        (["--sentences", "a=x.txt", "a=y.txt"], "--sentences: two sets are called 'a'"),
    ],
    ids=["missing-file", "no-sentences", "one-name-twice"],
)
def test_bad_input(files, tmp_path, capsys, more, message):
    assert cli.main([*command(files, tmp_path / "out"), *more]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"simcse-fast: {message}")
    assert told.count("\n") == 1


def test_a_folder_that_cannot_be_written(files, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    sets = ["--sentences", str(files / "texts.txt")]
    assert cli.main([*command(files, tmp_path / "file" / "out"), *sets]) == 2
    assert "--output" in capsys.readouterr().err


def test_sets_are_called_by_their_files():
    assert named_files(["a=b/c.txt", "b/d.tsv"]) == {"a": "b/c.txt", "d": "b/d.tsv"}
