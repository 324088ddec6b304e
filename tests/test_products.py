"""Matrix products of the CPU loss: ours and torch's, whichever this processor would choose."""

import pytest
import torch
from info_nce_cases import assert_no_worse, random_case

from simcse_fast import backends, info_nce, set_workspace_limit
from simcse_fast.demo.timing import peak_megabytes
from simcse_fast.kernels import native
from simcse_fast.kernels.infonce import cpu

pytestmark = pytest.mark.skipif(
    not backends()["cpu"].available, reason="the native library was not built"
)
ROUNDING = 2.0**-24


@pytest.fixture(params=[1, 0], ids=["ours", "torch"], autouse=True)
def choice(request, monkeypatch):
    monkeypatch.setattr(native.load(), "sf_outruns_blas", lambda: request.param)


@pytest.fixture
def small_workspace():
    set_workspace_limit(64 << 10)
    yield
    set_workspace_limit(None)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (13, 31, 47), (170, 65, 400), (3, 2000, 5000)])
def test_products_of_all_strides(sizes, turned, add):
    rows, columns, depth = sizes
    g = torch.Generator().manual_seed(0)
    left = torch.randn(depth, rows, generator=g).T if turned[0] else torch.randn(rows, depth)
    right = torch.randn(columns, depth, generator=g).T if turned[1] else torch.randn(depth, columns)
    whole = torch.full((rows + 1, columns + 3), float("nan"))
    out = whole[:rows, 1 : columns + 1]
    if add:
        out.fill_(1.0)
    cpu.multiply(left, right, out, add)
    wanted = left.double() @ right.double() + add
    size = left.double().abs() @ right.double().abs() + add
    assert ((out - wanted).abs() <= 16 * ROUNDING * size).all()
    assert whole.isnan().sum() == whole.numel() - out.numel()  # nothing beside it was written


@pytest.mark.usefixtures("small_workspace")
@pytest.mark.parametrize(
    "options",
    [{}, {"symmetric": True}, {"hard": 2, "label_smoothing": 0.1}],
    ids=["rows", "symmetric", "hard-negatives"],
)
def test_no_worse_than_torch_in_panels(options):
    assert_no_worse(lambda seed: random_case(301, width=67, seed=seed, **options), backend="cpu")


@pytest.mark.usefixtures("small_workspace")
def test_memory_does_not_grow_with_the_panels():
    x = torch.randn(4096, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    step = lambda: info_nce(x, x).backward()  # noqa: E731
    megabytes, _ = peak_megabytes(step)  # 1024 panels of 4 rows; the keys, packed: 0.5 MB
    if megabytes is None:
        pytest.skip("the system does not say")
    assert megabytes < 20
