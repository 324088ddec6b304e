"""The benchmark of training steps, rehearsed as it will run on a GPU; and the page it ends in."""

import json

import pytest
from rehearsals import run

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")


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
