"""What must hold for any embeddings: the mathematics of the loss."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from info_nce_cases import FUSED, device_of

from simcse_fast import info_nce, set_workspace_limit

SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 2**31)
TEMPERATURES = st.sampled_from([0.01, 0.05, 0.3, 1.0, 5.0])
quick = settings(max_examples=40, deadline=None, derandomize=True)


def normal(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@quick
@given(rows=SIZES, more=SIZES, width=st.integers(1, 20), temperature=TEMPERATURES, seed=SEEDS)
def test_loss_is_not_negative_and_bounded_by_the_logits(rows, more, width, temperature, seed):
    columns = rows + more
    losses = info_nce(
        normal(rows, width, seed),
        normal(columns, width, seed + 1),
        temperature=temperature,
        reduction="none",
    )
    assert (losses >= 0).all()
    assert (losses <= math.log(columns) + 2 / temperature * (1 + 1e-5)).all()


@quick
@given(rows=SIZES, temperature=TEMPERATURES, seed=SEEDS, symmetric=st.booleans())
def test_permuting_pairs_permutes_losses_and_gradients(rows, temperature, seed, symmetric):
    query, key = normal(rows, 6, seed), normal(rows, 6, seed + 1)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))

    def run(q, k):
        q = q.clone().requires_grad_()
        losses = info_nce(q, k, temperature=temperature, symmetric=symmetric, reduction="none")
        return losses.detach(), torch.autograd.grad(losses.sum(), q)[0]

    for plain, permuted in zip(run(query, key), run(query[order], key[order]), strict=True):
        torch.testing.assert_close(plain[order], permuted, rtol=1e-3, atol=2e-5 / temperature)


@quick
@given(rows=SIZES, seed=SEEDS, factor=st.floats(1e-3, 1e3))
def test_length_does_not_matter_and_gradients_are_orthogonal(rows, seed, factor):
    query, key = normal(rows, 5, seed).requires_grad_(), normal(rows, 5, seed + 1)
    loss = info_nce(query, key)
    torch.testing.assert_close(loss, info_nce(query * factor, key), rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(loss, query)
    assert (gradient * query).sum(1).abs().max() < 1e-5


@quick
@given(rows=st.integers(2, 30), seed=SEEDS)
def test_repeating_a_key_is_weighting_its_exponential(rows, seed):
    """K copies of a hard negative cost as much as one of weight K."""
    query, key, hard = (normal(rows, 5, seed + i) for i in range(3))
    repeated = info_nce(query, key, hard_negatives=hard[:, None].expand(rows, 4, 5))
    weighted = info_nce(query, key, hard_negatives=hard[:, None], hard_negative_weight=4.0)
    torch.testing.assert_close(repeated, weighted)


@quick
@given(rows=st.integers(2, 30), seed=SEEDS)
def test_ids_leave_out_what_deleting_the_columns_would(rows, seed):
    query, key = normal(1, 5, seed), normal(rows, 5, seed + 1)
    drop = torch.randint(0, 2, (rows,), generator=torch.Generator().manual_seed(seed)).bool()
    drop[0] = False
    found = info_nce(query, key, query_ids=torch.tensor([1]), key_ids=drop.long())
    torch.testing.assert_close(found, info_nce(query, key[~drop]))


@quick
@given(rows=SIZES, seed=SEEDS, temperature=TEMPERATURES)
def test_symmetric_is_the_mean_of_both_directions(rows, seed, temperature):
    query, key = normal(rows, 6, seed), normal(rows, 6, seed + 1)
    both = info_nce(query, key, temperature=temperature, symmetric=True)
    one = info_nce(query, key, temperature=temperature)
    other = info_nce(key, query, temperature=temperature)
    torch.testing.assert_close(both, (one + other) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("rows_of_a_panel", [100, 33])
def test_equal_keys_tie_with_the_positive_in_both_directions(rows_of_a_panel, backend):
    """A margin of 0 keeps them, and the gradient is that of the loss."""
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(50, 128, generator=g).repeat_interleave(2, 0)
    query = keys + 0.1 * torch.randn(100, 128, generator=g)
    query, keys = query.to(device_of(backend)), keys.to(device_of(backend))
    options = {"symmetric": True, "false_negative_margin": 0.0}
    set_workspace_limit(rows_of_a_panel * 100 * keys.element_size())
    found = gradients(query, keys, backend=backend, **options)
    set_workspace_limit(None)
    exact = gradients(query.double(), keys.double(), backend="reference", **options)
    for x, y in zip(found, exact, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=0, atol=1e-6)


def gradients(query, key, **options):
    query, key = (x.clone().requires_grad_() for x in (query, key))
    loss = info_nce(query, key, **options)
    return loss.detach(), *torch.autograd.grad(loss, (query, key))


@pytest.mark.parametrize("temperature", [1e-30, 1e-12, 1e12, 1e30])
def test_temperatures_at_the_ends(temperature):
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    expected = info_nce(x, x, temperature=temperature, backend="reference")
    torch.testing.assert_close(info_nce(x, x, temperature=temperature), expected)
