"""Loss and gradients against fp64: never worse than the textbook loss in the same type."""

from __future__ import annotations

import math

import pytest
import torch
from info_nce_cases import (
    BACKENDS,
    FUSED,
    QUICK,
    Case,
    assert_no_worse,
    device_of,
    errors,
    evaluate,
    random_case,
    textbook,
)

from simcse_fast import backends, info_nce, set_workspace_limit
from simcse_fast.kernels import native

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [
    pytest.param(1, 1, id="one-pair"),
    pytest.param(1, 7, id="one-row"),
    pytest.param(15, 17, id="round-a-vector-of-16"),
    pytest.param(67, 67, id="square-prime"),
    pytest.param(67, 131, id="rectangular"),
    pytest.param(257, 257, id="one-over-a-column-strip"),  # strips of columns are 256 wide
]


def ids_of(count: int, seed: int, kinds: int) -> torch.Tensor:
    return torch.randint(0, kinds, (count,), generator=torch.Generator().manual_seed(seed))


# Each option alone, and those that share code paths together.
OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "not-normalized": {"normalize": False},
    "margin": {"false_negative_margin": 0.0},
    "hardness": {"hardness": 3.0},
    "label-smoothing": {"label_smoothing": 0.1},
    "hard-negatives": {"hard": 3},
    "hard-negatives-weighted-hardness": {"hard": 2, "hard_negative_weight": 4.0, "hardness": 1.0},
    "smoothing-margin-hard": {"hard": 2, "label_smoothing": 0.2, "false_negative_margin": -0.1},
}
EVERY_OPTION = [
    pytest.param(name, symmetric, id=f"{name}-{'symmetric' if symmetric else 'rows'}")
    for name in (*OPTIONS, "labels", "ids", "weight")
    for symmetric in (False, True)
    if not (symmetric and name == "labels")  # which info_nce refuses
]


@pytest.fixture(autouse=True)
def default_workspace():
    yield
    set_workspace_limit(None)


def with_rows(name: str, rows: int, seed: int) -> dict:
    """Options whose tensors depend on the number of rows."""
    g = torch.Generator().manual_seed(seed)
    return {
        "labels": {"labels": torch.randint(0, rows, (rows,), generator=g)},  # some repeat
        "ids": dict.fromkeys(("query_ids", "key_ids"), torch.randint(0, 9, (rows,), generator=g)),
        "weight": {"weight": torch.rand(rows, generator=g)},
    }.get(name, OPTIONS.get(name, {}))


def margin_case(dtype: torch.dtype, seed: int, margin: float, **options) -> Case:
    """Cosines that are multiples of 1/8 around a threshold at odd multiples of 1/16."""
    g = torch.Generator().manual_seed(seed)
    signs = [torch.randint(0, 2, (n, 16), generator=g) * 2 - 1 for n in (24, 24)]
    query, key = (s.to(dtype) for s in signs)
    return Case(query, key, options=options | {"false_negative_margin": margin + 1 / 16})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_no_worse_than_torch_at_every_size(rows, columns, dtype, backend):
    assert_no_worse(
        lambda seed: random_case(rows, columns, width=33, dtype=dtype, seed=seed), backend=backend
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "symmetric"), EVERY_OPTION)
def test_no_worse_than_torch_with_every_option(name, symmetric, backend):
    assert_no_worse(
        lambda seed: random_case(
            67, width=33, seed=seed, symmetric=symmetric, **with_rows(name, 67, seed)
        ),
        backend=backend,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
@pytest.mark.parametrize("margin", [-0.25, 0.0, 0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_margin_leaves_out_the_same_columns(dtype, margin, symmetric, backend):
    assert_no_worse(
        lambda seed: margin_case(dtype, seed, margin, symmetric=symmetric, label_smoothing=0.1),
        backend=backend,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "symmetric"), EVERY_OPTION)
def test_fp64_agrees_to_its_own_rounding(name, symmetric, backend):
    case = random_case(
        *(23, 23, 7), dtype=torch.float64, symmetric=symmetric, **with_rows(name, 23, 1)
    ).on(backend)
    found = errors(evaluate(info_nce, case, backend=backend), evaluate(textbook, case))
    assert max(found) < 1e-11


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
@pytest.mark.parametrize(
    ("temperature", "noise"),
    [
        pytest.param(0.05, 0.1, id="converged"),  # 1 - p about 1e-6
        pytest.param(0.01, 1.0, id="cold"),  # logits within +-100
        pytest.param(1.0, 0.1, id="warm"),  # all p about 1 / N
        pytest.param(0.05, 1e3, id="unrelated"),
    ],
)
def test_no_worse_than_torch_in_every_regime(temperature, noise, symmetric, backend):
    assert_no_worse(
        lambda seed: random_case(
            *(131, 131, 48), temperature=temperature, noise=noise, seed=seed, symmetric=symmetric
        ),
        backend=backend,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_converged_loss_keeps_its_digits(backend):
    """1 - p(positive) = 1e-6: textbook fp32 has lost the gradient, ours has four digits left."""
    case = random_case(64, width=96, noise=0.02, temperature=0.05).on(backend)
    exact = evaluate(textbook, case.to(torch.float64))
    rows = evaluate(textbook, case.to(torch.float64), reduction="none")[0]
    assert 1e-8 < rows.median() < 1e-5
    if backend == "reference":
        return  # plain torch, which the next line is about
    assert max(errors(evaluate(info_nce, case, backend=backend), exact)) < 1e-4
    assert max(errors(evaluate(textbook, case), exact)) > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
def test_a_positive_far_below_its_negatives(symmetric, backend):
    """cos = -1 with the positive and near 1 with a negative, at temperature 0.01: 200 nats."""

    def make_case(seed: int) -> Case:
        g = torch.Generator().manual_seed(seed)
        anchor = torch.randn(40, 32, dtype=torch.float64, generator=g)
        near = anchor + 0.2 * torch.randn(40, 32, dtype=torch.float64, generator=g)
        pair = (torch.cat([anchor, near]).float(), torch.cat([-anchor, near]).float())
        return Case(*pair, None, torch.tensor(0.01), {"symmetric": symmetric})

    assert evaluate(info_nce, make_case(0).on(backend), backend=backend)[0] > 50
    assert_no_worse(make_case, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
def test_zero_rows_have_cosine_zero_and_gradient_zero(symmetric, backend):
    case = random_case(9, width=5, hard=2, symmetric=symmetric).on(backend)
    case.query[3], case.key[5], case.hard_negatives[2, 1] = 0, 0, 0
    loss, query, key, hard, temperature = evaluate(info_nce, case, backend=backend)
    wide = case.to(torch.float64)
    assert math.isclose(loss, evaluate(textbook, wide)[0], rel_tol=1e-6)
    assert math.isclose(temperature, evaluate(textbook, wide)[-1], rel_tol=1e-5)
    assert not query[3].any()
    assert not key[5].any()
    assert not hard[2, 1].any()
    assert query[0].any()
    assert key[0].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
def test_equal_rows_cost_log_n_and_move_nothing(symmetric, backend):
    x = torch.ones(50, 3, device=device_of(backend), requires_grad=True)
    loss = info_nce(x, x.detach(), symmetric=symmetric, backend=backend)
    (gradient,) = torch.autograd.grad(loss, x)
    assert math.isclose(loss.item(), math.log(50), rel_tol=1e-6)
    assert gradient.abs().max() < 1e-7


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_nan_and_infinity_reach_the_loss_as_in_torch(value, backend):
    case = random_case(5, width=3).on(backend)
    case.key[2, 1] = value
    ours, theirs = evaluate(info_nce, case, backend=backend), evaluate(textbook, case)
    assert ours[0].isnan() == theirs[0].isnan()
    assert torch.equal(ours[1].isnan().any(1), theirs[1].isnan().any(1))
    assert torch.equal(ours[2].isnan().any(1), theirs[2].isnan().any(1))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
@pytest.mark.parametrize("rows_of_a_panel", [1, 7, 16])
def test_the_workspace_limit_changes_nothing_but_rounding(rows_of_a_panel, symmetric, backend):
    case = random_case(
        53, width=9, hard=2, symmetric=symmetric, label_smoothing=0.1, false_negative_margin=0.4
    ).on(backend)
    exact = evaluate(textbook, case.to(torch.float64))
    set_workspace_limit(rows_of_a_panel * 53 * 4)
    assert max(errors(evaluate(info_nce, case, backend=backend), exact)) < 1e-5


@pytest.mark.skipif(not backends()["cpu"].available, reason="the native library was not built")
@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512", "amx"])
def test_every_instruction_set(name, symmetric):
    best = native.instruction_set()
    try:
        native.load().sf_use_instruction_set(name.encode())
    except RuntimeError:
        pytest.skip(f"this processor has no {name}")
    try:
        for options in ({}, {"label_smoothing": 0.1, "false_negative_margin": 0.3, "hard": 2}):
            assert_no_worse(
                lambda seed, options=options: random_case(
                    *(67, 67, 33), seed=seed, symmetric=symmetric, **options
                ),
                backend="cpu",
            )
    finally:
        native.load().sf_use_instruction_set(best.encode())


@pytest.mark.parametrize("backend", [p for p in QUICK if p.values[0] != "torch"])
def test_more_than_2_to_the_31_similarities(backend):
    """Rows at the far end, against fp64, where a 32-bit index would have wrapped."""
    rows = 46_400
    g = torch.Generator().manual_seed(0)
    query, key = (torch.randn(rows, 2, generator=g).to(device_of(backend)) for _ in range(2))
    losses = info_nce(query, key, temperature=1.0, reduction="none", backend=backend)
    far = slice(rows - 5, rows)
    unit = [x.double() / x.double().norm(dim=-1, keepdim=True) for x in (query, key)]
    logits = unit[0][far] @ unit[1].T
    expected = logits.logsumexp(1) - (unit[0][far] * unit[1][far]).sum(1)
    torch.testing.assert_close(losses[far].double(), expected, rtol=1e-6, atol=0)
