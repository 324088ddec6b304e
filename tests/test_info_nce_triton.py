"""The GPU's plan and kernels, here in Triton's interpreter: paths that sizes alone do not reach."""

from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from info_nce_cases import TRITON as BACKEND
from info_nce_cases import (
    Case,
    assert_no_worse,
    block_gradients,
    check_triton,
    device_of,
    errors,
    evaluate,
    random_case,
    textbook,
)

from simcse_fast import backends, info_nce, set_workspace_limit
from simcse_fast.kernels.infonce.terms import Block, Job, Own, Segment, Terms
from simcse_fast.losses.info_nce import block_softmax

if not backends()["triton"].available:
    pytest.skip(backends()["triton"].detail, allow_module_level=True)

from simcse_fast.kernels.infonce import (
    fused,
    triton_kernels,
    triton_rows,
)

DEVICE = device_of(BACKEND)
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
HALVES = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALVES]
IDS = {"query_ids": torch.arange(67) % 9, "key_ids": torch.arange(67) % 7}
ONE_WAY = {
    "plain": {},
    "none": {"reduction": "none"},
    "not-normalized": {"normalize": False},
    "margin": {"false_negative_margin": 0.05},
    "ids": IDS,
    "hardness": {"hardness": 3.0},
    "repeated-labels": {"labels": torch.arange(67) // 3},
    "weight": {"weight": torch.linspace(0, 2, 67)},
    "everything": {
        **IDS, "hard": 3, "hard_negative_weight": 2.0, "hardness": 1.0, "normalize": False,
        "false_negative_margin": 0.3, "weight": torch.linspace(0, 2, 67),
        "labels": torch.arange(67) // 2,
    },
}  # fmt: skip

JOB = Job(
    Terms((Block(0, 1, 8),)),
    (Segment(0, 8, Own.POSITIVE, 0.0, 0.0),),
    1.0,
    torch.arange(8),
    None,
    None,
    None,
    1 / 8,
)


@pytest.fixture(autouse=True)
def default_workspace():
    yield
    set_workspace_limit(None)


@pytest.fixture(params=[True, False], ids=["attention", "panels"])
def narrow(request, monkeypatch):
    """Both ways of a small loss, one after the other."""
    if not request.param:
        monkeypatch.setattr(triton_kernels, "narrow", lambda *_: None)
    return request.param


@pytest.fixture
def panels_only(monkeypatch):
    """Without the kernels shaped like attention, which come first at these sizes."""
    monkeypatch.setattr(triton_kernels, "narrow", lambda *_: None)


@pytest.mark.usefixtures("panels_only")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("fixed", [False, True], ids=["tensor", "number"])
@pytest.mark.parametrize("name", ONE_WAY)
def test_panels_are_no_worse_than_torch(name, fixed, dtype):
    set_workspace_limit(128 * dtype.itemsize * 32)  # three panels, the last ragged

    def make_case(seed: int) -> Case:
        case = random_case(67, width=33, seed=seed, dtype=dtype, **ONE_WAY[name])
        return case.fixed() if fixed else case

    assert_no_worse(make_case, backend=BACKEND)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"hard": 2}], ids=str)
def test_a_temperature_that_is_a_number(options, dtype):
    check_triton(random_case(67, width=33, dtype=dtype, **options).fixed())


@pytest.mark.usefixtures("panels_only")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("temperature", "noise"),
    [
        pytest.param(0.05, 0.02, id="converged"),  # 1 - p about 1e-6
        pytest.param(0.01, 1.0, id="cold"),
        pytest.param(0.01, 1e3, id="cold-unrelated"),
        pytest.param(1.0, 1e3, id="warm-unrelated"),
    ],
)
def test_panels_in_every_regime(temperature, noise, dtype):
    assert_no_worse(
        lambda seed: random_case(67, temperature=temperature, noise=noise, seed=seed, dtype=dtype),
        backend=BACKEND,
        seeds=25 if DEVICE == "cuda" else None,  # for the temperature's gradient, a single number
    )


def opposite(symmetric: bool) -> Case:
    """All cosines near -1 at temperature 0.01: logits 288 binades under their bound."""
    g = torch.Generator().manual_seed(0)
    towards = torch.randn(1, 33, generator=g, dtype=torch.float64)
    query, key = (
        side * towards + 0.05 * torch.randn(40, 33, generator=g, dtype=torch.float64)
        for side in (1, -1)
    )
    options = {"symmetric": symmetric}
    return Case(query, key, None, torch.tensor(0.01, dtype=torch.float64), options)


def one_giant(symmetric: bool) -> Case:
    """Rows as they are, of which one is 1e4 times longer: the bound suits no other row."""
    case = random_case(40, width=33, dtype=torch.float64, normalize=False, symmetric=symmetric)
    case.key[7] *= 1e4
    case.query[7] *= 1e-4
    return dataclasses.replace(case, temperature=torch.tensor(0.05, dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
@pytest.mark.parametrize("make_case", [opposite, one_giant])
@pytest.mark.parametrize("learned", [False, True], ids=["number", "tensor"])
def test_where_the_offset_suits_no_row_the_rows_own_is_taken(
    learned, make_case, symmetric, dtype, narrow, monkeypatch
):
    case = make_case(symmetric).to(dtype)
    case = case if learned else case.fixed()
    flags = []
    prepare = fused._prepare
    monkeypatch.setattr(
        fused, "_prepare", lambda *a: [found := prepare(*a), flags.append(found.flag)][0]
    )
    exact = evaluate(textbook, case.to(torch.float64), torch.ones(()))
    theirs = errors(evaluate(textbook, case, torch.ones(())), exact)
    found = errors(evaluate(info_nce, case.on(BACKEND), torch.ones(()), backend=BACKEND), exact)
    for mine, other in zip(found[1:3], theirs[1:3], strict=True):  # of the gradients
        overflows = math.isnan(other)  # torch's logits do, in fp16
        assert mine < (1e-3 if overflows else 1.1 * other + 3e-5), (found, theirs)
    if not narrow and dtype != torch.float32:
        assert flags[0].item() == 1  # it was the second way that was tested


def test_an_offset_that_is_known_to_suit_costs_no_flag():
    query = torch.randn(8, 16, device=DEVICE)
    for temperature, known in ((0.05, True), (0.018, True), (0.01, False)):
        job = dataclasses.replace(JOB, scale=1 / temperature, labels=torch.arange(8, device=DEVICE))
        assert (fused._prepare([query, query], None, job).flag is None) == known


def test_blocks_share_one_softmax():
    """Joined directions of sentence-transformers' loss: every kind of block and of own column."""
    rows, docs = 19, 38
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, 33, generator=g, dtype=torch.float64) for n in (rows, docs)]
    blocks = (
        Block(0, 1, rows, Own.POSITIVE, 2.0, 1.0),
        Block(0, 0, rows, Own.LEFT_OUT),
        Block(1, 0, rows, Own.KEPT),
        Block(1, 1, rows, Own.LEFT_OUT),
    )
    for count, dtype in itertools.product(range(1, 5), DTYPES):
        set_workspace_limit(7 * 256 * dtype.itemsize)  # panels of 7 rows and fewer

        exact = block_gradients("reference", tensors, blocks[:count])
        mine = block_gradients(BACKEND, [x.to(dtype) for x in tensors], blocks[:count])
        found = errors(mine, exact)
        assert max(found) < {4: 2e-6, 2: 2e-2}[dtype.itemsize]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("anchor", "key"), [(0, 2), (2, 0)])
def test_gradients_go_to_the_tensors_of_a_block(anchor, key, dtype, narrow):
    """Of several: as in the other direction of triplets, whose documents stand between."""
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(n, 33, generator=g).to(DEVICE, dtype) for n in (40, 80, 40)]
    blocks = (Block(anchor, key, len(inputs[key])),)
    labels = torch.arange(40, device=DEVICE)
    found = {}
    for backend in ("triton", "reference"):
        mine = [x.clone().requires_grad_() for x in inputs]
        loss = block_softmax(
            mine, blocks, scale=5.0, normalize=True, labels=labels, backend=backend
        )
        found[backend] = torch.autograd.grad(loss, mine, allow_unused=True)
    for number, (one, other) in enumerate(zip(*found.values(), strict=True)):
        assert (one is not None) == (number in (anchor, key))
        if one is not None:
            close = {4: (1e-4, 1e-7), 2: (2e-2, 1e-5)}[dtype.itemsize]
            torch.testing.assert_close(one, other, rtol=close[0], atol=close[1])


@pytest.mark.parametrize(("rows", "columns"), [(60, 2), (43, 3), (20, 2)])
def test_the_padding_of_a_block_of_segments_is_written(rows, columns):
    """Hard negatives as further columns: what is beyond the last of them must be zero, not old."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # which fills memory with NaN
    set_workspace_limit(None)
    inputs = [torch.randn(n, 33, device=DEVICE).half() for n in (rows, rows * columns)]
    gradients = {}
    for backend in ("triton", "reference"):
        mine = [x.clone().requires_grad_() for x in inputs]
        block_softmax(
            mine, (Block(0, 1, rows),), scale=20.0, normalize=True, backend=backend
        ).backward()
        gradients[backend] = [x.grad for x in mine]
    torch.use_deterministic_algorithms(False)
    for found, exact in zip(*gradients.values(), strict=True):
        assert (found - exact).float().norm() < 5e-3 * exact.float().norm()  # NaN is not less


@pytest.mark.usefixtures("panels_only")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_small_weights_leave_small_gradients_their_digits(dtype):
    """All cosines near 1 at temperature 0.01, where sums are largest; weights of 1e-8."""
    g = torch.Generator().manual_seed(0)
    towards = torch.randn(1, 33, generator=g, dtype=torch.float64)
    pair = [towards + 0.05 * torch.randn(128, 33, generator=g, dtype=torch.float64) for _ in "qk"]
    errors_of = []
    for weight in (1.0, 1e-8):
        options = {"weight": torch.full((128,), weight, dtype=torch.float64), "reduction": "sum"}
        case = Case(*pair, None, torch.tensor(0.01, dtype=torch.float64), options).fixed()
        exact = evaluate(textbook, case.to(torch.float64))
        errors_of.append(
            errors(evaluate(info_nce, case.to(dtype).on(BACKEND), backend=BACKEND), exact)
        )
    assert errors_of[1][2] < 1.5 * errors_of[0][2]  # of the keys' gradient


def test_fp16_gradients_fit_with_smoothing():
    """Equal rows whose positive has p = 1 - smoothing + smoothing / 3: its own gradient is 0."""
    query = torch.eye(1, 16).half().repeat(4, 1).to(DEVICE).requires_grad_()
    key = torch.eye(3, 16).half().to(DEVICE)
    key[1, 0], near = 3**-0.5, (2 / 7 + 1) ** 0.5 / 2 - 0.5  # cosines 1, 1/2, 0; u + u^2 = 1 / 14
    options = {
        "labels": torch.zeros(4, dtype=torch.int64, device=DEVICE),
        "temperature": -0.5 / math.log(near),
    }
    info_nce(query, key, **options, label_smoothing=0.1, backend=BACKEND).backward()
    exact = query.detach().double().requires_grad_()
    info_nce(exact, key.double(), **options, label_smoothing=0.1).backward()
    torch.testing.assert_close(query.grad.double(), exact.grad, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
def test_copies_of_the_positive_stay_under_a_margin_of_0(symmetric):
    """At any cosine: a product in another order differs in its last bits."""
    g = torch.Generator().manual_seed(0)
    key, query = torch.randn(8, 48, generator=g).repeat(9, 1), torch.randn(72, 48, generator=g)
    pair = [x.to(DEVICE) for x in (query, key)]
    options = {"false_negative_margin": 0.0, "symmetric": symmetric}
    found = info_nce(*pair, **options, backend=BACKEND)
    wide = [x.double() for x in pair]
    exact = info_nce(*wide, **options | {"false_negative_margin": 1e-9}, backend="reference")
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_margin_of_minus_infinity_leaves_nothing(dtype, narrow):
    generator = torch.Generator(DEVICE).manual_seed(0)
    x = torch.randn(9, 16, device=DEVICE, dtype=dtype, generator=generator)
    options = {"false_negative_margin": -math.inf, "backend": "triton"}
    assert info_nce(x, x.flip(0), **options).item() == 0


@pytest.mark.usefixtures("panels_only")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_weights_where_all_cosines_are_minus_one(dtype):
    """Sums are smallest there, and weights divided by them largest."""
    a = torch.randn(1, 16, generator=torch.Generator().manual_seed(0)).repeat(4, 1)
    a = a + 0.01 * torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    for temperature in (0.013, 0.016, 0.018):
        options = {"weight": torch.full((4,), 1e3), "reduction": "sum"}
        case = Case(a, -a, None, torch.tensor(temperature), options).fixed()
        exact = evaluate(textbook, case.to(torch.float64))
        found = errors(evaluate(info_nce, case.to(dtype).on(BACKEND), backend=BACKEND), exact)
        assert max(found) < {4: 1e-3, 2: 0.5}[dtype.itemsize]


def test_a_loss_of_nothing_in_fp16_has_a_gradient_of_nothing():
    """1 - p is 1e-43, which no scale brings into fp16's range."""
    x = torch.eye(8, dtype=torch.float16, device=DEVICE).requires_grad_()
    info_nce(x, x.detach(), temperature=0.01, backend=BACKEND).backward()
    assert not x.grad.any()


def test_fp16_gradients_fit_with_smoothing_and_negative_weights():
    """An upstream gradient below 0 is a negative weight of the rows."""
    x = torch.eye(64, dtype=torch.float16, device=DEVICE).requires_grad_()
    options = {"temperature": 0.158, "label_smoothing": 0.1, "reduction": "none"}
    (-info_nce(x, x.detach(), **options, backend=BACKEND)).mean().backward()
    exact = x.detach().double().requires_grad_()
    (-info_nce(exact, exact.detach(), **options)).mean().backward()
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-2, atol=1e-6)


def test_gradients_of_a_rows_logits_add_up_to_zero():
    """All keys equal: nothing can be gained, however large the logits are."""
    query = torch.tensor([[11.0, 13.2], [-13.2, 9.9]], device=DEVICE).requires_grad_()
    key = torch.tensor([[9.1, 11.3]], device=DEVICE).repeat(50, 1)
    temperature = torch.tensor(0.07, device=DEVICE)
    info_nce(query, key, temperature=temperature, normalize=False, backend=BACKEND).backward()
    assert query.grad.abs().max() < 1e-4  # logits of up to 3600; plain torch: 3e-5


def test_torchs_newer_precision_switch_is_read(monkeypatch):
    def mixed():
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    for switch, expected in (("ieee", "ieee"), ("tf32", "tf32")):
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=switch))
        assert triton_rows.precision(torch.ones(1)) == expected


@pytest.mark.parametrize("options", [{}, {"symmetric": True}], ids=["rows", "symmetric"])
def test_a_converged_loss_in_fp16_keeps_its_gradient(options):
    """1 - p about 1e-6 over N rows is below fp16's range, if it is not scaled."""
    case = random_case(64, width=96, noise=0.02, temperature=0.05, dtype=torch.float16, **options)
    check_triton(dataclasses.replace(case, temperature=torch.tensor(0.05)))


def test_gradients_are_kept_in_the_type_that_holds_them():
    for dtype, kept in (
        (torch.float32,) * 2,
        (torch.bfloat16,) * 2,
        (torch.float16, torch.float32),
    ):
        case = random_case(9, width=16, dtype=dtype).on(BACKEND)
        loss = info_nce(case.query.requires_grad_(), case.key, backend=BACKEND)
        assert loss.grad_fn.kept[2].dtype == kept
        assert torch.autograd.grad(loss, case.query)[0].dtype == dtype


@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
def test_without_gradients_the_loss_is_the_same(symmetric):
    case = random_case(67, width=33, symmetric=symmetric).on(BACKEND)
    tensors = {"query": case.query, "key": case.key, "backend": BACKEND}
    with torch.no_grad():
        forward = info_nce(**tensors, symmetric=symmetric)
    full = info_nce(**tensors | {"query": case.query.requires_grad_()}, symmetric=symmetric)
    torch.testing.assert_close(forward, full.detach(), rtol=1e-6, atol=0)
    assert math.isfinite(forward)
