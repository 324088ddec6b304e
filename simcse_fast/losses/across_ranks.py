"""The loss of one process's rows, where the keys of several processes are the columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from simcse_fast import collectives, distributed
from simcse_fast.backend import FUSED, choose
from simcse_fast.losses import arguments
from simcse_fast.losses.info_nce import info_nce

if TYPE_CHECKING:
    from simcse_fast.distributed import Ranks, Shares


@distributed.outside_graphs
def over_ranks(
    ranks: Ranks,
    query: Tensor,  # (M, D)
    key: Tensor,  # (N, D)
    *,
    temperature: float | Tensor,
    labels: Tensor | None = None,
    hard_negatives: Tensor | None = None,
    symmetric: bool = False,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    check_finite: bool = False,
    constant: bool = False,
    backend: str = "auto",
    **options: Any,
) -> Tensor:
    """`info_nce` of this rank's rows against the keys of all ranks.

    Symmetric, it is the mean of two such losses: of the queries against the keys of all ranks, and
    of the keys against the queries of all. With `constant`, nothing flows to what was gathered.
    """
    with distributed.announced(ranks):
        labels = arguments.check_rank(
            *(query, key, labels, hard_negatives, temperature, symmetric, query_ids, key_ids),
            reduction=reduction,
            **options,
        )
        weight, _ = arguments.row_weight_of(weight, query, "sum")
        wide = choose(backend, query.device) not in FUSED  # the others compute in fp32 at least
        distributed.check_device(ranks, "query", query)
        if check_finite:
            arguments.check_finite(query=query, key=key, hard_negatives=hard_negatives)
    columns = [key, query] if symmetric else [key]
    columns = [x.detach() for x in columns] if constant else columns
    same = {"symmetric": symmetric, "query_ids is not None": query_ids is not None}
    same["temperature.requires_grad"] = getattr(temperature, "requires_grad", False)
    total = None if weight is None else float(weight.sum(dtype=torch.float64))
    sizes = len(query), len(key)
    shares = distributed.agree(ranks, "info_nce", *sizes, columns, same, weight=total)
    keys, *queries = collectives.gather(shares, columns, wide=wide)
    own_ids, other_ids = _ids(shares, query_ids, key_ids, symmetric)
    factor = (shares.mean_factor if reduction == "mean" else 1.0) / len(columns)
    options |= {"temperature": temperature, "backend": backend, "labels": labels + shares.before}
    options["weight"] = _weights(weight, factor, query)
    options["reduction"] = "none" if reduction == "none" else "sum"
    loss = rows_against(query, keys, hard_negatives=hard_negatives, **own_ids, **options)
    return loss + rows_against(key, queries[0], **other_ids, **options) if symmetric else loss


def _ids(
    shares: Shares, query_ids: Tensor | None, key_ids: Tensor | None, symmetric: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Ids of own rows and of all columns, for queries against keys and keys against queries."""
    if query_ids is None or key_ids is None:
        return {}, {}
    if not symmetric:
        all_keys = collectives.gather_constant(shares, [key_ids.long()])[0]
        return {"query_ids": query_ids, "key_ids": all_keys}, {}
    all_keys, all_queries = collectives.gather_constant(shares, [key_ids.long(), query_ids.long()])
    return (
        {"query_ids": query_ids, "key_ids": all_keys},
        {"query_ids": key_ids, "key_ids": all_queries},
    )


def _weights(weight: Tensor | None, factor: float, query: Tensor) -> Tensor | None:
    """Weight of each row in the sum; None for 1."""
    if weight is not None:
        return weight * factor
    wide = torch.promote_types(query.dtype, torch.float32)
    return None if factor == 1 else query.new_full((len(query),), factor, dtype=wide)


def rows_against(
    query: Tensor, keys: Tensor, *, hard_negatives: Tensor | None = None, **options: Any
) -> Tensor:
    """`info_nce` of any number of own rows against gathered keys; 0 for no rows.

    Rows of 16 bits become fp32 where the keys have: the loss computes in it in any case.
    """
    if len(query):
        own = None if hard_negatives is None else hard_negatives.to(keys.dtype)
        return info_nce(query.to(keys.dtype), keys, hard_negatives=own, **options)
    shape = (0,) if options["reduction"] == "none" else ()
    scale = options["temperature"]
    scale = scale if isinstance(scale, Tensor) else None
    return collectives.nothing(shape, query, keys, hard_negatives, scale)
