"""What a model is judged by: pairs with scores, tokenized once for all runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from simcse_fast.evaluation.correlation import cosines, spearman
from simcse_fast.evaluation.space import ALIKE, distinct
from simcse_fast.gradient_cache import GradientCache
from simcse_fast.metrics import alignment, uniformity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentence_transformers import SentenceTransformer


class Probe:
    """Spearman's correlation x 100 of cosines with scores, alignment and uniformity.

    Args:
        model: whose tokenizer and longest text all models share.
        first: (N,) sentences.
        second: (N,) sentences.
        scores: (N,) how alike they are; pairs above 4 are positive.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        first: Sequence[str],
        second: Sequence[str],
        scores: Sequence[float],
    ) -> None:
        texts = distinct([*first, *second])
        place = {text: row for row, text in enumerate(texts)}
        self.first = np.array([place[text] for text in first])
        self.second = np.array([place[text] for text in second])
        self.scores = np.array(scores)
        self.positive = self.scores > ALIKE
        name = model.default_prompt_name
        found = model.preprocess(texts, prompt=model.prompts[name] if name else None)
        self.features = {key: x for key, x in found.items() if isinstance(x, Tensor)}

    def __call__(self, model: SentenceTransformer) -> dict[str, float | None]:
        """Of a model in evaluation mode; None where there is no order, or no positive pair."""
        embeddings = self.embed(model)
        x, y = embeddings[self.first], embeddings[self.second]
        found = {"spearman": spearman(cosines(x.numpy(), y.numpy()), self.scores)}
        found["alignment"] = math.nan
        if self.positive.any():
            found["alignment"] = float(alignment(x[self.positive], y[self.positive]))
        found["uniformity"] = float(uniformity(embeddings))
        return {name: value if math.isfinite(value) else None for name, value in found.items()}

    def embed(self, model: SentenceTransformer) -> Tensor:
        """(distinct sentences, D) fp32 on the CPU, in mini-batches of like length."""

        def embed(features: dict[str, Any]) -> Tensor:
            found: Tensor = model(dict(features))["sentence_embedding"]
            return found

        features = {name: x.to(model.device) for name, x in self.features.items()}
        with torch.inference_mode():
            (embeddings,) = GradientCache(embed, model=model)(features)
            return embeddings[:, : model.truncate_dim].float().cpu()
