"""The GPU's part for fp32, here in Triton's interpreter: terms, blocks, tiles and panels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from info_nce_cases import TRITON as BACKEND
from info_nce_cases import Counted, assert_no_worse, device_of, evaluate, random_case

from simcse_fast import backends, info_nce, set_workspace_limit
from simcse_fast.kernels.infonce.terms import Block, Own
from simcse_fast.losses.info_nce import block_softmax

if not backends()["triton"].available:
    pytest.skip(backends()["triton"].detail, allow_module_level=True)

from simcse_fast.kernels.infonce import torch_ops, triton_panels, triton_rows

DEVICE = device_of(BACKEND)
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
ROWS = 83  # no multiple of anything
WEIGHT = torch.linspace(0, 2, ROWS)
IDS = {"query_ids": torch.arange(ROWS) % 9, "key_ids": torch.arange(ROWS) % 9}
EVERYTHING = {
    **IDS, "false_negative_margin": 0.3, "hardness": 1.0, "label_smoothing": 0.1,
    "weight": WEIGHT, "hard": 3, "hard_negative_weight": 2.0,
}  # fmt: skip
OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"weight": WEIGHT}, id="weight"),
    pytest.param(IDS, id="ids"),
    pytest.param({"false_negative_margin": 0.05}, id="margin"),
    pytest.param({"label_smoothing": 0.1}, id="smoothing"),
    pytest.param({"hard": 2}, id="hard"),
    pytest.param({"normalize": False}, id="not-normalized"),
    pytest.param(EVERYTHING, id="everything"),
]


@pytest.fixture(autouse=True)
def default_workspace():
    yield
    set_workspace_limit(None)


@pytest.fixture(params=["whole", "cut"])
def cut(request, monkeypatch):
    """One panel; three, with blocks and tiles so small that each row and column has many."""
    if request.param == "cut":
        set_workspace_limit(4 * ROWS * 30)
        monkeypatch.setattr(triton_panels, "BLOCK", 32)
        tile = {"BM": 16, "BN": 16, "num_warps": 1}
        monkeypatch.setattr(triton_panels, "TILE", tile)
        monkeypatch.setattr(triton_panels, "FOLDED", 16)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_term(options, symmetric):
    assert_no_worse(
        lambda seed: random_case(ROWS, width=33, seed=seed, symmetric=symmetric, **options),
        backend=BACKEND,
    )


@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
def test_a_temperature_that_is_a_number(symmetric):
    assert_no_worse(
        lambda seed: random_case(ROWS, width=33, seed=seed, symmetric=symmetric).fixed(),
        backend=BACKEND,
    )


@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
@pytest.mark.parametrize(
    ("temperature", "noise"),
    [
        pytest.param(0.05, 0.02, id="converged"),  # 1 - p about 1e-6
        pytest.param(0.01, 1.0, id="cold"),
        pytest.param(1.0, 1e3, id="warm-unrelated"),
    ],
)
def test_every_regime(temperature, noise, symmetric):
    options = {"temperature": temperature, "noise": noise, "symmetric": symmetric}
    assert_no_worse(
        lambda seed: random_case(40, width=33, seed=seed, **options),
        backend=BACKEND,
        seeds=25,  # for the loss and the temperature's gradient, each a single number
    )


@pytest.mark.usefixtures("cut")
def test_labels_that_repeat_and_more_columns_than_rows():
    labels = torch.arange(ROWS) // 3 * 5
    assert_no_worse(
        lambda seed: random_case(ROWS, 2 * ROWS, width=33, seed=seed, labels=labels),
        backend=BACKEND,
    )


@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
def test_two_runs_are_equal_bit_for_bit(symmetric):
    case = random_case(ROWS, width=33, symmetric=symmetric).on(BACKEND)
    one, other = (evaluate(info_nce, case, backend=BACKEND) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_row_that_is_not_a_number_spoils_its_own_loss_alone():
    case = random_case(ROWS, width=33).on(BACKEND)
    query = case.query.clone()
    query[5] = torch.nan
    losses = info_nce(query, case.key, reduction="none", backend=BACKEND)
    assert losses.isnan().nonzero().flatten().tolist() == [5]


def test_a_key_that_is_not_a_number_spoils_every_loss():
    case = random_case(ROWS, width=33).on(BACKEND)
    case.key[5] = torch.nan
    for symmetric in (False, True):
        options = {"reduction": "none", "symmetric": symmetric, "backend": BACKEND}
        assert info_nce(case.query, case.key, **options).isnan().all()


@pytest.mark.parametrize(
    ("blocks", "own"),
    [
        pytest.param((Block(0, 1, 40),), True, id="triplets"),
        pytest.param((Block(0, 1, 40, hardness=2.0, own_hardness=2.0),), True, id="hardness"),
        pytest.param((Block(0, 1, 40, hardness=2.0),), False, id="hardness-of-others"),
        pytest.param((Block(0, 1, 40), Block(0, 0, 40, Own.LEFT_OUT)), False, id="left-out"),
    ],
)
def test_columns_that_differ_take_the_plain_way(blocks, own, monkeypatch):
    """Documents of triplets are columns like any other: they take the kernel."""
    plain = []
    rows = torch_ops.rows
    monkeypatch.setattr(torch_ops, "rows", lambda *a: [plain.append(1), rows(*a)][1])
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(n, 33, generator=g).to(DEVICE) for n in (40, 80)]
    found = {}
    for backend in ("triton", "reference"):
        mine = [x.clone().requires_grad_() for x in inputs]
        loss = block_softmax(mine, blocks, scale=20.0, normalize=True, backend=backend)
        found[backend] = [loss, *torch.autograd.grad(loss, mine)]
    assert bool(plain) != own
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("symmetric", "launches"),
    [
        pytest.param(False, 5, id="rows"),  # unit rows twice, the rows, and back twice
        pytest.param(True, 8, id="symmetric"),  # sums and gradients, and two directions' softmaxes
    ],
)
def test_launches(symmetric, launches, monkeypatch):
    """How many kernels of ours a loss and its gradients take: what a small batch consists of."""
    count = []
    for module in (triton_rows, triton_panels):
        for name, kernel in list(vars(module).items()):
            if name.startswith("infonce_"):
                monkeypatch.setattr(module, name, Counted(kernel, count))
    case = random_case(40, width=33).on(BACKEND)
    pair = case.query.requires_grad_(), case.key.requires_grad_()
    info_nce(*pair, symmetric=symmetric, backend=BACKEND).backward()
    assert len(count) == launches


def test_a_symmetric_panel_that_fits_is_formed_once(monkeypatch):
    """Three products; in panels the similarities are formed twice."""
    shapes = []
    multiply = triton_panels.multiply
    monkeypatch.setattr(
        triton_panels, "multiply", lambda *a, **k: [shapes.append(a[2].shape), multiply(*a, **k)][1]
    )
    case = random_case(40, width=33, symmetric=True)
    case = dataclasses.replace(case.on(BACKEND), temperature=torch.tensor(0.05, device=DEVICE))
    evaluate(info_nce, case, backend=BACKEND)
    assert shapes == [(40, 40), (40, 33), (40, 33)]
