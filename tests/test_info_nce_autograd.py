"""How the loss behaves as part of torch: operators, compilers, graphs, memory layout."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from info_nce_cases import BACKENDS, FUSED, QUICK, Case, device_of, evaluate, random_case
from torch._subclasses import FakeTensorMode

from simcse_fast import InfoNCELoss, autograd, info_nce, set_workspace_limit
from simcse_fast.kernels.infonce import workspace
from simcse_fast.kernels.infonce.terms import Block, Terms

REDUCTIONS = ["mean", "none"]
MODES = [
    pytest.param({}, id="rows"),
    pytest.param({"symmetric": True, "label_smoothing": 0.1}, id="symmetric"),
]


# Everything torch.compile does but the generation of code, which takes seconds.
TRACED = functools.partial(torch.compile, fullgraph=True, backend="aot_eager")


def upstream_for(reduction: str, rows: int, like: torch.Tensor) -> torch.Tensor:
    values = torch.linspace(0.5, 2, rows) if reduction == "none" else torch.tensor(2.0)
    return values.to(like.device)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", MODES)
def test_gradcheck(options, reduction, backend):
    case = random_case(7, width=4, hard=2, dtype=torch.float64, temperature=0.5).on(backend)
    tensors = [case.query, case.key, case.hard_negatives, case.temperature]

    def loss(query, key, hard, temperature):
        return info_nce(
            *(query, key),
            hard_negatives=hard,
            temperature=temperature,
            reduction=reduction,
            backend=backend,
            **options,
        )

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in tensors])


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled_without_a_break_it_is_the_same(reduction, backend):
    case = random_case(33, 40, hard=2, label_smoothing=0.1, reduction=reduction).on(backend)
    labels = torch.randperm(40)[:33].to(case.query.device)

    def loss(**tensors):
        return info_nce(**tensors, labels=labels, backend=backend)

    upstream = upstream_for(reduction, 33, case.query)
    eager = evaluate(loss, case, upstream)
    compiler = torch.compile if (reduction, backend) == ("mean", "cpu") else TRACED
    compiled = evaluate(compiler(loss, fullgraph=True), case, upstream)
    assert all(torch.equal(x, y) for x, y in zip(eager, compiled, strict=True))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("rowwise", [False, True], ids=["sum", "row-wise"])
def test_the_operator_passes_opcheck(rowwise, backend):
    case = random_case(9, 12, hard=2, dtype=torch.bfloat16).on(backend)
    call = autograd.Call(
        labels=torch.arange(9, device=device_of(backend)),
        terms=Terms((Block(0, 1, 12),)),
        backend=backend,
        needs=(True,) * 3,
        rowwise=rowwise,
    )
    flat = autograd._flat(call)
    tensors = [case.query, case.key]
    hard, scale = case.hard_negatives, case.temperature.reciprocal()
    for x in (*tensors, hard, scale):
        x.requires_grad_()
    torch.library.opcheck(torch.ops.simcse_fast.info_nce.default, (tensors, hard, scale, *flat))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_terms_survive_the_operators_schema(reduction):
    case = random_case(
        *(17, 17, 5, 2), symmetric=True, hardness=1.5, hard_negative_weight=3.0,
        reduction=reduction, label_smoothing=0.2, false_negative_margin=0.5, normalize=False,
        weight=torch.rand(17), query_ids=torch.arange(17) % 5, key_ids=torch.arange(17) % 5,
    )  # fmt: skip
    compiled = TRACED(info_nce)
    pairs = zip(evaluate(info_nce, case), evaluate(compiled, case), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["query", "key", "hard_negatives", "temperature"])
def test_second_derivatives_raise(name, compiled, reduction, backend):
    if compiled and backend == "reference":
        pytest.skip("the reference is not for compilers")
    case = random_case(6, width=4, hard=2).on(backend)
    tensors = {n: getattr(case, n) for n in ("query", "key", "hard_negatives", "temperature")}
    chosen = tensors[name].requires_grad_()
    torch.compiler.reset()  # each case is a graph of its own, of which torch keeps eight
    function = TRACED(info_nce) if compiled else info_nce
    loss = function(**tensors, reduction=reduction, backend=backend)

    def twice():
        (gradient,) = torch.autograd.grad(loss.sum(), chosen, create_graph=True)
        gradient.sum().backward()

    with pytest.raises(RuntimeError, match=r"second derivatives|double backward"):
        twice()  # compiled, torch itself refuses


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", MODES)
def test_any_subset_of_inputs_gets_the_same_gradients(options, reduction, backend):
    case = random_case(21, width=6, hard=2, reduction=reduction, **options).on(backend)
    names = ("query", "key", "hard_negatives", "temperature")
    upstream = upstream_for(reduction, 21, case.query)
    _, *full = evaluate(info_nce, case, upstream, backend=backend)
    for count in (1, 2, 3):
        for chosen in itertools.combinations(names, count):
            tensors = {n: getattr(case, n).clone().requires_grad_(n in chosen) for n in names}
            loss = info_nce(**tensors, **case.options, backend=backend)
            found = torch.autograd.grad(loss, [tensors[n] for n in chosen], upstream)
            for name, gradient in zip(chosen, found, strict=True):
                torch.testing.assert_close(gradient.double().cpu(), full[names.index(name)])


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_retained_graph_gives_the_same_gradient_twice(reduction, backend):
    case = random_case(19, width=6).on(backend)
    query, key = case.query.requires_grad_(), case.key.requires_grad_()
    loss = info_nce(query, key, reduction=reduction, backend=backend).sum()
    first = torch.autograd.grad(loss, (query, key), retain_graph=True)
    kept = [g.clone() for g in first]
    for g in first:
        g.zero_()  # a gradient that shared memory with what was saved would spoil the second
    second = torch.autograd.grad(3 * loss, (query, key))
    for x, y in zip(kept, second, strict=True):
        torch.testing.assert_close(3 * x, y)


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("options", MODES)
def test_twenty_runs_are_equal_bit_for_bit(options, backend):
    case = random_case(301, width=24, hard=2, **options).on(backend)
    first = evaluate(info_nce, case, backend=backend)
    for _ in range(19):
        again = evaluate(info_nce, case, backend=backend)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


@pytest.mark.parametrize("backend", FUSED)
def test_memory_layout_does_not_matter(backend):
    case = random_case(12, width=8).on(backend)
    spread = case.query.new_empty(8, 24).T[::2].copy_(case.query)  # transposed and strided
    assert not spread.is_contiguous()
    row = case.key[:1].expand(12, 8)  # stride 0
    expected = info_nce(case.query, row.contiguous(), backend=backend)
    assert torch.equal(info_nce(spread, row, backend=backend), expected)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8], ids=str)
def test_integers_of_any_type_and_stride(dtype, backend):
    case = random_case(12, width=8).on(backend)
    count = torch.arange(12, device=device_of(backend))
    ids, labels = count % 4, count.flip(0)

    def spread(x):
        wide = torch.full((12, 3), 9, dtype=dtype, device=x.device)
        wide[:, 1] = x
        return wide[:, 1]

    pair = (case.query, case.key)
    expected = info_nce(*pair, labels=labels, query_ids=ids, key_ids=ids, backend="reference")
    found = info_nce(
        *pair, labels=spread(labels), query_ids=spread(ids), key_ids=spread(ids), backend=backend
    )
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, info_nce(*pair, labels=labels))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("options", MODES)
def test_nothing_is_read_before_it_is_written(options, backend):
    """With NaN in every fresh buffer, as torch's deterministic mode has it, nothing changes."""
    case = random_case(40, width=7, hard=2, false_negative_margin=0.3, **options).on(backend)
    expected = evaluate(info_nce, case, backend=backend)
    torch.use_deterministic_algorithms(True, warn_only=True)
    set_workspace_limit(9 * 40 * 4)  # also releases the kept workspace
    found = evaluate(info_nce, case, backend=backend)
    torch.use_deterministic_algorithms(False)
    set_workspace_limit(None)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=1e-7)


def test_the_workspace_limit_is_kept(monkeypatch):
    case, sizes = random_case(600, width=400), []  # wider than a small batch
    borrowed = workspace.borrowed

    def watch(purpose, like, size):
        if purpose == "panel":
            sizes.append(size * like.element_size())
        return borrowed(purpose, like, size)

    monkeypatch.setattr(workspace, "borrowed", watch)
    for limit in (600 * 4, 10_000, 10**9):
        set_workspace_limit(limit)
        info_nce(case.query, case.key)
    set_workspace_limit(None)
    assert sizes == [600 * 4, 4 * 600 * 4, 600 * 600 * 4]  # one row; 150 panels of 4; one panel


def test_without_grad_nothing_is_kept():
    case = random_case(10, width=4)
    query = case.query.requires_grad_()
    with torch.no_grad():
        loss = info_nce(query, case.key)
    assert not loss.requires_grad
    assert torch.equal(loss, info_nce(query, case.key).detach())


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("options", MODES)
def test_autocast_changes_nothing_for_fp32(options, backend):
    case = random_case(40, width=24, hard=2, **options).on(backend)
    expected = evaluate(info_nce, case, backend=backend)
    with torch.autocast(device_of(backend), dtype=torch.bfloat16):
        found = evaluate(info_nce, case, backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_inference_mode_leaves_nothing_that_training_cannot_use():
    case = random_case(10, width=4)
    set_workspace_limit(None)  # releases what earlier calls kept
    with torch.inference_mode():
        first = info_nce(case.query, case.key)
    second = info_nce(case.query.requires_grad_(), case.key)
    second.backward()
    assert torch.equal(first, second.detach())


def test_learnable_temperature_stays_positive_and_learns():
    case = random_case(64, noise=0.1)
    module = InfoNCELoss(temperature=0.5, learnable=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    before = module(case.query, case.key)
    for _ in range(20):
        optimizer.zero_grad()
        module(case.query, case.key).backward()
        optimizer.step()
    assert 0 < module.temperature.item() < 0.5  # pairs are easy to tell apart: colder is better
    assert module(case.query, case.key) < before
    assert "learnable=True" in repr(module)


def test_module_and_function_agree():
    case = random_case(13, width=6, hard=2)
    module = InfoNCELoss(0.1, symmetric=True, hardness=2.0, label_smoothing=0.1)
    found = module(case.query, case.key, hard_negatives=case.hard_negatives)
    expected = info_nce(
        *(case.query, case.key), hard_negatives=case.hard_negatives, temperature=0.1,
        symmetric=True, hardness=2.0, label_smoothing=0.1,
    )  # fmt: skip
    assert torch.equal(found, expected)


def test_a_fake_tensor_leaves_nothing_behind():
    with FakeTensorMode():
        fake = torch.empty(5, 3)
        assert info_nce(fake, fake).shape == ()
    assert info_nce(torch.eye(5), torch.eye(5)) < 1e-6


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("small", [False, True], ids=["panels", "small"])
def test_one_row_of_any_stride(small, backend):
    column = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    column = column.to(device_of(backend))
    options = {"normalize": small, "backend": backend}
    keys = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).to(column.device)
    found, expected = (
        evaluate(info_nce, Case(query, keys).on(backend), **options)
        for query in (column.T, column.T.contiguous())  # strides (1, 1) and (64, 1)
    )
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)
