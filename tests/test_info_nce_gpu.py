"""What only a GPU can show: streams, graphs, devices, memory, sizes; `make test-gpu`."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys

import pytest
import torch
from info_nce_cases import Case, OnCuda, errors, evaluate, random_case, textbook

from simcse_fast import InfoNCELoss, info_nce, set_workspace_limit

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MODES = [
    pytest.param({}, id="rows"),
    pytest.param({"symmetric": True}, id="symmetric"),
    pytest.param({"label_smoothing": 0.1, "false_negative_margin": 0.3}, id="smoothing-margin"),
]


@pytest.fixture(autouse=True)
def default_workspace():
    yield
    set_workspace_limit(None)


def on_gpu(*sizes: int, **options) -> Case:
    return random_case(*sizes, **options).on(OnCuda("triton"))


def step(case: Case, **more) -> list[torch.Tensor]:
    """Loss and gradients, on the device."""
    tensors = [case.query.detach().requires_grad_(), case.key.detach().requires_grad_()]
    loss = info_nce(*tensors, temperature=0.05, **case.options, **more)
    return [loss.detach(), *torch.autograd.grad(loss, tensors)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [64, 128, 256, 384, 768, 1000])
@pytest.mark.parametrize("rows", [63, 512, 2049, 5000], ids=lambda n: f"{n}-rows")
@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
@pytest.mark.parametrize("fixed", [True, False], ids=["number", "tensor"])
def test_sizes_that_run_in_training(fixed, rows, width, dtype, symmetric):
    """Every tile of the table, against fp64 and against torch in the same type.

    Over a few seeds: the error of a single number, as the loss is, may be small by luck.
    """
    upstream = torch.tensor(float(rows))  # so that fp16 holds the gradients
    ours, textbooks = [], []
    for seed in range(8 if rows < 100 else 3):
        case = on_gpu(rows, width=width, dtype=dtype, symmetric=symmetric, noise=0.5, seed=seed)
        case = case.fixed() if fixed else case
        exact = evaluate(textbook, case.to(torch.float64), upstream)
        ours.append(errors(evaluate(info_nce, case, upstream, backend="triton"), exact))
        textbooks.append(errors(evaluate(textbook, case, upstream), exact))
    found, theirs = (torch.tensor(x).square().mean(0).sqrt() for x in (ours, textbooks))
    slack = 4 * torch.finfo(torch.float32).eps
    assert bool((found <= 1.1 * theirs + slack).all()), (found, theirs)


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_twenty_runs_at_scale_are_equal_bit_for_bit(dtype, options):
    case = on_gpu(6000, width=768, dtype=dtype, **options)
    set_workspace_limit(2000 * 6016 * 2)  # several panels
    first = step(case)
    for _ in range(19):
        assert all(torch.equal(a, b) for a, b in zip(first, step(case), strict=True))


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("rows", [256, 5000])
@pytest.mark.parametrize("learned", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_waits_for_the_device(dtype, learned, rows, options):
    case = on_gpu(rows, width=256, dtype=dtype, **options)
    module = InfoNCELoss(learnable=learned, **options).cuda()
    query = case.query.requires_grad_()
    module(query, case.key).backward()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(query, case.key).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("rows", [256, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_graph_replays_on_new_inputs(dtype, rows, options):
    case, other = (on_gpu(rows, width=256, dtype=dtype, seed=i, **options) for i in (0, 1))
    expected = step(other)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(case)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(case)
    case.query.copy_(other.query)
    case.key.copy_(other.key)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("rows", [256, 5000])
def test_other_streams(rows):
    """Each on a stream of its own, behind work that keeps its inputs waiting."""
    cases = [on_gpu(rows, width=256, dtype=torch.bfloat16, seed=i) for i in range(3)]
    expected = [step(case) for case in cases]
    torch.cuda.synchronize()
    found = []
    for case in cases:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            late = Case(case.query.clone(), case.key.clone(), options=case.options)
            found.append(step(late))
    torch.cuda.synchronize()
    for one, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one():
    case = on_gpu(700, width=256, dtype=torch.bfloat16)
    expected = step(case)
    found = step(Case(case.query.to("cuda:1"), case.key.to("cuda:1")))
    assert found[0].device == torch.device("cuda:1")
    assert all(torch.equal(a, b.to(a.device)) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(mode):
    case = on_gpu(512, width=256, dtype=torch.bfloat16)

    def loss(query, key):
        return info_nce(query, key, temperature=0.05)

    compiled = torch.compile(loss, fullgraph=True, mode=mode)
    for _ in range(3):
        query = case.query.clone().requires_grad_()
        torch.compiler.cudagraph_mark_step_begin()
        compiled(query, case.key).backward()
        torch.testing.assert_close(query.grad, step(case)[1], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("options", MODES)
def test_more_than_2_to_the_31_similarities(options):
    """Rows at the far end, against fp64, where a 32-bit index would have wrapped."""
    rows = 66_000
    case = on_gpu(rows, width=64, dtype=torch.bfloat16, **options)
    far = slice(rows - 5, rows)
    losses = info_nce(case.query, case.key, reduction="none", **options)[far]
    q, k = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (case.query, case.key))
    own = torch.arange(rows - 5, rows, device="cuda")

    def directions(left, right):
        cosine = left[far] @ right.T
        mine = cosine.gather(1, own[:, None])
        out = cosine > mine + options.get("false_negative_margin", 1e9)
        log_p = (20 * cosine).masked_fill(out, -torch.inf).log_softmax(1)
        mean = log_p.masked_fill(out, 0).sum(1) / (~out).sum(1)
        smoothing = options.get("label_smoothing", 0.0)
        return -(1 - smoothing) * log_p.gather(1, own[:, None])[:, 0] - smoothing * mean

    expected = directions(q, k)
    if options.get("symmetric"):
        expected = (expected + directions(k, q)) / 2
    torch.testing.assert_close(losses.double(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
@pytest.mark.parametrize("rows", [4096, 9001, 17_000], ids=lambda n: f"{n}-rows")
def test_fp32_is_as_exact_in_panels_as_whole(rows, symmetric):
    """Rows longer than a block, ragged and aligned; a panel of a gigabyte against small ones."""
    case = on_gpu(rows, width=128, noise=0.5, symmetric=symmetric)
    whole = step(case)
    set_workspace_limit(96 << 20)
    for one, other in zip(whole, step(case), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)
    if rows < 10_000:
        exact = evaluate(textbook, case.to(torch.float64))
        found = errors(evaluate(info_nce, case, backend="triton"), exact)
        theirs = errors(evaluate(textbook, case), exact)
        assert max(found[1:3]) <= 1.1 * max(theirs[1:3])


def test_a_panel_of_fp32_of_more_than_2_to_the_31_similarities():
    """Against panels whose index fits 32 bits."""
    case = on_gpu(48_000, width=64)
    set_workspace_limit(10 << 30)
    whole = step(case)
    set_workspace_limit(1 << 30)
    for one, other in zip(whole, step(case), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-9)


def test_a_panel_of_more_than_2_to_the_31_exponentials():
    """Against panels of a thousand rows, whose index fits 32 bits."""
    case = on_gpu(48_000, width=320, dtype=torch.bfloat16)
    set_workspace_limit(10 << 30)
    whole = step(case)
    set_workspace_limit(96 << 20)
    for one, other in zip(whole, step(case), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-7)


@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
def test_the_workspace_stays_within_its_bound(symmetric):
    case = on_gpu(65_536, width=512, dtype=torch.bfloat16, symmetric=symmetric)
    step(case)
    for limit, bound in ((None, 1536 << 20), (256 << 20, 300 << 20)):
        set_workspace_limit(limit)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(case)
        # Unit rows (bf16), sums (fp32) and the gradients (bf16), of both tensors.
        held = 2 * case.query.numel() * (2 + 4 + 2)
        assert torch.cuda.max_memory_allocated() - before - held < bound


@pytest.mark.parametrize("switch", ["highest", "high", "medium"])
def test_precision_follows_torchs_switch(switch):
    before = torch.get_float32_matmul_precision()
    case = on_gpu(700, width=768, temperature=0.05)
    exact = evaluate(textbook, case.to(torch.float64))
    try:
        torch.set_float32_matmul_precision(switch)
        found = errors(evaluate(info_nce, case, backend="triton"), exact)
    finally:
        torch.set_float32_matmul_precision(before)
    assert max(found) < {"highest": 1e-5, "high": 2e-2, "medium": 5e-2}[switch]
    if switch == "highest":
        assert max(found) > 1e-9  # not fp64 by accident


def test_compute_sanitizer_finds_nothing():
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("needs compute-sanitizer, of the CUDA toolkit")
    program = """
import torch
from simcse_fast import info_nce
for rows, columns, width, dtype in ((67, 131, 33, 'float32'), (300, 700, 768, 'bfloat16'),
                                    (1100, 1100, 256, 'float16')):
    for options in ({}, {'label_smoothing': 0.1}, {'symmetric': True}):
        x = torch.randn(rows, width, device='cuda', dtype=getattr(torch, dtype), requires_grad=True)
        count = rows if options.get('symmetric') else columns
        y = torch.randn(count, width, device='cuda', dtype=x.dtype, requires_grad=True)
        info_nce(x, y, **options).backward()
torch.cuda.synchronize()
"""
    command = [tool, "--error-exitcode", "9", sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")},
        {"hardness_mode": "all_negatives", "hardness_strength": 2.0},
    ],
    ids=["plain", "all-directions", "hardness"],
)
@pytest.mark.parametrize("columns", [2, 3], ids=["pairs", "triplets"])
def test_sentence_transformers_loss_is_the_same(columns, options):
    originals = pytest.importorskip("sentence_transformers.losses")
    ours = pytest.importorskip("simcse_fast.losses")
    g = torch.Generator("cuda").manual_seed(0)
    embeddings = [torch.randn(300, 384, generator=g, device="cuda") for _ in range(columns)]
    found = {}
    for module in (originals, ours):
        mine = [x.clone().requires_grad_() for x in embeddings]
        loss = module.MultipleNegativesRankingLoss(torch.nn.Identity(), **options)
        value = loss.compute_loss_from_embeddings(mine, None)
        found[module] = [value.detach(), *torch.autograd.grad(value, mine)]
    for one, other in zip(found[ours], found[originals], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
