"""NTXentLoss against lightly's own, read from its files: the package itself needs torchvision."""

import copy
import importlib.util
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch import multiprocessing
from torch.nn import functional as F

from simcse_fast.losses import NTXentLoss

pytestmark = pytest.mark.usefixtures("one_thread")

FILES = {
    "lightly.utils.dist": "utils/dist.py",
    "lightly.models.modules.memory_bank": "models/modules/memory_bank.py",
    "lightly.loss.ntx_ent_loss": "loss/ntx_ent_loss.py",
}


def original_class():
    """lightly's class from its files, with empty modules where its packages would stand."""
    package = importlib.util.find_spec("lightly")
    root = Path(package.submodule_search_locations[0])
    before = {name: module for name, module in sys.modules.items() if "lightly" in name}
    for name in ("lightly", "lightly.utils", "lightly.models", "lightly.models.modules"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["lightly.models"].utils = types.SimpleNamespace(concat_all_gather=all_rows)
    for name, path in FILES.items():
        spec = importlib.util.spec_from_file_location(name, root / path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], last, module)
        spec.loader.exec_module(module)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lightly"]:
        del sys.modules[name]
    sys.modules.update(before)
    return module.NTXentLoss


def all_rows(x):
    """Stands for lightly.models.utils.concat_all_gather, whose module needs torchvision."""
    gathered = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(gathered, x.contiguous())
    return torch.cat(gathered)


@pytest.fixture(scope="module")
def original():
    if importlib.util.find_spec("lightly") is None:
        pytest.skip("lightly is not installed")
    return original_class()


def views(rows=13, width=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    out0 = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    out1 = out0 + torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in (out0, out1)]


def loss_and_gradients(loss, inputs):
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, [x for x in inputs if x.requires_grad])]


def twins(original, dtype=torch.float64, **options):
    """Ours and the original from the same seed, so that their banks hold the same numbers."""
    built = []
    for loss_class in (NTXentLoss, original):
        torch.manual_seed(0)
        built.append(loss_class(**options).to(dtype))
    return built


@pytest.mark.parametrize("rows", [pytest.param(1, id="one-pair"), pytest.param(13, id="prime")])
@pytest.mark.parametrize("size", [0, (0, 8), (29, 8)], ids=str)
@pytest.mark.parametrize(
    "temperature",
    # lightly allows negative temperatures, and ones at which float32 logits reach 1e7.
    [0.5, 0.05, -0.5, 1e-7, 100],
)
def test_loss_and_gradients_are_the_originals(original, temperature, size, rows):
    ours, theirs = twins(original, temperature=temperature, memory_bank_size=size)
    inputs = views(rows)
    expected = loss_and_gradients(theirs, inputs)
    torch.testing.assert_close(loss_and_gradients(ours, inputs), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [0, (29, 8)], ids=str)
def test_no_worse_than_the_original_in_float32(original, size):
    squares = {"ours": [], "theirs": []}
    for seed in range(24):  # root mean square over draws; a single one would be luck
        inputs = views(67, dtype=torch.float32, seed=seed)
        ours, theirs = twins(original, torch.float32, memory_bank_size=size)
        exact = copy.deepcopy(theirs).double()
        wide = [x.detach().double().requires_grad_() for x in inputs]
        value, *truth = loss_and_gradients(exact, wide)
        for name, loss in (("ours", ours), ("theirs", theirs)):
            found, *gradients = loss_and_gradients(loss, inputs)
            error = torch.stack(gradients) - torch.stack(truth)
            squares[name].append([(found - value).square(), error.square().mean()])
    ours, theirs = (torch.tensor(errors).mean(0).sqrt() for errors in squares.values())
    # Both sum 2 n terms in fp32, in different orders: a few per cent either way.
    assert (ours <= 1.05 * theirs).all(), (ours, theirs)


@pytest.mark.parametrize("rows", [5, 10, 13, 40], ids=lambda rows: f"batches-of-{rows}")
def test_the_bank_is_drawn_and_filled_as_the_original_fills_it(original, rows):
    # 30 entries: batches that divide them, that do not, and one larger than the whole bank.
    ours, theirs = twins(original, memory_bank_size=(30, 8))
    for step in range(7):
        inputs = views(rows, seed=step)
        expected = loss_and_gradients(theirs, inputs)
        torch.testing.assert_close(loss_and_gradients(ours, inputs), expected)
        assert torch.equal(ours.memory_bank.bank, theirs.memory_bank.bank)
        assert torch.equal(ours.memory_bank.bank_ptr, theirs.memory_bank.bank_ptr)


@pytest.mark.parametrize("how", ["no-grad", "plain-tensors", "first-view-plain"])
def test_evaluation_leaves_the_bank_as_it_is(original, how):
    for loss in twins(original, memory_bank_size=(30, 8)):
        before = loss.memory_bank.bank.clone()
        out0, out1 = views()
        out0 = out0 if how == "no-grad" else out0.detach()
        out1 = out1.detach() if how == "plain-tensors" else out1
        with torch.set_grad_enabled(how != "no-grad"):
            loss(out0, out1)
        assert torch.equal(loss.memory_bank.bank, before)
        assert loss.memory_bank.bank_ptr.item() == 0


def test_buffers_and_state_are_the_originals(original):
    ours, theirs = twins(original, memory_bank_size=(30, 8))
    assert [(n, b.shape, b.dtype) for n, b in ours.named_buffers()] == [
        (n, b.shape, b.dtype) for n, b in theirs.named_buffers()
    ]
    assert ours.load_state_dict(theirs.state_dict()).missing_keys == []
    assert ours.state_dict() == theirs.state_dict() == {}  # lightly does not save the bank


def train(loss_class, dtype, steps=50, **options):
    torch.manual_seed(0)
    # Smooth: at the kink of a ReLU one rounding more or less would part the two for good.
    model = torch.nn.Sequential(
        torch.nn.Linear(12, 24), torch.nn.Tanh(), torch.nn.Linear(24, 8)
    ).to(dtype)
    loss = loss_class(**options).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(32, 12, generator=generator, dtype=torch.float64)
    history = []
    for _ in range(steps):
        noise = torch.randn(2, 32, 12, generator=generator, dtype=torch.float64)
        out0, out1 = (model((images + 0.2 * one).to(dtype)) for one in noise)
        value = loss(out0, out1)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        history.append(value.item())
    return torch.tensor(history, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [0, (100, 8)], ids=str)
@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_training_follows_the_original(original, temperature, size, dtype):
    options = {"temperature": temperature, "memory_bank_size": size}
    ours, expected = train(NTXentLoss, dtype, **options), train(original, dtype, **options)
    # The bank starts as noise, which is easy to tell apart; then it holds past views.
    assert size or expected[-5:].mean() < expected[:5].mean()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 1e-9}, r"temperature: expected \|temperature\| >= 1e-8, got 1e-09"),
        ({"memory_bank_size": 64}, r"memory_bank_size: expected \(entries, width\) or 0, got 64"),
        ({"memory_bank_size": (-1, 8)}, r"memory_bank_size: .* got \(-1, 8\)"),
        ({"memory_bank_size": (4, 8, 2)}, r"memory_bank_size: .* got \(4, 8, 2\)"),
    ],
    ids=["temperature", "width-missing", "negative", "three"],
)
def test_bad_options_raise_where_the_original_raises(original, options, message):
    with pytest.raises(ValueError, match=message):
        NTXentLoss(**options)
    with pytest.raises(ValueError, match=r"(?i)illegal|dimension"):
        original(**options)


@pytest.mark.parametrize("shapes", [((4, 8), (5, 8)), ((4, 8), (4, 7)), ((8,), (8,))], ids=str)
def test_views_that_do_not_fit_are_named(shapes):
    with pytest.raises(ValueError, match=r"out1: expected the shape of out0"):
        NTXentLoss()(*map(torch.ones, shapes))


def one_process(rank, address, queue):
    """Losses, gradients and banks of this rank, ours and lightly's, from the same rows."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    results = []
    for options in ({}, {"temperature": -0.3}, {"memory_bank_size": (15, 8)}):
        for loss in twins(original_class(), gather_distributed=True, **options):
            inputs = views(rows=5, seed=rank)
            found = loss_and_gradients(loss, inputs)
            results.append([*(x.tolist() for x in found), loss.memory_bank.bank.tolist()])
    queue.put((rank, results))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_give_the_originals_loss_gradients_and_bank(original, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    address = f"file://{tmp_path / 'meeting'}"
    multiprocessing.spawn(one_process, (address, queue), nprocs=2)
    for results in dict(queue.get() for _ in range(2)).values():
        for ours, theirs in zip(results[::2], results[1::2], strict=True):
            for found, expected in zip(ours, theirs, strict=True):
                torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


def test_alone_gathering_changes_nothing_and_says_nothing():
    inputs = views()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = loss_and_gradients(NTXentLoss(gather_distributed=True), inputs)
    assert all(map(torch.equal, found, loss_and_gradients(NTXentLoss(), inputs)))


def test_a_bank_of_another_type_than_the_batch():
    # Mixed precision: the bank stays fp32 beside bf16 embeddings.
    loss, inputs = NTXentLoss(memory_bank_size=(30, 8)), views(dtype=torch.bfloat16)
    bank = loss.memory_bank.bank.clone()
    unit0, unit1 = (F.normalize(x.detach(), dim=1).double() for x in inputs)
    logits = torch.cat(
        [(unit0 * unit1).sum(1, keepdim=True), unit0 @ bank.bfloat16().double().T], 1
    )
    expected = F.cross_entropy(logits / 0.5, torch.zeros(len(unit0), dtype=torch.int64))
    assert loss(*inputs).item() == pytest.approx(expected.item(), rel=1e-5)
