"""Encoders, columns and losses for the tests of the gradient cache."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from simcse_fast import GradientCache

WIDTH = 8
EVERYTHING = 1 << 30
SOME = 60_000  # bytes, of some of the graphs of `Encoder`: see test_more_memory_keeps_more


class Encoder(nn.Module):
    """Tokens through one layer of attention, averaged; padding changes nothing."""

    def __init__(self, seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float64):
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(50, WIDTH, dtype=dtype)
        self.places = nn.Embedding(16, WIDTH, dtype=dtype)
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 16, dropout, batch_first=True, dtype=dtype
        )
        self.head = nn.Linear(WIDTH, 5, dtype=dtype)

    def forward(self, features: dict) -> torch.Tensor:
        ids, mask = features["input_ids"], features["attention_mask"]
        x = self.words(ids) + self.places.weight[: ids.shape[1]]
        # Finite, so that a row without tokens is no NaN.
        bias = (1.0 - mask[:, None, :].to(x.dtype)) * -1e9
        bias = bias.expand(-1, ids.shape[1], -1).repeat_interleave(2, 0)
        x = self.layer(x, src_mask=bias)
        kept = mask.unsqueeze(-1).to(x.dtype)
        return self.head((x * kept).sum(1) / kept.sum(1).clamp(min=1))


def padded(rows: int, longest: int, seed: int = 0, width: int | None = None) -> dict:
    generator = torch.Generator().manual_seed(seed)
    width = longest if width is None else width
    lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
    mask = (torch.arange(width) < lengths[:, None]).long()
    ids = torch.randint(1, 50, (rows, width), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask}


def loss_of(*columns: torch.Tensor) -> torch.Tensor:
    """Every row of the first against every row of all."""
    query = F.normalize(columns[0].to(torch.promote_types(columns[0].dtype, torch.float32)), dim=-1)
    key = F.normalize(torch.cat([x.to(query.dtype) for x in columns]), dim=-1)
    logits = 5 * query @ key.roll(-1, 0).T
    return logits.logsumexp(1).mean() - logits.diagonal().mean() + columns[-1].square().mean()


def gradients_of(modules: list[nn.Module], loss: torch.Tensor | None = None) -> list:
    if loss is not None:
        loss.backward()
    found = [p.grad for module in modules for p in module.parameters()]
    for module in modules:
        module.zero_grad()
    return found


def assert_equal(ours: list, theirs: list, tolerance: float = 1e-10) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) is (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            assert (one - other).abs().max() <= tolerance * max(1.0, other.abs().max().item())


def assert_rounded_alike(plain: list, ours: list, exact: list) -> None:
    """Sums of other parts round to other bits: as far from the truth as without a cache."""
    for one, other, true in zip(plain, ours, exact, strict=True):
        allowed = 2 * (one - true).abs().max() + 2**-8 * true.abs().max().clamp(min=1e-2)
        assert (other - true).abs().max() <= allowed


def uncached(towers: list[nn.Module], columns: list) -> list:
    many = towers * len(columns) if len(towers) == 1 else towers
    return gradients_of(towers, loss_of(*(t(x) for t, x in zip(many, columns, strict=True))))


def cached(towers: list[nn.Module], columns: list, **options) -> tuple[list, GradientCache]:
    cache = GradientCache(towers[0] if len(towers) == 1 else towers, **options)
    return gradients_of(towers, loss_of(*cache(*columns))), cache


LIMITS = [
    pytest.param({"memory_limit": 0}, id="nothing-kept"),
    pytest.param({"memory_share": 0.0}, id="no-share"),
    pytest.param({"memory_limit": SOME}, id="some-kept"),
    pytest.param({"memory_limit": EVERYTHING}, id="everything-kept"),
    pytest.param({}, id="half-of-what-is-free"),
]
CUTS = [
    pytest.param({}, id="default"),
    pytest.param({"mini_batch_tokens": 1}, id="row-by-row"),
    pytest.param({"mini_batch_tokens": 13}, id="few-tokens"),
    pytest.param({"mini_batch_tokens": 10**6}, id="all-at-once"),
    pytest.param({"mini_batch_size": 3}, id="few-rows"),
    pytest.param({"mini_batch_size": 2, "mini_batch_tokens": 9}, id="rows-and-tokens"),
]
# Rows, longest row and padded width of each column.
COLUMNS = [
    pytest.param([(7, 6, 6)], id="one"),
    pytest.param([(7, 6, 6), (7, 6, 6)], id="two"),
    pytest.param([(5, 4, 4), (9, 8, 12)], id="more-keys-than-queries-wider"),
    pytest.param([(5, 6, 9), (5, 4, 4), (8, 7, 7)], id="three"),
    pytest.param([(4, 6, 6), (4, 1, 1), (6, 3, 7), (1, 5, 5)], id="four-tokens-of-one"),
]
