"""The loss as others compute it. Each takes query (N, D) and key (N, D) and ends in gradients."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simcse_fast import info_nce
from simcse_fast.backend import workspace_limit
from simcse_fast.kernels.infonce.panels import panel_rows

SCALE = 20.0
Step = Callable[[Tensor, Tensor], Any]


def textbook(query: Tensor, key: Tensor) -> Tensor:
    """What users write."""
    logits = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).T * SCALE
    return F.cross_entropy(logits, torch.arange(len(query), device=query.device))


def backward_of(loss: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """Loss and gradients."""
    return lambda query, key: loss(query, key).backward()


def cut_cross_entropy() -> Step:
    """Apple's linear cross-entropy, its torch implementation, given scaled unit rows."""
    module = importlib.import_module("cut_cross_entropy.torch_compile")

    def loss(query: Tensor, key: Tensor) -> Tensor:
        targets = torch.arange(len(query), device=query.device)
        return module.torch_compile_linear_cross_entropy(
            F.normalize(query, dim=-1) * SCALE, F.normalize(key, dim=-1), targets
        )

    return backward_of(loss)


def cached_sentence_transformers() -> Step:
    """The loss computation of sentence-transformers' cached loss, mini-batches of 32 (default)."""
    losses = importlib.import_module("sentence_transformers.losses")
    cached = losses.CachedMultipleNegativesRankingLoss(nn.Sequential(nn.Identity()))
    return lambda query, key: cached.calculate_loss([[query], [key]], with_backward=True)


Multiply = Callable[[Tensor, Tensor, Tensor, bool], None]


def bare_products(query: Tensor, key: Tensor, multiply: Multiply) -> Step:
    """The floor: the three products of the plan in its own panels, nothing else."""
    unit_query = F.normalize(query.detach(), dim=-1)
    unit_key = F.normalize(key.detach(), dim=-1)
    rows = len(query)
    step = panel_rows(rows, rows, query.element_size(), workspace_limit(query.device))
    panel = query.new_empty(step, rows)
    of_query, of_key = torch.zeros_like(unit_query), torch.zeros_like(unit_key)

    def run(*_: Tensor) -> None:
        for begin in range(0, rows, step):
            part = panel[: min(step, rows - begin)]
            mine = slice(begin, begin + len(part))
            multiply(unit_query[mine], unit_key.T, part, False)
            multiply(part, unit_key, of_query[mine], True)
            multiply(part.T, unit_query[mine], of_key, True)

    return run


MAKERS: dict[str, Callable[[], Step]] = {
    "simcse_fast": lambda: backward_of(lambda q, k: info_nce(q, k, temperature=1 / SCALE)),
    "eager": lambda: backward_of(textbook),
    "torch.compile": lambda: backward_of(torch.compile(textbook)),
    "cut-cross-entropy (torch)": cut_cross_entropy,
    "sentence-transformers cached": cached_sentence_transformers,
}


def pair(
    rows: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    noise: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Keys are noisy copies of the queries."""
    g = torch.Generator(device).manual_seed(0)
    query = torch.randn(rows, width, generator=g, device=device)
    key = query + noise * torch.randn(rows, width, generator=g, device=device)
    return query.to(dtype).requires_grad_(), key.to(dtype).requires_grad_()
