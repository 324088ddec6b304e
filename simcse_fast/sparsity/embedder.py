"""Embeddings with their graph, for models that are taken apart while they run."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn

from simcse_fast.attribution.short_attention import ShortAttention
from simcse_fast.encoding import check_finite
from simcse_fast.errors import InputError
from simcse_fast.pair_encoder import PairEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BATCH = 64  # sentences at once


class Embedder:
    """A SentenceTransformer, or a pair (transformers model, tokenizer), as one function.

    Raises:
        TypeError: it is neither.
        InputError: a SentenceTransformer that does not begin with a transformer.
    """

    def __init__(self, model: Any, pooling: str | None = None) -> None:
        if isinstance(model, SentenceTransformer):
            if pooling is not None:
                raise InputError(
                    f"pooling: a SentenceTransformer has its own, got {pooling!r}; leave it out"
                )
            if not isinstance(model[0], Transformer):
                raise InputError(
                    "model: expected a SentenceTransformer that begins with a Transformer, got "
                    f"{type(model[0]).__name__}"
                )
            self.transformer: nn.Module = model[0].model
            self.modules: nn.Module = model
            name = model.default_prompt_name
            self.prompt = model.prompts[name] if name else None
            self._embed = self._by_modules
        elif isinstance(model, tuple) and len(model) == 2:  # noqa: PLR2004 - a pair
            pair = PairEncoder(*model, pooling=pooling or "mean")
            self.transformer = self.modules = pair.transformer
            self._embed = pair.embed
        else:
            raise TypeError(
                "model: expected a SentenceTransformer or a pair (transformers model, tokenizer), "
                f"got {type(model).__name__}."
            )
        self.model = model

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B, D), with a graph where gradients are asked for."""
        with ShortAttention():
            return self._embed(list(texts)).float()

    def all(self, texts: Sequence[str]) -> Tensor:
        """(N, D) on the CPU, without graphs; texts in any order."""
        groups = batches(texts)
        with torch.no_grad():
            found = torch.cat([self([texts[row] for row in rows]).cpu() for rows in groups])
        order = torch.tensor([row for rows in groups for row in rows])
        embeddings = found[order.argsort()]
        check_finite(embeddings.numpy(), texts)
        return embeddings

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Without dropout and gradients of parameters; afterwards as it was."""
        training = [(module, module.training) for module in self.modules.modules()]
        learning = [(p, p.requires_grad) for p in self.modules.parameters()]
        try:
            for module, _ in training:
                module.training = False
            for parameter, _ in learning:
                parameter.requires_grad_(False)
            yield
        finally:
            for module, was in training:
                module.training = was
            for parameter, did in learning:
                parameter.requires_grad_(did)

    def _by_modules(self, texts: list[str]) -> Tensor:
        model = self.model
        features = {
            name: value.to(model.device) if isinstance(value, Tensor) else value
            for name, value in model.preprocess(texts, prompt=self.prompt).items()
        }
        embeddings: Tensor = model(features)["sentence_embedding"]
        return embeddings[:, : model.truncate_dim]


def batches(texts: Sequence[str], size: int = BATCH) -> list[list[int]]:
    """Places of the texts, those of similar length together, the longest first."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]), reverse=True)
    return [order[begin : begin + size] for begin in range(0, len(order), size)]
