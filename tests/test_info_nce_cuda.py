"""The loss whose products are CUDA C++, through the whole plan, against fp64 and torch."""

from __future__ import annotations

import emulation
import pytest
import torch
from info_nce_cases import (
    Case,
    assert_no_worse,
    block_gradients,
    errors,
    evaluate,
    random_case,
    textbook,
)

from simcse_fast import info_nce, set_workspace_limit
from simcse_fast.kernels.infonce.terms import Block, Own

if reason := emulation.problem():
    pytest.skip(reason, allow_module_level=True)

from simcse_fast.kernels.infonce import cuda

BACKEND = emulation.BACKEND
pytestmark = emulation.MARKS
LOSSES = {
    "rows": {},
    "symmetric": {"symmetric": True},
    "learned-symmetric": {"symmetric": True, "learned": True},
    "learned": {"learned": True},
    "none": {"reduction": "none"},
    "margin": {"false_negative_margin": 0.1},
    "margin-symmetric": {"false_negative_margin": 0.1, "symmetric": True},
    "ids": {"query_ids": torch.arange(300) % 70, "key_ids": torch.arange(300) % 90},
    "hard": {"hard": 2, "hardness": 1.0},
    "weight": {"weight": torch.linspace(0, 2, 300)},
    "not-normalized": {"normalize": False, "learned": True},
    "smoothing": {"label_smoothing": 0.1},
}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    yield from emulation.machine(monkeypatch)
    set_workspace_limit(None)


@pytest.fixture
def panels_only(monkeypatch):
    monkeypatch.setattr(cuda, "narrow", lambda *_: None)


@pytest.mark.usefixtures("panels_only")
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_no_worse_than_torchs(name, monkeypatch):
    """Through the whole plan, in two panels; with which kernels, is noted."""
    used = []
    launch = cuda._launch
    monkeypatch.setattr(cuda, "_launch", lambda f, *a: [used.append(f.__name__), launch(f, *a)])
    set_workspace_limit(256 * 320 * 2 + 256 * 12 * 2)
    options = dict(LOSSES[name])
    learned = options.pop("learned", False)

    def make_case(seed: int) -> Case:
        case = random_case(300, width=70, seed=seed, dtype=torch.bfloat16, noise=0.7, **options)
        return case if learned else case.fixed()

    assert_no_worse(make_case, backend=BACKEND, seeds=2)
    wanted = set() if name == "smoothing" else {"sf_infonce_sums_cuda"}
    if "symmetric" in name:
        wanted.add("sf_infonce_gradients_cuda")
    assert wanted <= set(used)


@pytest.mark.usefixtures("panels_only")
@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
def test_a_converged_loss_keeps_its_gradient(symmetric):
    """1 - p about 1e-6: subtracted after rounding, nothing of it would be left."""
    case = random_case(300, width=70, noise=0.02, dtype=torch.bfloat16, symmetric=symmetric)
    exact = evaluate(textbook, case.to(torch.float64))
    found = errors(evaluate(info_nce, case.fixed().on(BACKEND), backend=BACKEND), exact[:3])
    assert max(found[1:3]) < 2e-2


@pytest.mark.usefixtures("panels_only")
def test_an_offset_that_suits_no_row_is_found_tile_by_tile():
    """All cosines near -1 at temperature 0.01: a flag on the device has Triton's kernels run."""
    g = torch.Generator().manual_seed(0)
    towards = torch.randn(1, 70, generator=g)
    pair = [side * towards + 0.05 * torch.randn(300, 70, generator=g) for side in (1, -1)]
    for symmetric in (False, True):
        case = Case(*pair, None, torch.tensor(0.01), {"symmetric": symmetric}).to(torch.bfloat16)
        exact = evaluate(textbook, case.to(torch.float64))
        theirs = errors(evaluate(textbook, case), exact)
        found = errors(evaluate(info_nce, case.on(BACKEND), backend=BACKEND), exact)
        assert all(m < 1.1 * t + 3e-5 for m, t in zip(found[1:3], theirs[1:3], strict=True))


def test_blocks_share_one_softmax():
    """Joined directions of sentence-transformers' loss, in one softmax of every kind of column."""
    rows, docs = 130, 260
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, 70, generator=g, dtype=torch.float64) for n in (rows, docs)]
    blocks = (
        Block(0, 1, rows, Own.POSITIVE, 2.0, 1.0),
        Block(0, 0, rows, Own.LEFT_OUT),
        Block(1, 0, rows, Own.KEPT),
    )

    exact = block_gradients("reference", tensors, blocks)
    found = block_gradients(BACKEND, [x.bfloat16() for x in tensors], blocks)
    assert max(errors(found, exact)) < 2e-2


# On a GPU, sizes that keep all clusters busy for many tiles; emulated, a few tiles.
MANY = [(2049, 768), (5000, 384), (9000, 1024)] if emulation.REAL else [(523, 320)]


@pytest.mark.usefixtures("panels_only")
@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
@pytest.mark.parametrize(("rows", "width"), MANY, ids=str)
def test_sizes_that_run_in_training(rows, width, symmetric):
    case = random_case(
        rows, width=width, dtype=torch.bfloat16, symmetric=symmetric, noise=0.5
    ).fixed()
    exact = evaluate(textbook, case.on(BACKEND).to(torch.float64))
    found = errors(evaluate(info_nce, case.on(BACKEND), backend=BACKEND), exact)
    theirs = errors(evaluate(textbook, case.on(BACKEND)), exact)
    assert found[0] < 1e-4
    assert all(m <= 1.1 * t for m, t in zip(found[1:3], theirs[1:3], strict=True)), (found, theirs)


@pytest.mark.usefixtures("panels_only")
@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
def test_runs_are_equal_bit_for_bit(symmetric):
    rows, width = MANY[0] if emulation.REAL else (300, 64)
    case = random_case(rows, width=width, dtype=torch.bfloat16, symmetric=symmetric).on(BACKEND)
    set_workspace_limit(rows // 2 * rows * 2)  # several panels
    first = evaluate(info_nce, case, backend=BACKEND)
    for _ in range(20 if emulation.REAL else 1):
        again = evaluate(info_nce, case, backend=BACKEND)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.usefixtures("panels_only")
@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
def test_results_are_tritons(symmetric):
    """Of more than 2^31 similarities, where there is a GPU: they come from nowhere else."""
    rows, width = (47_000, 128) if emulation.REAL else (300, 64)
    case = random_case(rows, width=width, dtype=torch.bfloat16, symmetric=symmetric, noise=0.5)
    case = case.fixed().on(BACKEND)
    triton = type(BACKEND)("triton")
    mine, theirs = (evaluate(info_nce, case, backend=name) for name in (BACKEND, triton))
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-6, atol=0)
    for one, other in zip(mine[1:3], theirs[1:3], strict=True):
        assert (one - other).norm() < 5e-3 * other.norm()
