"""The in-batch losses of sentence-transformers: its own classes, the fused computation inside."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn
from typing_extensions import deprecated

from simcse_fast.kernels.infonce.terms import Block, Own
from simcse_fast.losses.info_nce import block_softmax, info_nce

try:
    from sentence_transformers import SentenceTransformer, SimilarityFunction, util
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "simcse_fast.losses: these losses extend the classes of sentence-transformers; "
        "run `pip install 'simcse-fast[encoders]'`.",
        name=error.name,
    ) from error

try:
    from sentence_transformers.sentence_transformer import losses as originals
except ModuleNotFoundError:  # sentence-transformers < 5.4
    from sentence_transformers import losses as originals

if TYPE_CHECKING:
    from collections.abc import Callable


class _Fused(nn.Module):
    """The fused computation, put before the original's among the bases of a loss."""

    # Set by the original's constructor; the values are for releases without the option.
    scale: float
    similarity_fct: Callable[[Tensor, Tensor], Tensor]
    gather_across_devices: bool = False
    directions: tuple[str, ...] = ("query_to_doc",)
    partition_mode: str = "joint"
    hardness_mode: str | None = None
    hardness_strength: float = 0.0
    _warned = False

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """The loss of one batch.

        Args:
            embeddings: anchors, positives and any number of negatives, (M, D) each.
            labels: not read; the positive of an anchor is the row of the same number.

        Returns:
            0-d tensor, fp32 (fp64 for fp64 input).
        """
        normalize = _normalizes(self.similarity_fct)
        reason = self._why_not_fused(embeddings)
        if normalize is None or reason:
            self._warn(reason or "similarity_fct is neither cos_sim nor dot_score")
            return super().compute_loss_from_embeddings(embeddings, labels)  # type: ignore[misc, no-any-return]
        if self.gather_across_devices:  # alone: the embeddings as they are, and the original's hint
            embeddings = [util.all_gather_with_grad(embedding) for embedding in embeddings]
        return self._loss(embeddings, normalize)

    def _why_not_fused(self, embeddings: list[Tensor]) -> str:
        if isinstance(self.scale, Tensor):
            return "scale is a tensor"
        together = distributed.is_available() and distributed.is_initialized()
        if self.gather_across_devices and together and distributed.get_world_size() > 1:
            return "gather_across_devices=True joins several processes, which is not fused yet"
        kinds = {(x.shape, x.dtype, x.device, x.layout) for x in embeddings}
        if len(embeddings) == 1 or len(kinds) != 1:
            return "the columns are not two or more of one shape, type and device"
        if embeddings[0].ndim != 2 or embeddings[0].layout != torch.strided:  # noqa: PLR2004
            return "the embeddings are not dense (M, D) matrices"
        return "" if embeddings[0].numel() else "the batch is empty"

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self).__name__}: sentence-transformers' own computation runs, not the "
                f"fused one: {reason}.",
                stacklevel=3,
            )

    def _loss(self, embeddings: list[Tensor], normalize: bool) -> Tensor:
        queries, positives = embeddings[:2]
        docs = torch.cat(embeddings[1:])
        rows, scale = len(queries), float(self.scale)
        forward = Block(0, 1, rows, Own.POSITIVE, *self._hardness())
        if self.partition_mode == "joint" or "doc_to_query" not in self.directions:
            blocks = {
                "query_to_doc": forward,
                "query_to_query": Block(0, 0, rows, Own.LEFT_OUT),
                "doc_to_query": Block(1, 0, rows, Own.KEPT),  # the positive counts once more
                "doc_to_doc": Block(1, 1, rows, Own.LEFT_OUT),
            }
            chosen = tuple(block for name, block in blocks.items() if name in self.directions)
            return block_softmax([queries, docs], chosen, scale=scale, normalize=normalize)
        if len(docs) == rows and not forward.hardness:
            return info_nce(
                queries, docs, temperature=1 / scale, symmetric=True, normalize=normalize
            )
        backward = Block(0, 1, rows)
        return 0.5 * (
            block_softmax([queries, docs], (forward,), scale=scale, normalize=normalize)
            + block_softmax([positives, queries], (backward,), scale=scale, normalize=normalize)
        )

    def _hardness(self) -> tuple[float, float]:
        """Hardness of the documents of other rows, and of the row's own hard negatives."""
        others = self.hardness_mode in {"in_batch_negatives", "all_negatives"}
        own = self.hardness_mode in {"hard_negatives", "all_negatives"}
        return float(self.hardness_strength * others), float(self.hardness_strength * own)


def _normalizes(similarity_fct: Callable[[Tensor, Tensor], Tensor]) -> bool | None:
    """True for the cosine, False for the dot product, None for anything else."""
    if getattr(similarity_fct, "__func__", None) is SentenceTransformer.similarity:
        name = similarity_fct.__self__.similarity_fn_name  # type: ignore[attr-defined]
        similarity_fct = SimilarityFunction.to_similarity_fn(name)
    if similarity_fct in (util.cos_sim, util.pytorch_cos_sim):
        return True
    return False if similarity_fct is util.dot_score else None


class MultipleNegativesRankingLoss(_Fused, originals.MultipleNegativesRankingLoss):  # type: ignore[misc]
    """sentence-transformers' loss of the same name, without its M x N score matrices.

    loss_i = log sum_j exp(scale * sim(q_i, d_j)) - scale * sim(q_i, d_i), averaged over the rows,
    with the further columns that `directions` adds and the terms that `hardness_mode` adds.

    Arguments, `get_config_dict`, `citation` and errors are those of the installed
    sentence-transformers, whose class this one extends. A `similarity_fct` other than `cos_sim`
    and `dot_score`, and `gather_across_devices=True` on several processes, take the original's
    computation, with one warning.

    Reference: Henderson et al. 2017, arXiv 1705.00652.

    Example:
        >>> loss = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=1.0)
        >>> anchors = positives = {"sentence_embedding": torch.eye(4)}
        >>> round(loss([anchors, positives], None).item(), 4)  # log(1 + 3 / e)
        0.7437
    """


with warnings.catch_warnings():
    # The original warns whoever extends it; the warning below is for those who use it.
    warnings.simplefilter("ignore", DeprecationWarning)

    class MultipleNegativesSymmetricRankingLoss(
        _Fused,
        originals.MultipleNegativesSymmetricRankingLoss,  # type: ignore[misc]
    ):
        """sentence-transformers' loss of the same name: the mean of both directions.

        The same as `MultipleNegativesRankingLoss` with directions query_to_doc and doc_to_query
        and partition_mode "per_direction", which newer releases recommend in its place.

        Example:
            >>> loss = MultipleNegativesSymmetricRankingLoss(torch.nn.Identity(), scale=1.0)
            >>> anchors = positives = {"sentence_embedding": torch.eye(4)}
            >>> round(loss([anchors, positives], None).item(), 4)  # log(1 + 3 / e)
            0.7437
        """

        directions = ("query_to_doc", "doc_to_query")
        partition_mode = "per_direction"


if hasattr(MultipleNegativesSymmetricRankingLoss, "__deprecated__"):
    deprecated(MultipleNegativesSymmetricRankingLoss.__deprecated__)(
        MultipleNegativesSymmetricRankingLoss
    )
