"""Single weights: scored by |theta dL / dtheta|, compared, and set to zero."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from simcse_fast.sparsity.layouts import check_same_shape, units_of
from simcse_fast.sparsity.scores import LOSSES, TINY, cached_gradients, of_embeddings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from simcse_fast.sparsity.calibration import Calibration
    from simcse_fast.sparsity.embedder import Embedder
    from simcse_fast.sparsity.layouts import Layout

    Each = list[Tensor]  # one of each matrix


class Unstructured:
    """The weights of all Linears of the layers; see `Structured` for the methods.

    Args:
        embedder: the model.
        layout: of its family, where that is not known.
    """

    def __init__(self, embedder: Embedder, layout: Layout | None) -> None:
        self.embedder, self.layout = embedder, layout
        self.matrices = matrices(embedder.transformer, layout)

    def scores(self, data: Calibration, balance: float, *, progress: bool) -> Each:
        """Of each matrix: |theta dL / dtheta| of both losses, each of unit length, balanced."""
        gradients = self._gradients(data, progress=progress)
        found = [torch.zeros(weight.shape) for weight in self.matrices]
        for loss, share in zip(LOSSES, (balance, 1 - balance), strict=True):
            for total, weight, gradient in zip(found, self.matrices, gradients[loss], strict=True):
                each = (weight.detach().float().cpu() * gradient).abs_()
                total.add_(each, alpha=share / (float(each.norm()) + TINY))
        return found

    def _gradients(self, data: Calibration, *, progress: bool) -> dict[str, Each]:
        """DL / dtheta over the whole set, by cached gradients."""
        sums = {loss: [torch.zeros(weight.shape) for weight in self.matrices] for loss in LOSSES}
        with self.embedder.frozen():
            _, upstream = of_embeddings(self.embedder.all(data.texts), data)
            for weight in self.matrices:
                weight.requires_grad_()
            every = cached_gradients(
                *(self.embedder, data, upstream, lambda _: nullcontext(self.matrices)),
                progress=progress,
            )
            for loss, found in every:
                for total, gradient in zip(sums[loss], found, strict=True):
                    total.add_(gradient.float().cpu())
        return sums

    def magnitudes(self) -> Each:
        """Scores by the size of weights, of unit length in each matrix."""
        sizes = [weight.detach().float().abs().cpu() for weight in self.matrices]
        return [size / (size.norm() + TINY) for size in sizes]

    def random(self, seed: int) -> Each:
        """Scores by chance."""
        g = torch.Generator().manual_seed(seed)
        return [torch.rand(weight.shape, generator=g) for weight in self.matrices]

    def select(self, scores: Each, sparsity: float) -> Each:
        """Masks of what stays: all but the lowest share of all matrices together."""
        flat = torch.cat([score.flatten() for score in scores])
        kept = torch.ones_like(flat, dtype=torch.bool)
        kept[flat.argsort(stable=True)[: round(sparsity * len(flat))]] = False
        parts = torch.split(kept, [score.numel() for score in scores])
        return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]

    def removed(self, selection: Each) -> dict[str, float]:
        """Share of the weights that goes."""
        kept = sum(int(mask.sum()) for mask in selection)
        return {"weights": 1 - kept / sum(mask.numel() for mask in selection)}

    @contextmanager
    def without(self, selection: Each) -> Iterator[None]:
        """The model without what the selection drops."""
        kept = [weight.detach().clone() for weight in self.matrices]
        try:
            with torch.no_grad():
                for weight, mask in zip(self.matrices, selection, strict=True):
                    weight.mul_(mask.to(weight.device))
            with self.embedder.frozen():
                yield
        finally:
            with torch.no_grad():
                for weight, whole in zip(self.matrices, kept, strict=True):
                    weight.copy_(whole)

    def apply(self, transformer: Any, selection: Each) -> None:
        """Zero it in a model of the same shape; without a gradient it stays there in training."""
        check_same_shape(
            transformer, units_of(self.embedder.transformer, self.layout), self.layout, "model"
        )
        for weight, mask in zip(matrices(transformer, self.layout), selection, strict=True):
            with torch.no_grad():
                weight.mul_(mask.to(weight.device))
            if weight.requires_grad:
                hook: Any = weight.register_hook
                hook(lambda gradient, mask=mask: gradient * mask.to(gradient.device))


def matrices(transformer: Any, layout: Layout | None) -> list[Tensor]:
    """The weights of all Linears of a model's layers."""
    return [
        linear.weight
        for layer in units_of(transformer, layout).layers
        for linear in layer.module.modules()
        if isinstance(linear, nn.Linear)
    ]
