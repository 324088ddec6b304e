"""The in-batch losses of sentence-transformers: its own classes, the fused computation inside."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from typing_extensions import deprecated

from simcse_fast import collectives, distributed
from simcse_fast.backend import choose
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

    from simcse_fast.distributed import Shares

__all__ = [
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
    "originals",
]


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
        loss = self.fused(embeddings)
        if loss is None:
            return super().compute_loss_from_embeddings(embeddings, labels)  # type: ignore[misc, no-any-return]
        return loss

    def fused(self, embeddings: list[Tensor]) -> Tensor | None:
        """The loss of one batch; None, with one warning, for what only the original computes."""
        normalize = _normalizes(self.similarity_fct)
        reason = "similarity_fct is neither cos_sim nor dot_score"
        if normalize is None or (reason := self._why_not_fused(embeddings)):
            self._warn(reason)
            return None
        return self._loss(embeddings, normalize)

    def _why_not_fused(self, embeddings: list[Tensor]) -> str:
        if isinstance(self.scale, Tensor):
            return "scale is a tensor"
        reason = _why_unfit(embeddings)
        if self._gathers():
            if reason:
                _share(embeddings, [torch.zeros(1, 1)], fused=False)  # all ranks, or an error
        elif not reason and not embeddings[0].numel():
            return "the batch is empty"
        return reason

    def _gathers(self) -> bool:
        return self.gather_across_devices and distributed.world_size() > 1

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self).__name__}: sentence-transformers' own computation runs, not the "
                f"fused one: {reason}.",
                stacklevel=3,
            )

    def _loss(self, embeddings: list[Tensor], normalize: bool) -> Tensor:
        batch = self._batch(embeddings)
        forward = Block(0, batch.docs, batch.period, Own.POSITIVE, *self._hardness())
        scale = float(self.scale)
        if self.partition_mode == "joint" or "doc_to_query" not in self.directions:
            # In doc_to_query the positive counts once more.
            queries, docs, period = batch.queries, batch.docs, batch.period
            blocks = {
                "query_to_doc": forward,
                "query_to_query": Block(0, queries, period, Own.LEFT_OUT),
                "doc_to_query": Block(1, queries, period, Own.KEPT),
                "doc_to_doc": Block(1, docs, period, Own.LEFT_OUT),
            }
            chosen = tuple(block for name, block in blocks.items() if name in self.directions)
            return batch.softmax(chosen, scale, normalize)
        if len(embeddings) == 2 and not forward.hardness and batch.labels is None:  # noqa: PLR2004
            return info_nce(*embeddings, temperature=1 / scale, symmetric=True, normalize=normalize)
        backward = Block(batch.positives, batch.queries, batch.period)
        return 0.5 * (
            batch.softmax((forward,), scale, normalize)
            + batch.softmax((backward,), scale, normalize)
        )

    def _batch(self, embeddings: list[Tensor]) -> _Batch:
        if self._gathers():
            return _batch_of_ranks(
                embeddings, not {"query_to_query", "doc_to_query"}.isdisjoint(self.directions)
            )
        if self.gather_across_devices:  # alone: the embeddings as they are, and the original's hint
            embeddings = [util.all_gather_with_grad(embedding) for embedding in embeddings]
        docs = torch.cat(embeddings[1:])
        return _Batch([embeddings[0], docs, embeddings[1]], 2, 0, 1, len(embeddings[0]))

    def _hardness(self) -> tuple[float, float]:
        """Hardness of the documents of other rows, and of the row's own hard negatives."""
        others = self.hardness_mode in {"in_batch_negatives", "all_negatives"}
        own = self.hardness_mode in {"hard_negatives", "all_negatives"}
        return float(self.hardness_strength * others), float(self.hardness_strength * own)


@dataclass
class _Batch:
    """Own anchors, and the columns that they are compared with."""

    tensors: list[Tensor]  # (rows, D) each: own anchors, a matrix that own positives begin, ...
    positives: int  # which of them is the own positives and nothing else
    queries: int  # ... the anchors of all samples
    docs: int  # ... the documents of all samples, column after column
    period: int  # samples
    labels: Tensor | None = None  # (rows,) the sample of each own row, where it is not its number
    factor: float | None = None  # of the sum of the rows' losses; None for their mean

    def softmax(self, blocks: tuple[Block, ...], scale: float, normalize: bool) -> Tensor:
        """The loss over the columns of some blocks; tensors that none of them uses are spared."""
        used = list(dict.fromkeys([number for b in blocks for number in (b.anchor, b.key)]))
        tensors = [self.tensors[number] for number in used]
        if self.labels is not None and not len(self.labels):
            return collectives.nothing((), *tensors)
        if used != list(range(len(used))):
            blocks = tuple(
                replace(b, anchor=used.index(b.anchor), key=used.index(b.key)) for b in blocks
            )
        return block_softmax(
            tensors,
            blocks,
            scale=scale,
            normalize=normalize,
            labels=self.labels,
            factor=self.factor,
        )


@distributed.outside_graphs
def _batch_of_ranks(embeddings: list[Tensor], with_queries: bool) -> _Batch:
    """The own rows, and the columns of all ranks; as sentence-transformers' gathering gives it."""
    gathered = embeddings if with_queries else embeddings[1:]
    shares = _share(embeddings, gathered, fused=True)
    wide = choose("auto", embeddings[0].device) != "triton"  # the others compute in fp32 at least
    everything = collectives.gather(shares, gathered, wide=wide)
    own = [x.to(everything[0].dtype) for x in embeddings[:2]]
    queries, docs = everything[: bool(with_queries)], everything[bool(with_queries) :]
    labels = torch.arange(len(own[0]), device=own[0].device) + shares.before
    tensors, period = [*own, torch.cat(docs), *queries], sum(shares.columns)
    return _Batch(tensors, 1, 3, 2, period, labels, shares.mean_factor)


@distributed.outside_graphs
def _share(embeddings: list[Tensor], gathered: list[Tensor], *, fused: bool) -> Shares:
    ranks = distributed.ranks_of("world")
    with distributed.announced(ranks):
        distributed.check_device(ranks, "embeddings", embeddings[0])
    rows, loss = len(embeddings[0]), "MultipleNegativesRankingLoss"
    agreed = {"embeddings of one shape and type": fused, "len(embeddings)": len(embeddings)}
    agreed["directions that compare with queries"] = len(gathered) == len(embeddings)
    return distributed.agree(ranks, loss, rows, rows, gathered, agreed, name="embeddings")


def _why_unfit(embeddings: list[Tensor]) -> str:
    kinds = {(x.shape, x.dtype, x.device, x.layout) for x in embeddings}
    if len(embeddings) == 1 or len(kinds) != 1:
        return "the columns are not two or more of one shape, type and device"
    if embeddings[0].ndim != 2 or embeddings[0].layout != torch.strided:  # noqa: PLR2004
        return "the embeddings are not dense (M, D) matrices"
    return ""


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
    and `dot_score` takes the original's computation, with one warning. With
    `gather_across_devices=True` the documents (and anchors) of all processes are the columns of
    each one's anchors; the processes may bring batches of different sizes.

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
