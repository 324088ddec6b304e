"""The second pass repeats the first: dropout, precision, factors, frozen towers."""

from __future__ import annotations

import pytest
import torch
from gradient_cache_cases import (
    EVERYTHING,
    LIMITS,
    SOME,
    WIDTH,
    Encoder,
    assert_equal,
    assert_rounded_alike,
    cached,
    gradients_of,
    loss_of,
    padded,
    uncached,
)
from torch import nn
from torch.nn import functional as F

from simcse_fast import GradientCache

pytestmark = pytest.mark.usefixtures("one_thread")


class Recorded(nn.Module):
    """Dropout that remembers by row what it let through; draws as often as it is told."""

    def __init__(self, draws: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.outer = (nn.Linear(WIDTH, WIDTH, dtype=torch.float64) for _ in range(2))
        self.draws = draws
        self.masks: dict[int, list[torch.Tensor]] = {}
        self.replays = True

    def forward(self, x):
        numbers, x = x[:, 0].long().tolist(), x[:, 1:]
        for _ in range(self.draws):
            if self.replays:
                mask = (torch.rand_like(x) < 0.7).to(x.dtype)
                for number, row in zip(numbers, mask, strict=True):
                    self.masks.setdefault(number, []).append(row)
            else:
                mask = torch.stack([self.masks[number].pop(0) for number in numbers])
            x = self.inner(x).tanh() * mask
        return self.outer(F.dropout(x, 0.5) if not self.draws else x)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("draws", [1, 3])
def test_dropout_draws_the_same_again(draws, limit):
    encoder = Recorded(draws)
    rows = torch.arange(19.0, dtype=torch.float64)[:, None]
    x = torch.cat([rows, torch.randn(19, WIDTH, dtype=torch.float64)], 1)
    torch.manual_seed(5)
    cache = GradientCache(encoder, mini_batch_size=4, **limit)
    ours = gradients_of([encoder], loss_of(*cache(x[:8], x[8:])))
    kept = cache.statistics.kept
    twice = sum(len(masks) > draws for masks in encoder.masks.values())
    assert (twice == 0) == (kept == cache.statistics.mini_batches)
    for masks in encoder.masks.values():
        for one, other in zip(masks[:draws], masks[draws:], strict=False):
            assert torch.equal(one, other)
    encoder.replays = False
    assert_equal(ours, gradients_of([encoder], loss_of(encoder(x[:8]), encoder(x[8:]))))


def test_memory_changes_neither_random_numbers_nor_a_bit_of_the_gradient():
    encoder, columns = Encoder(dropout=0.3), [padded(9, 8, n) for n in range(2)]
    found, after, kept = [], [], set()
    for limit in (0, *range(SOME // 4, 4 * SOME, SOME // 4), EVERYTHING):
        torch.manual_seed(3)
        cache = GradientCache(encoder, mini_batch_tokens=13, memory_limit=limit)
        loss = loss_of(*cache(*columns))
        state = torch.get_rng_state()
        found.append(gradients_of([encoder], loss))
        assert torch.equal(torch.get_rng_state(), state)  # the backward pass leaves no trace
        after.append(state)
        kept.add(cache.statistics.kept)
    assert len(kept) > 4
    assert all(torch.equal(after[0], state) for state in after)
    for gradients in found:
        assert all(torch.equal(x, y) for x, y in zip(found[0], gradients, strict=True))


@pytest.mark.parametrize("limit", LIMITS)
def test_what_comes_from_above_reaches_every_mini_batch(limit):
    encoder, batches = Encoder(), [[padded(6, 7, 2 * n), padded(8, 5, 2 * n + 1)] for n in range(3)]
    cache = GradientCache(encoder, mini_batch_tokens=12, **limit)
    for columns in batches:  # accumulated, and scaled as GradScaler scales
        (1024 * loss_of(*cache(*columns)) / 4).backward()
    ours = gradients_of([encoder])
    for columns in batches:
        (1024 * loss_of(*map(encoder, columns)) / 4).backward()
    assert_equal(ours, gradients_of([encoder]))


@pytest.mark.parametrize("limit", LIMITS)
def test_backward_twice(limit):
    encoder, columns = Encoder(dropout=0.2), [padded(6, 7, n) for n in range(2)]
    loss = loss_of(*GradientCache(encoder, mini_batch_tokens=12, **limit)(*columns))
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in encoder.parameters()]
    assert_equal(gradients_of([encoder], loss), [2 * x for x in once])


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("outside", [False, True], ids=["backward-inside", "backward-outside"])
def test_autocast(outside, limit):
    columns = [padded(9, 8, n) for n in range(2)]
    encoder = Encoder(dtype=torch.float32)
    exact = uncached([encoder], columns)
    found = []
    for embed in (
        lambda: map(encoder, columns),
        lambda: GradientCache(encoder, mini_batch_tokens=13, **limit)(*columns),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(*embed())
            if not outside:
                loss.backward()
        if outside:
            loss.backward()
        found.append(gradients_of([encoder]))
    assert_rounded_alike(*found, exact)


@pytest.mark.parametrize("limit", LIMITS)
def test_autocast_around_the_backward_pass_only(limit):
    """Embedded again without it: what is computed backward is rounded, as without a cache."""
    columns = [padded(9, 8, n) for n in range(2)]
    encoder, dtypes = Encoder(dtype=torch.float32), set()
    encoder.head.register_forward_hook(lambda *given: dtypes.add(given[-1].dtype))
    exact = uncached([encoder], columns)
    found = []
    for embed in (
        lambda: map(encoder, columns),
        lambda: GradientCache(encoder, mini_batch_tokens=13, **limit)(*columns),
    ):
        loss = loss_of(*embed())
        with torch.autocast("cpu", torch.bfloat16):
            loss.backward()
        found.append(gradients_of([encoder]))
    assert dtypes == {torch.float32}
    assert_rounded_alike(*found, exact)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(
    "frozen", ["words", "layer", "all-but-head"], ids=["words", "middle", "all-but-head"]
)
def test_partly_frozen(frozen, limit):
    encoder, columns = Encoder(), [padded(6, 7, n) for n in range(2)]
    for name, p in encoder.named_parameters():
        p.requires_grad_(not name.startswith(frozen) and (frozen[0] != "a" or "head" in name))
    ours, cache = cached([encoder], columns, mini_batch_tokens=12, **limit)
    assert_equal(ours, uncached([encoder], columns))
    if limit == {"memory_limit": EVERYTHING}:
        _, free = cached([Encoder()], columns, mini_batch_tokens=12, **limit)
        assert cache.statistics.kept_bytes <= free.statistics.kept_bytes


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("number", [0, 1])
def test_frozen_towers_are_embedded_once(number, limit):
    towers = [Encoder(0), Encoder(1)]
    towers[number].requires_grad_(False)
    calls = []
    towers[number].register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    columns = [padded(6, 7, n) for n in range(2)]
    ours, _ = cached(towers, columns, mini_batch_size=3, **limit)
    assert len(calls) <= 3  # two mini-batches, and one more look at most
    assert_equal(ours, uncached(towers, columns))


@pytest.mark.parametrize("limit", LIMITS)
def test_a_tower_that_the_loss_does_not_read(limit):
    towers, columns = [Encoder(0), Encoder(1)], [padded(6, 7, n) for n in range(2)]
    cache = GradientCache(towers, mini_batch_size=3, **limit)
    query, _ = cache(*columns)
    ours = gradients_of(towers, query.square().sum())
    assert_equal(ours, gradients_of(towers, towers[0](columns[0]).square().sum()))
    assert any(x is None for x in ours)
    shared = Encoder()
    cache = GradientCache(shared, mini_batch_size=3, **limit)
    _, key = cache(*columns)
    ours = gradients_of([shared], key.square().sum())
    assert_equal(ours, gradients_of([shared], shared(columns[1]).square().sum()))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context):
    encoder, columns = Encoder(dropout=0.4).eval(), [padded(6, 7), padded(3, 9)]
    cache = GradientCache(encoder, mini_batch_tokens=12)
    with context():
        ours = cache(*columns)
        theirs = [encoder(column) for column in columns]
    assert cache.statistics.kept == 0
    assert cache.slabs.total == 0
    for one, other in zip(ours, theirs, strict=True):
        assert not one.requires_grad
        assert torch.allclose(one, other, rtol=0, atol=1e-12)
