"""Batches split over ranks: what each rank computes, and what one process makes of all rows."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from simcse_fast import collectives, distributed, info_nce

Found = dict[str, Tensor]


@dataclass(frozen=True)
class Split:
    """One batch: its rows and columns by rank, and the options of the call."""

    rows: tuple[int, ...]
    columns: tuple[int, ...] = ()  # as many as the rows unless given
    options: dict[str, Any] = field(default_factory=dict)
    hard: int = 0
    labels: bool = False
    ids: bool = False
    weight: bool = False
    learned: bool = True
    dtype: torch.dtype = torch.float32
    width: int = 6
    temperature: float = 0.3

    @property
    def keys(self) -> tuple[int, ...]:
        return self.columns or self.rows


def whole(split: Split) -> dict[str, Any]:
    """All rows, as one process would hold them; labels are of the whole batch."""
    g = torch.Generator().manual_seed(sum(split.rows) + 7 * len(split.rows))
    rows, columns, double = sum(split.rows), sum(split.keys), torch.float64
    key = torch.randn(columns, split.width, generator=g, dtype=double)
    labels, before = [], 0
    for m, n in zip(split.rows, split.keys, strict=True):
        own = torch.randint(0, max(n, 1), (m,), generator=g) if split.labels else torch.arange(m)
        labels.append(own + before)
        before += n
    labels = torch.cat(labels)
    query = key[labels] + 0.7 * torch.randn(rows, split.width, generator=g, dtype=double)
    if not split.options.get("normalize", True):
        query, key = query / split.width**0.5, key / split.width**0.5
    batch: dict[str, Any] = {"query": query.to(split.dtype), "key": key.to(split.dtype)}
    if split.hard:
        hard = torch.randn(rows, split.hard, split.width, generator=g, dtype=double)
        batch["hard_negatives"] = hard.to(split.dtype)
    if split.ids:
        batch["query_ids"] = torch.randint(0, 4, (rows,), generator=g)
        batch["key_ids"] = torch.randint(0, 4, (columns,), generator=g)
    if split.weight:
        batch["weight"] = torch.rand(rows, generator=g, dtype=double).add(0.1).float()
    if not split.options.get("symmetric"):
        batch["labels"] = labels
    return batch


OF_KEYS = ("key", "key_ids")


def share(split: Split, batch: dict[str, Any], rank: int) -> dict[str, Any]:
    """The rows of one rank, with labels that index its own keys."""
    own = {
        name: x.split(split.keys if name in OF_KEYS else split.rows)[rank].clone()
        for name, x in batch.items()
    }
    if "labels" in own:
        own["labels"] = own["labels"] - sum(split.keys[:rank])
        if not split.labels:
            del own["labels"]
    return own


GRADIENTS = ("query", "key", "hard_negatives")


def evaluate(
    split: Split,
    batch: dict[str, Any],
    upstream: Tensor | None = None,
    function: Any = info_nce,
    **more: Any,
) -> Found:
    """The loss and the gradient of all that gets one."""
    wide = torch.promote_types(split.dtype, torch.float32)
    tensors = {name: x.clone() for name, x in batch.items()}
    leaves = {name: tensors[name].requires_grad_() for name in GRADIENTS if name in tensors}
    temperature: Any = split.temperature
    if split.learned:
        temperature = leaves["temperature"] = torch.tensor(
            split.temperature, dtype=wide, device=batch["query"].device, requires_grad=True
        )
    loss = function(**tensors, temperature=temperature, **split.options, **more)
    upstream = torch.ones_like(loss) if upstream is None else upstream.to(loss)
    gradients = torch.autograd.grad(loss, list(leaves.values()), upstream)
    return {"loss": loss.detach(), **dict(zip(leaves, gradients, strict=True))}


def upstream_of(split: Split) -> Tensor | None:
    """For losses of rows: another factor for each row of the whole batch."""
    if split.options.get("reduction") != "none":
        return None
    return torch.linspace(0.5, 2, sum(split.rows), dtype=torch.float64)


def on_ranks(rank: int, splits: dict[str, Split], device: str = "cpu") -> dict[str, Found]:
    """What a rank finds for each split of the batch."""
    if os.environ.get("TRITON_INTERPRET") and importlib.util.find_spec("triton"):
        importlib.import_module("triton_interpreter").repair()
    found = {}
    for name, split in splits.items():
        upstream = upstream_of(split)
        upstream = None if upstream is None else upstream.split(split.rows)[rank]
        own = {key: x.to(device) for key, x in share(split, whole(split), rank).items()}
        results = evaluate(split, own, upstream, process_group="world")
        found[name] = {key: x.cpu() for key, x in results.items()}
    return found


def joined(split: Split, found: list[Found]) -> Found:
    """What all ranks found, as one process would have: means of `mean`, sums of `sum`."""
    reduction = split.options.get("reduction", "mean")
    factor = 1 / len(found) if reduction == "mean" else 1.0
    losses = [one["loss"].double() for one in found]
    result = {"loss": torch.cat(losses) if reduction == "none" else torch.stack(losses).sum()}
    result["loss"] = result["loss"] * (1.0 if reduction == "none" else factor)
    for name in found[0]:
        if name in GRADIENTS:
            result[name] = factor * torch.cat([one[name].double() for one in found])
        elif name == "temperature":
            result[name] = factor * torch.stack([one[name].double() for one in found]).sum()
    return result


def exact(split: Split) -> Found:
    """One process over all rows, in double precision, by the reference."""
    batch = {
        name: x.double() if x.dtype.is_floating_point and name != "weight" else x
        for name, x in whole(split).items()
    }
    options = {**split.options, "backend": "reference"}
    double = replace(split, dtype=torch.float64, options=options)
    return evaluate(double, batch, upstream_of(split))


def error(found: Tensor, expected: Tensor) -> float:
    """Root-mean-square error over the root mean square of what is expected."""
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


def gathered(rank: int, device: str, dtype: torch.dtype) -> Found:
    """The gather alone, which a group of one rank needs for no loss; and its gradient."""
    ranks = distributed.ranks_of("world")
    tensors = [
        torch.arange(6.0 * (rank + 1), device=device).view(-1, 3).to(dtype).requires_grad_()
        for _ in range(2)
    ]
    rows = len(tensors[0])
    shares = distributed.agree(ranks, "info_nce", rows, rows, tensors, {}, weight=0.5)
    found = collectives.gather(shares, tensors, wide=True)
    (found[0].sum() + (found[1] * (rank + 1)).sum()).backward()
    results = dict(zip(("first", "second"), found, strict=True))
    results |= {"of_first": tensors[0].grad, "of_second": tensors[1].grad}
    total = collectives.sum_of_ranks(ranks, found[0].sum(), share=1.0)
    return {**{k: x.detach().cpu() for k, x in results.items()}, "total": total.detach().cpu()}
