"""A training step as others take it. Each takes the features of two columns, ends in gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sentence_transformers.sentence_transformer import losses as originals
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import get_device_states, set_device_states

from simcse_fast import losses

SCALE = 20.0
CHUNK = 32  # rows, the default of both peers
Features = dict[str, Any]
Loss = Callable[[list[Features], Any], Tensor]


class GradCache:
    """The algorithm of arXiv 2101.06983: chunks of rows as they come, one loss over all."""

    def __init__(self, model: nn.Module, rows: int = CHUNK) -> None:
        self.model, self.rows = model, rows

    def _chunks(self, features: Features) -> list[Features]:
        count = len(features["input_ids"])
        return [
            {name: x[begin : begin + self.rows] for name, x in features.items()}
            for begin in range(0, count, self.rows)
        ]

    def __call__(self, columns: list[Features], _labels: Any = None) -> Tensor:
        """The loss; its backward pass embeds every chunk again."""
        tensors = ("input_ids", "attention_mask", "token_type_ids")
        chunks = [
            self._chunks({name: column[name] for name in tensors if name in column})
            for column in columns
        ]
        states, embeddings = [], []
        with torch.no_grad():
            for column in chunks:
                pieces = []
                for chunk in column:
                    states.append((torch.get_rng_state(), *get_device_states(chunk["input_ids"])))
                    pieces.append(self.model(dict(chunk))["sentence_embedding"])
                embeddings.append(torch.cat(pieces).requires_grad_())
        query, key = embeddings
        logits = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).T * SCALE
        loss = F.cross_entropy(logits, torch.arange(len(query), device=query.device))
        gradients = torch.autograd.grad(loss, embeddings)
        loss = loss.detach().requires_grad_()
        loss.register_hook(lambda upstream: self._again(chunks, states, gradients, upstream))
        return loss

    def _again(
        self, chunks: list[list[Features]], states: list[Any], gradients: Any, upstream: Tensor
    ) -> None:
        outside, states = torch.get_rng_state(), iter(states)
        with torch.enable_grad():
            for column, gradient in zip(chunks, gradients, strict=True):
                for chunk, piece in zip(column, gradient.split(self.rows), strict=True):
                    cpu, *device = next(states)
                    torch.set_rng_state(cpu)
                    set_device_states(*device)
                    embeddings = self.model(dict(chunk))["sentence_embedding"]
                    embeddings.backward(piece * upstream)
        torch.set_rng_state(outside)


def ours(model: nn.Module, share: float) -> Loss:
    """The drop-in, with a share of the free memory for graphs."""
    loss = losses.CachedMultipleNegativesRankingLoss(model, scale=SCALE)
    loss.memory_share = share
    return loss  # type: ignore[no-any-return]


def stock(model: nn.Module, **options: int) -> Loss:
    """The original with some mini-batch."""
    return originals.CachedMultipleNegativesRankingLoss(model, scale=SCALE, **options)  # type: ignore[no-any-return]


OURS, KEPT = "simcse_fast, recomputed", "simcse_fast, graphs kept"
STOCK, STOCK_LARGE, PLAIN = "stock cached 32", "stock cached 128", "stock plain"
HEAVY = (STOCK_LARGE, PLAIN)  # gigabytes at work
MAKERS: dict[str, Callable[[nn.Module], Loss]] = {
    OURS: lambda model: ours(model, 0.0),
    KEPT: lambda model: ours(model, 0.65),
    STOCK: lambda model: stock(model, mini_batch_size=CHUNK),
    STOCK_LARGE: lambda model: stock(model, mini_batch_size=128),
    "stock cached, 1,024 tokens": lambda model: stock(model, mini_batch_num_tokens=1024),
    "GradCache": GradCache,
    PLAIN: lambda model: originals.MultipleNegativesRankingLoss(model, scale=SCALE),
}


class Padding(nn.Sequential):
    """Counts the tokens that a model would be given, padding included, and computes nothing."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.padded, self.real = 0, 0

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Embeddings of the right number."""
        self.padded += features["input_ids"].numel()
        self.real += int(features["attention_mask"].sum())
        return {"sentence_embedding": torch.ones(len(features["input_ids"]), 2)}
