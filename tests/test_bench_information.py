"""The benchmark of information gain, rehearsed; and the page it ends in."""

import json

import pytest
from rehearsals import run

PARTS = {"counting", "slowest", "text", "splitting", "parquet", "phases", "memory", "scaling"}
PARTS |= {"contexts", "cache", "correction", "zipf"}


def test_rehearsal_measures_every_part_and_the_report_shows_it(tmp_path):
    run("benchmarks.bench_information", "--quick", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["information-cpu-rehearsal.json"]
    result = json.loads((tmp_path / "information-cpu-rehearsal.json").read_text())
    assert result["provenance"]["command"] == "python -m benchmarks.bench_information --quick"
    text, *rows = result["rows"]
    assert {row["part"] for row in rows} == PARTS
    assert all(row["time_over_first"][name] > 0 for row in rows for name in row.get("rate", ()))
    by_kind = {row["kind"]: row for row in rows}
    assert sum(by_kind["phases"]["share"].values()) == pytest.approx(1, abs=1e-3)
    assert by_kind["zipf"]["apart"] < 1e-11  # with the ids on disk and in memory
    assert by_kind["correction"]["median_apart"] < 0.1  # of words with a count of 20 and more
    page = tmp_path / "page.md"
    run("benchmarks.report", "--results", tmp_path, "--page", page)
    told = page.read_text()
    assert text["text"] in told
    assert "| scipy X^T X + KL |" in told
    assert (tmp_path / "information-rehearsal.svg").stat().st_size > 10_000
