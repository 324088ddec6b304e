"""simcse-fast explain --out: a whole file into another, in the terminal."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra explain")

from attribution_files import check_table, full_disk, left_in
from attribution_models import TEXTS, pair_of, tokenizer_of, transformer_of

from simcse_fast import cli
from simcse_fast.attribution import integrated_gradients, parts, shapley_values
from simcse_fast.cli import explain, explained_file

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.parquet"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs explain on a text of twelve lines with a tiny model."""
    monkeypatch.setattr(explain, "load_model", lambda *_: pair_of())
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n".join([*TEXTS, *TEXTS[:4]]) + "\n", encoding="utf-8")

    def run(*arguments, file="text.txt"):
        code = cli.main(["explain", "--file", file, *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_command_writes_the_table(command, out):
    code, told, error = command("--out", out, "--steps", 7)
    assert (code, error) == (0, "")
    table = pq.read_table(out)
    check_table(
        table, integrated_gradients(pair_of(), [*TEXTS, *TEXTS[:4]], steps=7, progress=False)
    )
    lines = told.splitlines()
    assert lines[0].startswith("Sentences  12; ")
    assert lines[0].endswith(" sentences/s")
    assert lines[1] == f"Table      {out}"
    assert lines[2].startswith("Heaviest   ")
    assert "the +" in lines[2]


def test_command_tells_machines_the_totals(command, out):
    options = ["--method", "shap", "--samples", 8, "--target", "the cat", "--json", "--out", out]
    code, told, _ = command(*options)
    told = json.loads(told)
    assert code == 0
    assert (told["out"], told["sentences"], told["sentences_of_earlier_runs"]) == (str(out), 12, 0)
    assert told["sentences_per_second"] == pytest.approx(12 / told["seconds"])
    result = shapley_values(pair_of(), [*TEXTS, *TEXTS[:4]], samples=8, target="the cat")
    scores = [
        score
        for words, own in zip(result.tokens, result.scores, strict=True)
        for word, score in zip(words, own, strict=True)
        if word.lower() == "the"
    ]
    (the,) = [one for one in told["heaviest"] if "the" in one.values()]
    assert (the["count"], the["mean_score"]) == (len(scores), pytest.approx(np.mean(scores)))


def test_rare_words_are_not_among_the_heaviest(tmp_path):
    rows = [(["A", "b", "rare"], [1.0, -2.0, 9.0])] + 4 * [(["a", "b"], [3.0, -2.0])] + [([], [])]
    tokens, scores = (list(column) for column in zip(*rows, strict=True))
    pq.write_table(pa.table({"tokens": tokens, "scores": scores}), tmp_path / "t.parquet")
    assert explained_file.heaviest(tmp_path / "t.parquet") == [
        {"token": "a", "count": 5, "mean_score": 2.6},
        {"token": "b", "count": 5, "mean_score": -2.0},
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--out", "o.csv"], "--out: expected a name in .parquet", id="ending"),
        pytest.param(["--out", "no/o.parquet"], "--out: there is no folder no", id="no-folder"),
        pytest.param(["--out", "o.parquet", "a"], "and no other sentences", id="sentences"),
        pytest.param(["--restart"], "--restart: belongs to --out", id="restart"),
        pytest.param(["--out", "o.parquet", "--html", "x"], "has no page", id="page"),
        pytest.param(
            ["--out", "o.parquet", "--target", "a", "--target", "b"], "got 2", id="targets"
        ),
        pytest.param(["--out", "o.parquet", "--seed", "1"], "--method shap", id="other-method"),
        pytest.param(["--out", "o.parquet", "--baseline", "x"], "baseline: exp", id="baseline"),
    ],
)
def test_command_refuses_in_one_sentence(command, tmp_path, arguments, message):
    before = left_in(tmp_path)
    code, told, error = command(*arguments)
    assert (code, told) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert left_in(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("gone.txt", None, "--file: no file 'gone.txt'", id="missing"),
        pytest.param("bad.txt", b"a\nb\xff\n", "bad.txt, line 2: invalid UTF-8", id="utf-8"),
        pytest.param("none.txt", b"", "--file: none.txt is empty", id="empty"),
        pytest.param("bad.jsonl", b'"a"\n{', "bad.jsonl, line 2: not JSON", id="jsonl"),
        pytest.param("bad.parquet", b"PAR1", "is not a Parquet file", id="parquet"),
    ],
)
def test_command_refuses_files_in_one_sentence(command, name, content, message):
    if content is not None:
        Path(name).write_bytes(content)
    code, told, error = command("--out", "o.parquet", file=name)
    assert (code, told) == (2, "")
    assert message in error
    assert error.count("\n") == 1


def test_command_on_a_full_disk_and_with_other_settings(command, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(parts, "sync", full_disk)
        code, _, error = command("--out", "o.parquet")
    assert code == 2
    assert "o.parquet cannot be written (No space left on device)" in error
    with monkeypatch.context() as patch:
        patch.setattr(parts.TableParts, "merge", full_disk)
        assert command("--out", "o.parquet")[0] == 2
    code, _, error = command("--out", "o.parquet", "--steps", 7)
    assert code == 2
    assert "steps 'auto', now it is 7" in error
    assert command("--out", "o.parquet", "--steps", 7, "--restart")[0] == 0


RUN = """import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells may have it ignored
from simcse_fast.cli import main
sys.exit(main(sys.argv[1:]))"""


def test_interrupted_command_goes_on(tmp_path, out):
    model, text = tmp_path / "model", tmp_path / "text.txt"
    transformer_of("bert", torch.float32).save_pretrained(model)
    tokenizer_of("bert").save_pretrained(model)
    text.write_text("\n".join(TEXTS * 200), encoding="utf-8")  # thirteen parts
    command = [sys.executable, "-c", RUN, "explain", "--file", text, "--out", out]
    command += ["--model", model, "--pooling", "mean", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as running:  # noqa: S603
        folder = out.with_name("out.parquet.parts")
        while running.poll() is None and not list(folder.glob("part-000001-*")):
            time.sleep(0.002)
        running.send_signal(signal.SIGINT)
        _, error = running.communicate()
    assert running.returncode == 130, error
    done = int(error.removeprefix("simcse-fast: explain was interrupted; ").partition(" of ")[0])
    assert f"{done:,} of 1,600 sentences are done; the same command goes on from there\n" in error
    assert (done % 128, done >= 128) == (0, True)
    assert not out.exists()
    again = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    told = json.loads(again.stdout)
    assert told["sentences"] == 1600
    # The signal may come when a part has its name, and is not yet counted.
    assert told["sentences_of_earlier_runs"] in {done, done + 128}
    model = transformer_of("bert", torch.float32), tokenizer_of("bert")
    check_table(pq.read_table(out)[:8], integrated_gradients(model, TEXTS, progress=False), 1e-5)
