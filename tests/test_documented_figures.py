"""Figures in README and docs have a command and committed data; tables are drawn from the data."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"))
)
COMMAND = re.compile(r"python\s+-m\s+benchmarks\.([a-z]\w*)")
DATA = re.compile(r"results/([\w.-]+\.json)")
MEASURED = re.compile(r"\d (?:ms|microseconds|TFLOP/s|M tokens/s)\b|\d\.\d+ (?:x|times|s)\b")
# One draws, one checks a limit, one has no GPU to run on yet: its figures are on no page.
WITHOUT_DATA = {"report", "bench_import", "pipeline_model"}
# Of a GPU, and not run on one yet.
WITHOUT_DATA |= {"bench_graphs", "bench_products", "bench_uniformity_gpu"}
RESULTS = ROOT / "benchmarks/results", ROOT / "docs/results"


def test_tables_are_what_the_results_give(tmp_path):
    shutil.copy(ROOT / "README.md", tmp_path)
    command = [sys.executable, "-m", "benchmarks.report", "--page", tmp_path / "benchmarks.md"]
    command += ["--readme", tmp_path / "README.md"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)  # noqa: S603
    for name in ("README.md", "docs/benchmarks.md"):
        fresh = (tmp_path / Path(name).name).read_text(encoding="utf-8")
        assert fresh == (ROOT / name).read_text(encoding="utf-8"), "run python -m benchmarks.report"


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_with_figures_says_where_they_are_from(page):
    text = text_of(page)
    if found := MEASURED.search(text):
        assert COMMAND.search(text) or "benchmarks.md" in text, f"{found[0]}: by which command?"


def test_every_command_is_there_and_has_left_its_data():
    named = {name for page in PAGES for name in COMMAND.findall(text_of(page))}
    results = [json.loads(path.read_text()) for path in ROOT.glob("benchmarks/results/*.json")]
    left = {COMMAND.match(result["provenance"]["command"])[1] for result in results}
    assert {"bench_info_nce", "bench_gpu"} <= named
    assert not {name for name in named | left if not (ROOT / f"benchmarks/{name}.py").is_file()}
    assert not named - left - WITHOUT_DATA


def test_every_result_that_is_named_is_committed():
    named = {name for page in PAGES for name in DATA.findall(text_of(page))}
    assert named
    assert not {name for name in named if not any((one / name).is_file() for one in RESULTS)}
