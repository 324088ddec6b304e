"""The loss of one batch: embed all columns, contrast them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from simcse_fast.gradient_cache import GradientCache
from simcse_fast.losses.info_nce import info_nce
from simcse_fast.training.masking import TARGETS
from simcse_fast.training.textbook import textbook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simcse_fast.training.masking import Masking

TOLD_ROWS = 10  # rows that a message names


@dataclass(frozen=True)
class Contrast:
    """How embeddings are contrasted, and what memory embedding them may take."""

    temperature: float
    symmetric: bool
    mini_batch_tokens: int | None
    memory_share: float
    processes: int
    loss: str = "info_nce"


class Objective(nn.Module):
    """InfoNCE of anchors with their positives among all keys of the batch.

    With masking, a weight times the mean loss of the batch's hidden tokens is added.

    It holds the model, as the losses of sentence-transformers do, so that the trainer finds the
    parameters and puts the wrapped model in.
    """

    def __init__(
        self,
        model: nn.Module,
        contrast: Contrast,
        *,
        static: bool,
        masking: Masking | None = None,
    ) -> None:
        super().__init__()
        self.model, self.contrast, self.static = model, contrast, static
        self.masking = masking  # its head is in the model
        self.mlm_loss: Tensor | None = None  # of the last batch, without the weight
        self.padded_tokens = 0  # of the last batch
        self.embeddings: list[Tensor] = []  # of the last batch, for a message
        self.cache: GradientCache | None = None

    def forward(self, columns: Sequence[dict[str, Tensor]], batch: dict[str, Any]) -> Tensor:
        """The loss of this process's rows against the keys of all processes."""
        # Masked columns take the same way: a wrapped model may synchronise only once a step.
        every = [*columns, *batch.get("masked", [])]
        embeddings = self.together(columns) if self.static else self.cached(every)
        embeddings, sums = embeddings[: len(columns)], embeddings[len(columns) :]
        self.embeddings = [embedding.detach() for embedding in embeddings]
        # One column is both: its views are under the same dropout mask, and so the same.
        query, *keys = embeddings if len(columns) > 1 else [*embeddings] * 2
        contrast = textbook if self.contrast.loss == "textbook" else info_nce
        loss = contrast(
            query,
            torch.cat(keys),
            temperature=self.contrast.temperature,
            symmetric=self.contrast.symmetric,
            query_ids=batch.get("query_ids"),
            key_ids=batch.get("key_ids"),
            process_group="world" if self.contrast.processes > 1 else None,
        )
        if self.masking is None:
            return loss
        # The mean of all processes' losses is to be the mean over all of their tokens.
        mlm_loss = torch.cat(sums).sum() * (self.contrast.processes / max(batch["guessed"], 1))
        self.mlm_loss = mlm_loss.detach()
        return torch.add(loss, mlm_loss, alpha=self.masking.weight)

    def embed(self, features: dict[str, Tensor]) -> Tensor:
        """Embeddings of one batch of features, which a model would write into.

        Of features with targets, the sums of the losses of the tokens to guess.
        """
        features = dict(features)
        targets = features.pop(TARGETS, None)
        with nullcontext() if self.masking is None else self.masking.head.guessing(targets):
            embedding: Tensor = self.model(features)["sentence_embedding"]
        return embedding

    def cached(self, columns: Sequence[dict[str, Tensor]]) -> tuple[Tensor, ...]:
        """A transformer's, in mini-batches under a memory budget."""
        if self.cache is None or self.cache.model is not self.model:
            self.cache = GradientCache(
                self.embed,
                model=self.model,
                mini_batch_tokens=self.contrast.mini_batch_tokens,
                memory_share=self.contrast.memory_share,
            )
        embeddings = self.cache(*columns)
        self.padded_tokens = self.cache.statistics.padded_tokens
        return embeddings

    def together(self, columns: Sequence[dict[str, Tensor]]) -> tuple[Tensor, ...]:
        """A static model's, all columns in one pass."""
        ids = [column["input_ids"] for column in columns]
        before, offsets = 0, []
        for column in columns:
            offsets.append(column["offsets"] + before)
            before += len(column["input_ids"])
        self.padded_tokens = before
        embeddings = self.embed({"input_ids": torch.cat(ids), "offsets": torch.cat(offsets)})
        return torch.split(embeddings, [len(column["offsets"]) for column in columns])

    def not_finite(self, rows: Tensor) -> str:
        """Rows of the data whose embeddings hold NaN or infinity, as a message tells them."""
        parts = [~torch.isfinite(embedding).all(1) for embedding in self.embeddings]
        wrong = rows[torch.stack(parts).any(0)].tolist()
        if not wrong:
            return "all embeddings are finite"
        more = f" and {len(wrong) - TOLD_ROWS} more" if len(wrong) > TOLD_ROWS else ""
        listed = ", ".join(map(str, sorted(wrong)[:TOLD_ROWS]))
        return f"embeddings of rows {listed}{more} are not finite"
