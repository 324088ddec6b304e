"""The benchmark of training steps, rehearsed as it will run on a GPU; and the page it ends in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments):
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(  # noqa: S603
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rehearsal_measures_all_methods_and_the_report_shows_them(tmp_path):
    run("benchmarks.bench_training", "--rehearse", "--output", tmp_path)
    rows = json.loads((tmp_path / "training-gpu.json").read_text())["rows"]
    measured = [row for row in rows if "methods" in row]
    assert [row["encoder"] for row in measured] == ["tiny, 32 tokens", "tiny, 128 tokens"]
    for row in measured:
        assert len(row["methods"]) == 7
        for method in row["methods"].values():
            assert min(method["s"]) > 0
            assert method["gradient_error"] < 1e-4
    page = tmp_path / "page.md"
    run("benchmarks.report", "--results", tmp_path, "--page", page)
    text = page.read_text()
    assert "### tiny, 128 tokens, 64 pairs" in text
    assert text.count("| simcse_fast, graphs kept |") == 2
    assert (tmp_path / "training-gpu.svg").stat().st_size > 10_000
