"""The cached losses of sentence-transformers: its own classes, our gradient cache inside."""

from __future__ import annotations

import functools
import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import deprecated

from simcse_fast.batch_run import TOKENS
from simcse_fast.gradient_cache import GradientCache
from simcse_fast.losses.sentence_transformers import MultipleNegativesRankingLoss, originals
from simcse_fast.minibatches import FLAT, rows_of, width_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from simcse_fast.gradient_cache import Embedded

HYPERPARAMETERS = (
    *("scale", "similarity_fct", "gather_across_devices", "directions", "partition_mode"),
    *("hardness_mode", "hardness_strength"),
)


COUNTS = ("num_images_per_sample", "num_videos_per_sample")


class _Cached(nn.Module):
    """Gradient cache and fused loss, put before the original's among the bases of a loss."""

    memory_share = 0.5  # of free memory, for graphs that need not be made twice
    memory_limit: int | None = None  # the same in bytes, instead of a share
    # Set by the original's constructor.
    model: nn.Module
    mini_batch_size: int
    mini_batch_num_tokens: int | None
    show_progress_bar: bool
    loss: MultipleNegativesRankingLoss
    _cache: GradientCache | None = None

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of a batch whose embeddings are there.

        Args:
            reps: for each column, (rows, D) embeddings in any number of pieces.
            labels: not read; the positive of an anchor is the row of the same number.
            with_backward: give the pieces their gradients, and return the bare value.

        Returns:
            0-d tensor, fp32 (fp64 for fp64 input).
        """
        loss = self.loss.fused([torch.cat(r) if len(r) > 1 else r[0] for r in reps])
        if loss is None:
            return super().calculate_loss(reps, labels, with_backward=with_backward)  # type: ignore[misc, no-any-return]
        if with_backward:
            loss.backward()  # type: ignore[no-untyped-call]
            loss = loss.detach()
        return loss

    def forward_cached(
        self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None
    ) -> Tensor:
        """The loss of one batch, which is embedded in mini-batches.

        Args:
            sentence_features: of each column, what the model takes.
            labels: passed on to `calculate_loss`.

        Returns:
            0-d tensor; its backward pass carries the gradients on to the model.

        Raises:
            ValueError: `calculate_loss` does not read one of the columns.
        """
        columns = list(sentence_features)
        if not all(map(_rows_are_samples, columns)):  # images of several sizes, say
            return super().forward_cached(columns, labels)  # type: ignore[misc, no-any-return]
        embedded = self._cache_for(columns).embed(columns)
        if not torch.is_grad_enabled():
            return self.calculate_loss([[x] for x in embedded.columns], labels)
        leaves = [_leaf(x) for x in embedded.columns]
        loss = self.calculate_loss([[x] for x in leaves], labels, with_backward=True)
        if unread := [str(number) for number, x in enumerate(leaves) if x.grad is None]:
            raise ValueError(
                f"The loss computation of {type(self).__name__} did not use input column(s) "
                f"{', '.join(unread)}; remove them from the dataset."
            )
        loss = loss.detach().requires_grad_()
        gradients = [x.grad for x in leaves if x.grad is not None]  # all of them
        loss.register_hook(functools.partial(_carry_back, embedded, gradients))  # type: ignore[no-untyped-call]
        return loss

    def _cache_for(self, columns: Sequence[dict[str, Any]]) -> GradientCache:
        """Mini-batches no larger than the original's at their widest."""
        # Nothing of the cache points back here: it holds gigabytes, which go with the loss.
        encode = functools.partial(_embed, self.model)
        if self._cache is None:
            self._cache = GradientCache(
                encode, memory_share=self.memory_share, memory_limit=self.memory_limit
            )
        cache = self._cache
        flat = any(FLAT in column for column in columns)  # whose width is that of all samples
        widest = 0 if flat else max(map(width_of, columns))
        cache.encode, cache.model, cache.progress = encode, self.model, self.show_progress_bar
        most = TOKENS.get(cache.device(columns).type, math.inf)
        tokens = self.mini_batch_num_tokens or min(self.mini_batch_size * widest, most)
        cache.mini_batch_tokens = int(tokens) or None
        cache.mini_batch_size = None if widest else self.mini_batch_size
        return cache


def _rows_are_samples(column: dict[str, Any]) -> bool:
    if any(name in column for name in COUNTS):  # of images or videos in each sample
        return False
    try:
        return rows_of(column) > 0
    except ValueError:
        return False


def _embed(model: nn.Module, features: dict[str, Any]) -> Tensor:
    embeddings: Tensor = model(features)["sentence_embedding"]
    return embeddings


def _leaf(x: Tensor) -> Tensor:
    """The same embeddings, to be given a gradient; fp16 could not hold that of a large batch."""
    return (x.float() if x.dtype == torch.float16 else x.detach()).requires_grad_()


def _carry_back(embedded: Embedded, gradients: list[Tensor], upstream: Tensor) -> None:
    embedded.backward([gradient * upstream for gradient in gradients])


def _constructor(original: type) -> Callable[..., None]:
    """The original's constructor, which a StaticEmbedding passes too."""

    @functools.wraps(original.__init__)  # type: ignore[misc]
    def constructor(self: _Cached, model: nn.Module, *arguments: Any, **options: Any) -> None:
        # The original refuses static models, whose batches it cannot cut; it gets an empty one.
        original.__init__(self, nn.Sequential(nn.Identity()), *arguments, **options)  # type: ignore[misc]
        self.model = model
        chosen = {name: getattr(self, name) for name in HYPERPARAMETERS if hasattr(self, name)}
        self.loss = MultipleNegativesRankingLoss(model, **chosen)

    return constructor


class CachedMultipleNegativesRankingLoss(
    _Cached,
    originals.CachedMultipleNegativesRankingLoss,  # type: ignore[misc]
):
    """sentence-transformers' loss of the same name: batches of any size in bounded memory.

    The loss of `MultipleNegativesRankingLoss` over a batch that is embedded in mini-batches, and
    its gradient. Rows of like length share a mini-batch; graphs that fit the free memory are kept,
    the rest are made again in the backward pass, with the same random numbers; the loss is fused.

    Arguments, `get_config_dict`, `citation` and errors are those of the installed
    sentence-transformers, whose class this one extends. A mini-batch holds at most
    `mini_batch_num_tokens` tokens, or as many as `mini_batch_size` of the widest rows have, of
    these on a CPU at most 1,024. Models with a StaticEmbedding are welcome. The attribute
    `memory_share` (0.5) bounds the graphs that are kept by a share of the memory that is free at
    the first batch, `memory_limit` by bytes; set them before the first batch.

    Reference: Gao et al. 2021, arXiv 2101.06983.

    Example:
        >>> loss = CachedMultipleNegativesRankingLoss(torch.nn.Identity(), scale=1.0)
        >>> columns = [{"sentence_embedding": torch.eye(4)} for _ in range(2)]
        >>> with torch.no_grad():
        ...     round(loss(columns, None).item(), 4)  # log(1 + 3 / e)
        0.7437
    """

    __init__ = _constructor(originals.CachedMultipleNegativesRankingLoss)


with warnings.catch_warnings():
    # The original warns whoever extends it; the warning below is for those who use it.
    warnings.simplefilter("ignore", DeprecationWarning)

    class CachedMultipleNegativesSymmetricRankingLoss(
        _Cached,
        originals.CachedMultipleNegativesSymmetricRankingLoss,  # type: ignore[misc]
    ):
        """sentence-transformers' loss of the same name: the mean of both directions, cached.

        The same as `CachedMultipleNegativesRankingLoss` with directions query_to_doc and
        doc_to_query and partition_mode "per_direction", which newer releases recommend.

        Example:
            >>> loss = CachedMultipleNegativesSymmetricRankingLoss(torch.nn.Identity(), scale=1.0)
            >>> columns = [{"sentence_embedding": torch.eye(4)} for _ in range(2)]
            >>> with torch.no_grad():
            ...     round(loss(columns, None).item(), 4)  # log(1 + 3 / e)
            0.7437
        """

        __init__ = _constructor(originals.CachedMultipleNegativesSymmetricRankingLoss)


if hasattr(CachedMultipleNegativesSymmetricRankingLoss, "__deprecated__"):
    deprecated(CachedMultipleNegativesSymmetricRankingLoss.__deprecated__)(
        CachedMultipleNegativesSymmetricRankingLoss
    )
