"""The GPU benchmark, rehearsed on the CPU beside peers that work, that fail and that are wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rehearsals import run

from simcse_fast import backends

PRODUCTS = {
    (False, False): 1,
    (True, False): 1,
    (False, True): 3,
    (True, True): 4,
}  # by (symmetric, backward)
LARGEST = 60  # rows of the problem that is measured once
OURS = ("simcse_fast torch", "simcse_fast triton")
CUDA = "simcse_fast cuda"  # for 16 bits alone, and for one kind of device
PEERS = {
    "memeff.py": """
def MemoryEfficientCLIPLoss(**options):
    return refuse
def MemoryEfficientQwen3Loss(**options):
    return refuse
def refuse(query, key):
    raise RuntimeError(f"no tile for a width of {query.shape[1]}")
""",
    "inf_cl.py": """
import torch
def cal_flash_loss(query, key, scale):
    labels = torch.arange(len(query))
    return torch.nn.functional.cross_entropy(scale * query @ key.T, labels, reduction="none")
""",
    "cut_cross_entropy.py": """
import time
def linear_cross_entropy(*rows, **options):
    time.sleep(600)
""",
    "siglip_kernel.py": "raise ImportError('built for another torch')",
    "liger_kernel/transformers/fused_linear_cross_entropy.py": """
from torch.nn import functional as F
def LigerFusedLinearCrossEntropyLoss(**options):
    return lambda weight, rows, labels: 2 * F.cross_entropy(rows @ weight.T, labels)
""",
}


pytestmark = pytest.mark.skipif(
    not backends()["triton"].available, reason=backends()["triton"].detail
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where one rehearsal has written its result."""
    root, folder = Path(__file__).resolve().parents[1], tmp_path_factory.mktemp("bench")
    for name, text in PEERS.items():
        path = folder / "peers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    rehearse(folder, [folder / "peers", root])
    return folder


def rehearse(folder, paths, *options):
    """Run the benchmark at toy sizes."""
    options = ["--rehearse", "--seconds", "0", "--longest", "8", "--output", folder, *options]
    subprocess.run(  # noqa: S603
        [sys.executable, "-m", "benchmarks.bench_gpu", *options],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
        cwd=folder,
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def rows(folder):
    """All rows of it."""
    return json.loads((folder / "info_nce-rehearsal.json").read_text())["rows"]


def of(rows, method):
    return [row for row in rows if row["method"] == method]


def problem(row):
    return row["rows"], row["width"], row["dtype"], row["symmetric"], row["backward"]


def test_every_problem_has_a_row_of_each_method(rows):
    problems = {
        (n, 16, dtype, both, full)
        for n in (40, 24)
        for dtype in ("float16", "float32")
        for both in (False, True)
        for full in (False, True)
    }
    for method in (*OURS, "eager", "torch.compile", "memeff", "inf-cl"):
        found = [problem(row) for row in of(rows, method) if row["rows"] != LARGEST]
        assert set(found) == problems
        assert len(found) == len(problems)
    larger = {p for p in problems if p[0] == 40}
    assert {problem(row) for row in of(rows, "products in panels of 36")} == larger
    assert {problem(row) for row in of(rows, "products in panels of 24")} == problems - larger


def test_the_most_important_come_first(rows):
    measured = list(dict.fromkeys(problem(row) for row in rows))
    assert measured[:2] == [(32, 32, dtype, False, False) for dtype in ("float16", "float32")]
    assert measured[2:4] == [(40, 16, "float16", both, True) for both in (False, True)]
    assert measured[-1] == (24, 16, "float32", True, False)  # differs in everything


def test_the_largest_problem_is_measured_once(rows):
    largest = [row for row in rows if row["rows"] == LARGEST]
    methods = ["products in panels of 60", "simcse_fast triton"]
    assert [row["method"] for row in largest] == methods
    assert all("ms" in row for row in largest)


def test_products_in_cuda_say_what_they_need(rows):
    found = of(rows, CUDA)
    assert {row["dtype"] for row in found} == {"float16"}
    if not backends()["cuda"].available:
        assert all(row["reason"].startswith("BackendUnavailableError") for row in found)


def test_fp32_can_be_measured_alone(tmp_path, repository):
    rehearse(tmp_path, [repository], "--part", "fp32")
    found = json.loads((tmp_path / "info_nce-rehearsal.json").read_text())["rows"]
    assert {problem(row) for row in found} == {(24, 16, "float32", True, True)}
    methods = ["products in panels of 24", "simcse_fast triton", "eager", "torch.compile"]
    assert [row["method"] for row in found if "ms" in row] == methods


def test_operations_are_those_the_plan_needs(rows):
    timed = [row for row in rows if "reason" not in row]
    assert len(timed) > len(rows) / 2
    for row in timed:
        count = PRODUCTS[row["symmetric"], row["backward"]]
        operations = count * 2 * row["rows"] ** 2 * row["width"]
        assert row["tflops"] == pytest.approx(operations / (row["ms"]["median"] / 1e3) / 1e12)
        assert row["ms"]["low"] <= row["ms"]["median"] <= row["ms"]["high"]


def test_gradients_are_checked_before_timing(rows):
    errors = {problem(row): row["gradient_error"] for row in of(rows, "eager")}
    for row in [row for method in OURS for row in of(rows, method) if problem(row) in errors]:
        assert row["gradient_error"] <= errors[problem(row)] + 1e-6
    for row in of(rows, "liger-kernel"):
        assert 0.9 < row["gradient_error"] < 1.1  # twice the gradient
        assert "ms" not in row
        assert row["reason"].startswith("gradient error 1")


def test_a_failing_peer_leaves_its_reason(rows):
    reasons = {row["reason"] for row in of(rows, "memeff")}
    assert reasons == {"RuntimeError: no tile for a width of 16"}
    (only,) = of(rows, "siglip-kernel")  # what cannot be imported is not tried again
    assert only["reason"] == "ImportError: built for another torch"


def test_a_hanging_peer_is_given_up_and_the_run_goes_on(rows):
    (only,) = of(rows, "cut-cross-entropy")
    assert only["reason"] == "took more than 8 s"
    assert rows.index(only) < len(rows) / 2
    keys = [(*problem(row), row["method"]) for row in rows]
    assert len(keys) == len(set(keys))  # what was measured before is kept, not measured again


def test_the_report_names_every_method_and_why_one_has_no_time(folder, repository):
    text = report_of(folder, repository)
    problem = "### 40 x 16, float16, row-only, forward and backward"
    lines = text.split(problem)[1].split("###")[0].splitlines()
    for method in ("products in panels", *OURS, "eager", "torch.compile", "inf-cl"):
        (line,) = [line for line in lines if line.startswith(f"| {method} |")]
        assert float(line.split("|")[2].replace(",", "")) > 0
    assert "RuntimeError: no tile for a width of 16" in text
    assert "memeff |" not in text.split("### By N")[1].splitlines()[2]  # it has no time
    assert (folder / "info_nce-rehearsal.svg").read_text().count("row-only, D = 16") == 1


def report_of(folder, repository):
    command = [sys.executable, "-m", "benchmarks.report", "--results", str(folder)]
    page = folder / "page.md"
    subprocess.run([*command, "--page", str(page)], cwd=repository, check=True)  # noqa: S603
    return page.read_text()


def test_gradient_products_are_measured_alone(tmp_path, repository):
    run("benchmarks.bench_products", "--rehearse", "--seconds", 0, "--output", tmp_path)
    square, *rows = json.loads((tmp_path / "products-rehearsal.json").read_text())["rows"]
    assert {(row["product"], row["rows"]) for row in rows} == {
        (name, count) for name in ("queries", "keys") for count in (64, 96)
    }
    for row in rows:
        operations = 2 * row["rows"] * row["keys"] * row["width"]
        assert row["tflops"] == pytest.approx(operations / (row["ms"]["median"] / 1e3) / 1e12)
        assert row["of_square"] == pytest.approx(row["tflops"] / square["tflops"])
    text = report_of(tmp_path, repository)
    assert "## Gradient products on no GPU: a rehearsal" in text
    assert text.count("| queries |") == text.count("| keys |") == 2


def test_uniformity_is_measured_in_both_types_and_directions(tmp_path, repository):
    run("benchmarks.bench_uniformity_gpu", "--rehearse", "--output", tmp_path)
    rows = json.loads((tmp_path / "uniformity-rehearsal.json").read_text())["rows"]
    problems = {(row["rows"], row["dtype"], row["backward"]) for row in rows}
    assert len(problems) == 8
    assert len(rows) == len(problems) * 4
    assert all("ms" in row for row in rows)
    for row in rows:
        if row["method"] == "simcse_fast":
            assert row["gradient_error"] < (1e-6 if row["dtype"] == "float32" else 5e-3)
    assert report_of(tmp_path, repository).count("value and gradient |") == 4


def test_the_model_of_the_kernel_says_what_its_page_does(repository):
    """docs/loss-gpu.md quotes its lines."""
    page = (repository / "docs" / "loss-gpu.md").read_text()
    quoted = [line for line in page.splitlines() if line.startswith("epilogue 1")]
    assert quoted == run("benchmarks.pipeline_model").splitlines()[1:]
    assert len(quoted) == 8
