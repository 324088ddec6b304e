"""Alignment and uniformity: values and gradients against both written out in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from info_nce_cases import BACKENDS, FUSED, QUICK, device_of
from torch.nn import functional as F

from simcse_fast import Alignment, Uniformity, alignment, set_workspace_limit, uniformity
from simcse_fast.kernels.uniformity import cpu, reference, tiles

HALF = (torch.bfloat16, torch.float16)
ROWS = [
    pytest.param(2, id="one-pair"),
    pytest.param(63, id="below-a-tile"),
    pytest.param(64, id="a-tile"),
    pytest.param(65, id="one-row-over-a-tile"),
    pytest.param(131, id="prime"),  # three rows of tiles, ragged on both sides
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Few rows make several tiles; what is allocated and never written reads NaN."""
    monkeypatch.setattr(tiles, "SHAPES", {"cpu": (64, 128), "cuda": (64, 128)})
    monkeypatch.setattr(cpu, "FEW", 63)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def textbook_uniformity(x, t=2.0, normalize=True):
    """As the authors' page has it, with their use of pdist."""
    rows = F.normalize(x, dim=-1) if normalize else x
    return torch.pdist(rows).pow(2).mul(-t).exp().mean().log()


def textbook_alignment(x, y, alpha=2.0, normalize=True):
    if normalize:
        x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    return (x - y).norm(dim=1).pow(alpha).mean()


def results(function, *tensors, **options):
    """[value, gradient of each tensor], in fp64, on the CPU."""
    tensors = [x.detach().clone().requires_grad_() for x in tensors]
    value = function(*tensors, **options)
    gradients = torch.autograd.grad(3 * value, tensors)
    return [r.detach().double().cpu() for r in (value, *gradients)]


def relative(found, exact):
    return [float((a - b).norm() / b.norm().clamp_min(1e-300)) for a, b in zip(found, exact)]  # noqa: B905


def rows_of(rows, width=24, *, dtype=torch.float32, spread=1.0, seed=0, backend="cpu"):
    """Rows about a common direction, as an encoder's embeddings are."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(width, generator=g) + spread * torch.randn(rows, width, generator=g)
    return x.to(dtype).to(device_of(backend))


def assert_no_worse(ours, textbook, tensors, **options):
    """At most torch's error in fp32 plus a few roundings; of half types, those of the type."""
    exact = results(textbook, *(x.double().cpu() for x in tensors), **options)
    plain = [x.float().cpu() for x in tensors]
    by_torch = relative(results(textbook, *plain, **options), exact)
    eps = torch.finfo(tensors[0].dtype).eps
    found = relative(results(ours, *tensors, **options), exact)
    for mine, theirs in zip(found, by_torch, strict=True):
        assert mine <= theirs + 8 * eps


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_uniformity_is_no_worse_than_torch(rows, dtype, backend):
    x = rows_of(rows, dtype=dtype, backend=backend)
    assert_no_worse(lambda x: uniformity(x, backend=backend), textbook_uniformity, [x])


@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("rows", [150, 257])  # of one thread, of two
def test_few_rows_in_one_call(rows, spread, monkeypatch):
    monkeypatch.setattr(cpu, "FEW", rows)
    monkeypatch.setattr(cpu, "potentials", None)  # is not called
    x = rows_of(rows, spread=spread)
    assert_no_worse(lambda x: uniformity(x, backend="cpu"), textbook_uniformity, [x])
    first = results(uniformity, x, backend="cpu")
    for _ in range(5):
        assert all(map(torch.equal, results(uniformity, x, backend="cpu"), first))


def test_a_few_rows_that_are_not_finite_or_zero():
    x = rows_of(9)
    x[3] = 0
    found, tiled = (results(uniformity, x, backend=name) for name in ("cpu", "torch"))
    assert max(relative(found, tiled)) < 1e-6
    assert not found[1][3].any()
    x[3, 5] = math.nan
    value, gradient = results(uniformity, x, backend="cpu")
    assert value.isnan()
    assert gradient.isnan().all()


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0])
def test_crowded_and_spread_rows(spread, backend):
    # Close rows: what products of rows have in common would drown their distances.
    x = rows_of(130, spread=spread, backend=backend)
    assert_no_worse(lambda x: uniformity(x, backend=backend), textbook_uniformity, [x])


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"normalize": False}, id="long-rows"),
        pytest.param({"t": 20.0}, id="large-t"),
        pytest.param({"t": 1e6}, id="huge-t"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_close_rows_among_far_ones(options, dtype, backend):
    # Each has a neighbour: terms of a logit are far larger than what is left of them.
    half = rows_of(35, 96, seed=1)
    x = torch.cat([half, half + 1e-2 * rows_of(35, 96, seed=2)]).to(dtype).to(device_of(backend))
    assert_no_worse(
        lambda x, **o: uniformity(x, backend=backend, **o), logs_of_sums, [x], **options
    )


def logs_of_sums(x, t=2.0, normalize=True):
    """The textbook's, where its exponentials vanish."""
    return reference.uniformity(x, t, normalize)


@pytest.mark.parametrize("backend", FUSED)
def test_rows_that_coincide_in_pairs_are_at_distance_zero(backend):
    x = rows_of(20, backend=backend).repeat(2, 1)
    value = uniformity(x, t=1e8, backend=backend).item()
    assert value == pytest.approx(math.log(20 / (40 * 39 / 2)), rel=1e-5)
    assert uniformity(x[[0, 20]], backend=backend).item() <= 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_mode_raises(backend):
    x = rows_of(6, backend=backend)
    for function in (uniformity, lambda x, **o: alignment(x, x.flip(0), **o)):
        with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
            torch.func.jvp(lambda x, f=function: f(x, backend=backend), (x,), (x,))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("t", [0.5, 3.0])
def test_rows_as_they_are(t, dtype, backend):
    x = 0.4 * rows_of(70, dtype=dtype, backend=backend)
    assert_no_worse(
        lambda x, **o: uniformity(x, backend=backend, **o),
        textbook_uniformity, [x], t=t, normalize=False,
    )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_so_far_apart_that_exponentials_vanish(backend):
    x = torch.tensor([[0.0, 0.0], [30.0, 0.0], [0.0, 40.0]], device=device_of(backend))
    value, gradient = results(uniformity, x, normalize=False, backend=backend)
    assert value.item() == pytest.approx(-2 * 900 - math.log(3), rel=1e-6)
    # Of three pairs only the closest counts: 3 * d(-2 |x - y|^2) = -12 (x - y).
    expected = torch.tensor([[360.0, 0.0], [-360.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(gradient, expected.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", FUSED)
def test_rows_that_coincide(backend):
    same = torch.ones(5, 3, device=device_of(backend))
    value, gradient = results(uniformity, same, backend=backend)
    assert value == 0
    assert not gradient.any()
    value, *gradients = results(alignment, same, same, alpha=0.5, backend=backend)
    assert value == 0
    assert not torch.stack(gradients).any()


@pytest.mark.parametrize("backend", FUSED)
def test_zero_rows_stay_zero_and_get_no_gradient(backend):
    x = rows_of(9, backend=backend)
    x[4] = 0
    unit = F.normalize(x.double().cpu(), dim=-1)
    value, gradient = results(uniformity, x, backend=backend)
    assert value.item() == pytest.approx(textbook_uniformity(unit, normalize=False).item(), 1e-6)
    assert not gradient[4].any()
    assert gradient[3].any()
    _, of_x, of_y = results(alignment, x, x.flip(0).roll(1, 0), backend=backend)
    assert not of_x[4].any()
    assert of_y.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_nan_is_not_hidden(backend):
    x = rows_of(70, backend=backend)
    x[69, 3] = math.nan
    assert uniformity(x, backend=backend).isnan()
    assert alignment(x, x.flip(0), backend=backend).isnan()


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 1.0}, {"alpha": 3.0, "normalize": False}],
    ids=["default", "distance", "as-they-are"],
)
def test_alignment_is_no_worse_than_torch(options, dtype, backend):
    x, y = (rows_of(37, dtype=dtype, seed=seed, backend=backend) for seed in (1, 2))
    assert_no_worse(
        lambda x, y, **o: alignment(x, y, backend=backend, **o), textbook_alignment, [x, y],
        **options,
    )  # fmt: skip


def test_alignment_of_more_rows_than_a_chunk(monkeypatch):
    from simcse_fast.kernels.alignment import chunks  # noqa: PLC0415 - patched here

    monkeypatch.setitem(chunks.CHUNK, "cpu", 100)
    x, y = rows_of(37, seed=1), rows_of(37, seed=2)
    assert_no_worse(alignment, textbook_alignment, [x, y])


def test_any_subset_of_inputs_gets_the_same_gradients():
    x, y = rows_of(9, seed=1), rows_of(9, seed=2)
    _, of_x, of_y = results(alignment, x, y)
    assert torch.equal(results(lambda x: alignment(x, y), x)[1], of_x)
    assert torch.equal(results(lambda y: alignment(x, y), y)[1], of_y)
    assert not alignment(x, y).requires_grad
    with torch.no_grad():
        assert not uniformity(x.requires_grad_()).requires_grad


@pytest.mark.parametrize("backend", FUSED)
def test_both_are_gradients_of_their_values(backend, one_thread):
    x, y = (rows_of(5, 3, dtype=torch.float64, seed=seed).requires_grad_() for seed in (1, 2))
    assert torch.autograd.gradcheck(lambda x: uniformity(x, t=1.5, backend=backend), x)
    assert torch.autograd.gradcheck(lambda x, y: alignment(x, y, backend=backend), (x, y))


def test_operators_keep_their_promises():
    from simcse_fast import autograd_metrics  # noqa: PLC0415

    x = rows_of(70).requires_grad_()
    torch.library.opcheck(autograd_metrics.uniformity, (x, 2.0, True, True, "cpu"))
    pair = (x, x.detach().flip(0).requires_grad_())
    torch.library.opcheck(autograd_metrics.alignment, (*pair, 2.0, True, [True, True], "cpu"))


def test_compiled_whole():
    def loss(x, y):
        return alignment(x, y) + uniformity(x)

    x, y = rows_of(33, seed=1), rows_of(33, seed=2)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for mine, eager in zip(results(compiled, x, y), results(loss, x, y), strict=True):
        assert torch.equal(mine, eager)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_raise(backend):
    x = rows_of(6, backend=backend).requires_grad_()
    for value in (uniformity(x, backend=backend), alignment(x, x.flip(0), backend=backend)):
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives"):
            gradient.sum().backward()


@pytest.mark.parametrize("backend", FUSED)
def test_memory_layout_and_a_bounded_workspace_do_not_matter(backend):
    x = rows_of(70, backend=backend)
    spread = x.new_empty(24, 140).T[::2].copy_(x)
    assert not spread.is_contiguous()
    expected = results(uniformity, x, backend=backend)
    assert all(map(torch.equal, results(uniformity, spread, backend=backend), expected))
    try:
        set_workspace_limit(900)
        bounded = results(uniformity, x, backend=backend)
    finally:
        set_workspace_limit(None)
    assert max(relative(bounded, expected)) < 1e-5


@pytest.mark.parametrize("backend", QUICK)
def test_runs_are_equal_bit_for_bit(backend):
    x = rows_of(211, backend=backend)
    first = results(uniformity, x, backend=backend)
    for _ in range(5):
        assert all(map(torch.equal, results(uniformity, x, backend=backend), first))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.floats(0.1, 8))
def test_properties(seed, rows, t):
    x = torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    value = uniformity(x, t=t)
    assert -4 * t <= value <= 0  # distances of unit rows are 0 ... 2
    shuffled, turn = x[torch.randperm(rows)], torch.linalg.qr(torch.randn(5, 5).double())[0]
    torch.testing.assert_close(uniformity(3 * shuffled @ turn, t=t), value)
    moved = uniformity(x + 7, t=t, normalize=False)
    torch.testing.assert_close(moved, uniformity(x, t=t, normalize=False))
    assert 0 <= alignment(x, x.flip(0)) <= 4
    assert alignment(x, 2 * x) < 1e-12


def test_modules():
    x, y = rows_of(9, seed=1), rows_of(9, seed=2)
    assert Alignment(alpha=1, normalize=False)(x, y) == alignment(x, y, alpha=1, normalize=False)
    assert Uniformity(t=3)(x) == uniformity(x, t=3)
    assert repr(Uniformity()) == "Uniformity(t=2, normalize=True, backend='auto')"
    with pytest.raises(ValueError, match=r"t: expected a finite number > 0, got 0\."):
        Uniformity(t=0)
    with pytest.raises(ValueError, match=r"alpha: expected a finite number > 0, got -1\."):
        Alignment(alpha=-1)


def test_half_types_give_single_precision_and_gradients_of_their_own():
    for dtype in HALF:
        x = rows_of(9, dtype=dtype).requires_grad_()
        value = uniformity(x) + alignment(x, x.flip(0))
        value.backward()
        assert value.dtype == torch.float32
        assert x.grad.dtype == dtype


X = torch.ones(3, 2)
BAD = [
    pytest.param(lambda: uniformity([1.0]), TypeError, "x: expected a tensor, got list", id="list"),
    pytest.param(
        lambda: uniformity(X[:1]),
        *(ValueError, r"x: expected shape \(rows >= 2, D >= 1\), got \(1, 2\); uniformity is a"),
        id="no-pair",
    ),
    pytest.param(lambda: uniformity(X[:0]), ValueError, r"got \(0, 2\)", id="empty"),
    pytest.param(lambda: uniformity(X[0]), ValueError, r"got \(2,\)", id="vector"),
    pytest.param(lambda: uniformity(X.long()), TypeError, "got torch.int64", id="integers"),
    pytest.param(lambda: uniformity(X, t=0), ValueError, "t: expected a finite number > 0", id="t"),
    pytest.param(lambda: uniformity(X, t=math.nan), ValueError, "t: expected", id="t-nan"),
    pytest.param(lambda: uniformity(X, backend="gpu"), ValueError, "backend: expected", id="name"),
    pytest.param(lambda: alignment(X[:0], X[:0]), ValueError, r"x: .* got \(0, 2\)", id="none"),
    pytest.param(
        lambda: alignment(X, X[:2]),
        *(ValueError, r"y: expected as many rows as x, got shapes \(2, 2\) and \(3, 2\)\."),
        id="unequal-length",
    ),
    pytest.param(lambda: alignment(X, X[:, :1]), ValueError, "y: width 1", id="width"),
    pytest.param(lambda: alignment(X, X.double()), TypeError, "y: has dtype", id="types"),
    pytest.param(lambda: alignment(X, X, alpha="2"), TypeError, "alpha: expected a nu", id="alpha"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_one_pair_of_alignment_is_enough():
    x = torch.tensor([[1.0, 0.0]])
    assert alignment(x, torch.tensor([[0.0, 2.0]])).item() == pytest.approx(2)
