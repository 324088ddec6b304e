"""Graphs that are kept: copied exactly, bounded, let go, given back."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from gradient_cache_cases import (
    EVERYTHING,
    LIMITS,
    SOME,
    Encoder,
    assert_equal,
    gradients_of,
    loss_of,
    padded,
    uncached,
)
from torch import nn

from simcse_fast import GradientCache
from simcse_fast.saved_tensors import SLAB, Saved, Shelf, Slabs

pytestmark = pytest.mark.usefixtures("one_thread")


def copied(build, *leaves: torch.Tensor) -> tuple[list, list]:
    """Gradients of what is built, as it is and with what it saves in memory of its own."""
    plain = [x.clone().requires_grad_() for x in leaves]
    build(*plain).backward()
    mine = [x.clone().requires_grad_() for x in leaves]
    shelf = Shelf(Slabs())
    with Saved(shelf) as saved:
        out = build(*mine)
    assert saved.total > 0
    junk = [torch.full((n,), torch.nan) for n in (8, 64, 512) for _ in range(8)]  # on what is freed
    out.backward()
    del junk
    return [x.grad for x in mine], [x.grad for x in plain]


def in_place(x, y):
    z = (x * y).exp()
    w = z * z  # saves z
    return (w.add_(1) * y).sum()


def changed_between(x, y):
    buffer = torch.ones(4, 6, dtype=x.dtype)
    first = x * buffer.clone().mul_(2)
    buffer.mul_(3)
    second = y * buffer
    return (first * second).sum()


def one_storage_twice(x, y):
    table = torch.arange(48.0, dtype=x.dtype).view(2, 4, 6)
    first = x * table[0]
    second = y * table[1]
    return (first * second).sum()


BUILDS = {
    "in-place": in_place,
    "changed-between": changed_between,
    "one-storage-twice": one_storage_twice,
    "views": lambda x, y: (x.exp()[1:3, ::2] * y.exp()[::2, 1::2]).sum(),
    "transposed": lambda x, y: (x.exp().T @ y.exp()).square().sum(),
    "expanded": lambda x, y: (x.exp()[:1].expand(4, 6) * y).exp().sum(),
    "not-contiguous": lambda x, y: (x.exp().T.flip(0)[::2] * y.T[::2]).square().sum(),
    "bool-mask": lambda x, y: torch.where(x > 0, x * y, y.exp()).sum(),
    "integers": lambda x, y: (
        x[torch.tensor([0, 2, 2])].square().gather(1, torch.tensor([[1], [0], [5]])).sum() * y.sum()
    ),
    "no-elements": lambda x, y: (x[:0].exp() * y[:0]).sum() + (x.exp() * y.exp()).sum(),
    "softmax": lambda x, y: (x.softmax(-1) * y.log_softmax(-1)).sum(),
    "complex": lambda x, y: (torch.fft.fft(x) * torch.fft.fft(y).conj()).abs().sum(),
    "sorted": lambda x, y: (x.sort(-1).values * y.cumsum(-1)).square().sum(),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_graphs_in_memory_of_their_own_have_the_same_bits(build, dtype):
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(4, 6, dtype=dtype, generator=generator) for _ in range(2)]
    for one, other in zip(*copied(build, *leaves), strict=True):
        assert torch.equal(one, other)


def test_copies_outlive_what_the_encoder_overwrites():
    """A workspace that every call uses again: an error without copies, exact with them."""
    weight = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    workspace, shelf, outs, inputs = torch.empty(4, 6, dtype=torch.float64), Shelf(Slabs()), [], []
    for _ in range(3):
        inputs.append(torch.randn(4, 6, dtype=torch.float64))
        workspace.copy_(inputs[-1])
        with Saved(shelf):
            outs.append((workspace @ weight).tanh().sum())
    sum(outs).backward()
    ours, weight.grad = weight.grad, None
    sum((x @ weight).tanh().sum() for x in inputs).backward()
    assert torch.equal(ours, weight.grad)


def test_an_odd_number_of_bytes_under_wider_numbers():
    leaf = torch.ones(2, requires_grad=True)
    other = torch.frombuffer(bytearray(11), dtype=torch.uint8)[:8].view(torch.float32)
    with Saved(Shelf(Slabs())):
        out = (leaf * other).sum()
    out.backward()
    assert leaf.grad.tolist() == [0.0, 0.0]


def test_parameters_are_never_copied():
    layer = nn.Linear(64, 64)
    with Saved(None) as learned:
        layer(torch.ones(1, 64, requires_grad=True))
    layer.requires_grad_(False)
    with Saved(None) as frozen:
        layer(torch.ones(1, 64, requires_grad=True))
    assert learned.total <= 64 * 4
    assert frozen.total <= 64 * 4


def used(cache: GradientCache) -> int:
    """Bytes of slabs that are not free."""
    return cache.slabs.total - sum(x.numel() for x in cache.slabs.free)


def test_slabs_come_back():
    encoder, columns = Encoder(), [padded(9, 8, n) for n in range(2)]
    cache = GradientCache(encoder, mini_batch_tokens=13, memory_limit=EVERYTHING)
    loss = loss_of(*cache(*columns))
    total = cache.slabs.total
    assert used(cache) > 0
    loss.backward()
    assert used(cache) == 0  # also while the loss lives
    loss = loss_of(*cache(*columns))
    assert used(cache) > 0
    del loss  # without a backward pass
    gc.collect()
    assert used(cache) == 0
    assert cache.slabs.total == total


@pytest.mark.parametrize("call", [1, 3, 6], ids=["first", "third", "in-backward"])
def test_slabs_come_back_after_an_error(call):
    encoder, columns = Encoder(), [padded(9, 8, n) for n in range(2)]
    calls = []

    def failing(features):
        calls.append(0)
        if len(calls) == call:
            raise ArithmeticError("pretended")
        return encoder(features)

    cache = GradientCache(failing, mini_batch_size=4, memory_limit=SOME)

    def step():
        loss = loss_of(*cache(*columns))
        assert 0 < cache.statistics.kept < cache.statistics.mini_batches
        loss.backward()

    with pytest.raises(ArithmeticError):
        step()
    gc.collect()
    assert used(cache) == 0
    encoder.zero_grad()
    ours = gradients_of([encoder], loss_of(*cache(*columns)))
    assert_equal(ours, uncached([encoder], columns))


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first-first", "last-first"])
def test_two_batches_on_their_way_at_once(order, limit):
    encoder = Encoder(dropout=0.0)
    batches = [[padded(9, 8, 2 * n), padded(7, 6, 2 * n + 1)] for n in range(2)]
    cache = GradientCache(encoder, mini_batch_tokens=13, **limit)
    losses = [loss_of(*cache(*columns)) for columns in batches]
    for number in order:
        assert_equal(gradients_of([encoder], losses[number]), uncached([encoder], batches[number]))
    assert used(cache) == 0


def test_more_memory_keeps_more():
    encoder, columns = Encoder(), [padded(20, 9, n) for n in range(2)]
    kept = []
    for limit in (0, SOME // 4, SOME, 4 * SOME, EVERYTHING):
        cache = GradientCache(encoder, mini_batch_tokens=13, memory_limit=limit)
        for _ in range(2):  # what a token takes is known the second time
            loss_of(*cache(*columns)).backward()
            assert cache.statistics.kept_bytes <= limit
        kept.append(cache.statistics.kept)
    assert kept == sorted(kept)
    assert kept[0] == 0
    assert 0 < kept[2] < kept[3] <= kept[4] == cache.statistics.mini_batches


@pytest.mark.parametrize("call", [1, 2, 5])
def test_out_of_memory_lets_go_and_goes_on(call):
    encoder, columns = Encoder(dropout=0.3), [padded(9, 8, n) for n in range(2)]
    calls = []

    def failing(features):
        calls.append(0)
        if len(calls) == call:
            torch.rand(3)  # on its way already
            raise torch.OutOfMemoryError("pretended")
        return encoder(features)

    torch.manual_seed(0)
    undisturbed = GradientCache(encoder, mini_batch_size=3, memory_limit=EVERYTHING)
    expected = gradients_of([encoder], loss_of(*undisturbed(*columns)))
    state = torch.get_rng_state()
    torch.manual_seed(0)
    cache = GradientCache(failing, mini_batch_size=3, memory_limit=EVERYTHING)
    loss = loss_of(*cache(*columns))
    assert cache.budget == EVERYTHING // 2
    assert cache.statistics.kept == cache.statistics.mini_batches - call
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(gradients_of([encoder], loss), expected, 1e-12)
    assert used(cache) == 0


def test_out_of_memory_in_the_backward_pass_lets_go_too():
    encoder, columns = Encoder(), [padded(9, 8, n) for n in range(2)]
    towers = [encoder, Encoder(1)]
    fails = []

    def failing(features):
        if fails and fails.pop():
            raise torch.OutOfMemoryError("pretended")
        return encoder(features)

    cache = GradientCache([failing, towers[1]], mini_batch_size=3, memory_limit=EVERYTHING)
    loss = loss_of(*cache(*columns))
    run = loss.grad_fn
    first = next(x for x in _nodes(run) if hasattr(x, "embedded")).embedded._run.parts[0]
    first.graph = None  # as if there had been no room for it
    fails.append(True)
    assert_equal(gradients_of(towers, loss), uncached(towers, columns))
    assert cache.budget == EVERYTHING // 2


def _nodes(node) -> list:
    found, new = [], [node]
    while new:
        found.append(new.pop())
        new += [x for x, _ in found[-1].next_functions if x is not None]
    return found


def test_out_of_memory_with_nothing_to_let_go_of_is_raised():
    def failing(features):
        raise torch.OutOfMemoryError("pretended")

    for limit in (0, EVERYTHING):
        cache = GradientCache(failing, memory_limit=limit)
        with pytest.raises(torch.OutOfMemoryError, match="pretended"):
            cache(padded(3, 4))
    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError, match="pretended"):
        GradientCache(failing)(padded(3, 4))


def test_graphs_die_with_their_backward_pass():
    layer, alive = nn.Linear(4, 4), []

    def encode(x):
        y = layer(x)
        alive.append(weakref.ref(y))
        return y

    cache = GradientCache(encode, mini_batch_size=2, memory_limit=EVERYTHING)
    embeddings = cache(torch.ones(6, 4))[0]
    embeddings.sum().backward()
    assert not any(x() is not None for x in alive)


PEAK = """
import sys, torch
from torch import nn
from simcse_fast import GradientCache
from simcse_fast.memory import resident_memory, return_free_pages

torch.set_num_threads(1)
torch.manual_seed(0)
layers = [nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)) for _ in range(3)]
encoder = nn.Sequential(*layers)
limit, most = int(sys.argv[1]), 0

def watched(x):
    global most
    y = encoder(x)
    most = max(most, resident_memory())
    return y

cache = GradientCache(watched, model=encoder, mini_batch_size=256, memory_limit=limit)
x = torch.randn(8192, 256)
for _ in range(3):
    (y,) = cache(x)
    y.square().mean().backward()
print(most, cache.statistics.kept, cache.statistics.mini_batches)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_what_was_allowed():
    limit = 200_000_000  # far more than what chance adds: about 10 MB
    found = []
    for bound in (0, limit):
        done = subprocess.run(  # noqa: S603 - this interpreter
            [sys.executable, "-c", PEAK, str(bound)], capture_output=True, text=True, check=True
        )
        found.append([int(x) for x in done.stdout.split()])
    (least, none, _), (most, kept, count) = found
    assert none == 0
    assert 0 < kept < count
    assert most - least <= 1.1 * limit


def test_slabs_of_another_size_are_let_go():
    slabs = Slabs()
    one, large = slabs.take(SLAB), slabs.take(SLAB + 100)
    slabs.free += [one, large]
    assert slabs.take(SLAB + 200).numel() == SLAB + 200
    assert slabs.total == 2 * SLAB + 200
    assert slabs.free == [one]


def test_a_tower_of_heavy_rows_leaves_room_for_another():
    heavy, light = nn.Sequential(nn.Linear(2, 100_000), nn.Linear(100_000, 5)), Encoder()
    light.float()
    cache = GradientCache([heavy, light], mini_batch_tokens=64, memory_limit=20_000_000)
    for _ in range(2):  # what they take is known the second time
        loss_of(*cache(torch.randn(8, 2), padded(40, 9))).backward()
        assert cache.statistics.kept == cache.statistics.mini_batches > 4
