"""What each rank computes with the drop-in losses, and with the losses they stand for."""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import util
from sentence_transformers.sentence_transformer import losses as originals
from torch import Tensor

from simcse_fast import losses

EVEN = {2: (3, 3), 4: (2, 2, 2, 2)}
UNEVEN = {2: (4, 2), 4: (3, 0, 1, 2)}
EVERY = {2: (4, 2), 4: (3, 1, 1, 1)}  # a model embeds at least one row
OPTIONAL = ["query_to_query", "doc_to_query", "doc_to_doc"]
DIRECTIONS = [
    *(
        {"directions": ("query_to_doc", *some), "partition_mode": "joint"}
        for count in range(4)
        for some in itertools.combinations(OPTIONAL, count)
    ),
    {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
]
HARDNESS: list[dict[str, Any]] = [
    {},
    *(
        {"hardness_mode": mode, "hardness_strength": 3.0}
        for mode in ("in_batch_negatives", "hard_negatives", "all_negatives")
    ),
]
RANKING = [
    (columns, {**directions, **hardness})
    for directions in DIRECTIONS
    for hardness in HARDNESS
    for columns in (2, 3)
]
SOME = {2: range(len(RANKING)), 4: range(3, len(RANKING), 13)}
CLIP = [(local, grad) for local in (True, False) for grad in (True, False)]
VIEWS: list[dict[str, Any]] = [{}, {"temperature": -0.3}, {"memory_bank_size": (15, 5)}]


def samples(columns: int, rows: int, seed: int = 0) -> list[Tensor]:
    """Columns that resemble each other, (rows, 5), in fp64."""
    drawn = torch.randn(columns, rows, 5, generator=torch.Generator().manual_seed(seed)).double()
    drawn[1] += drawn[0]
    return list(0.6 * drawn)


def gradients(loss: Tensor, inputs: list[Tensor], upstream: float = 1.0) -> list[Tensor]:
    factor = torch.full_like(loss, upstream)
    found = torch.autograd.grad(loss, inputs, factor, materialize_grads=True, allow_unused=True)
    return [loss.detach(), *found]


def ranking(rows: list[Tensor], make: Any, **options: Any) -> list[Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the original's computation would say so
        loss = make(None, **options).compute_loss_from_embeddings(rows, None)
    return gradients(loss, rows)


class Projection(torch.nn.Module):
    """A model whose features are rows of five numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(samples(2, 4, seed=1)[0])

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["rows"] @ self.weight.T}


def weight_gradient(make: Any, rows: list[Tensor], **options: Any) -> list[Tensor]:
    """The loss of a model on these columns, and the gradient of its weight."""
    model = Projection()
    loss = make(torch.nn.Sequential(model), scale=5.0, **options)(
        [{"rows": x.detach()} for x in rows], None
    )
    (loss * 0.7).backward()
    assert model.weight.grad is not None
    return [loss.detach(), model.weight.grad]


def deprecated(loss: Any) -> Any:
    """A class that warns of its deprecation, silenced."""

    def make(*arguments: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return loss(*arguments, **options)

    return make


def original_clip() -> Any:
    """The module open_clip/loss.py; the package itself needs torchvision."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None
    path = Path(package.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("original_clip_loss", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module.ClipLoss


def scale_and_bias() -> list[Tensor]:
    return [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (9.0, -3.0)]


def clip(rank: int, rows: list[Tensor], make: Any, local: bool, grad: bool) -> list[Tensor]:
    loss = make(local, grad, rank=rank, world_size=torch.distributed.get_world_size())
    inputs = [*rows, *scale_and_bias()]
    found = gradients(loss(*inputs), inputs, upstream=0.7)
    logits = loss.get_logits(*inputs)
    labels = loss.get_ground_truth(rows[0].device, len(logits[0]))
    through = gradients(sum(x.square().sum() for x in logits), inputs)
    return [*found, *logits, labels, *through]


def own(columns: int, split: tuple[int, ...], rank: int) -> list[Tensor]:
    whole = samples(columns, sum(split))
    return [x.split(split)[rank].clone().requires_grad_() for x in whole]


def drop_ins(rank: int, world: int) -> dict[Any, Any]:
    """Ours and the originals' on even splits, ours on uneven ones."""
    ours, theirs = losses.MultipleNegativesRankingLoss, originals.MultipleNegativesRankingLoss
    together = {"gather_across_devices": True, "similarity_fct": util.cos_sim, "scale": 5.0}
    found: dict[Any, Any] = {}
    for number in SOME[world]:
        columns, options = RANKING[number]
        for name, make, split in (
            ("ours", ours, EVEN[world]),
            ("theirs", theirs, EVEN[world]),
            ("uneven", ours, UNEVEN[world]),
        ):
            rows = own(columns, split, rank)
            found[f"ranking-{number}-{name}"] = ranking(rows, make, **options, **together)
    for name, module in (("ours", losses), ("theirs", originals)):
        rows, make = own(3, EVEN[world], rank), module.MultipleNegativesRankingLoss
        dots = {**together, "similarity_fct": util.dot_score}
        found[f"dots-{name}"] = ranking(rows, make, **dots)
        symmetric = deprecated(module.MultipleNegativesSymmetricRankingLoss)
        found[f"symmetric-{name}"] = ranking(rows, symmetric, **together)
        narrow = [x.detach().bfloat16().requires_grad_() for x in rows]
        found[f"narrow-{name}"] = [x.double() for x in ranking(narrow, make, **together)]
    for name, module, split in (
        ("ours", losses, EVEN[world]),
        ("theirs", originals, EVEN[world]),
        ("uneven", losses, EVERY[world]),
    ):
        found[f"cached-{name}"] = weight_gradient(
            module.CachedMultipleNegativesRankingLoss,
            own(3, split, rank),
            mini_batch_size=2,
            gather_across_devices=True,
        )
    original = original_clip()
    for local, grad in CLIP:
        key = f"clip-{local}-{grad}"
        for name, make in (("ours", losses.ClipLoss), ("theirs", original)):
            found[f"{key}-{name}"] = clip(rank, own(2, EVEN[world], rank), make, local, grad)
        rows = own(2, UNEVEN[world], rank)
        loss = losses.ClipLoss(local, grad, rank=rank, world_size=world)
        inputs = [*rows, *scale_and_bias()]
        found[f"{key}-uneven"] = gradients(loss(*inputs), inputs)
    for number, options in enumerate(VIEWS[:2]):
        views = own(2, UNEVEN[world], rank)
        loss = losses.NTXentLoss(gather_distributed=True, **options)
        found[f"views-{number}"] = gradients(loss(*views), views)
    return {**found, "errors": errors(rank, world)}


def errors(rank: int, world: int) -> dict[str, str]:
    """What is wrong on rank 1 only, or with the world that a caller names."""
    found = {}
    left, right = own(2, EVEN[world], rank)
    odd = rank == 1
    ranking_loss = losses.MultipleNegativesRankingLoss(None, gather_across_devices=True)
    calls = {
        "clip-world": lambda: losses.ClipLoss(True, True, rank=rank, world_size=world + 1)(
            left, right, 1.0
        ),
        "clip-rank": lambda: losses.ClipLoss(True, True, rank=0 if odd else rank, world_size=world)(
            left, right, 1.0
        ),
        "clip-scale": lambda: losses.ClipLoss(rank=rank, world_size=world)(
            left, right, -1.0 if odd else 1.0
        ),
        "views": lambda: losses.NTXentLoss(gather_distributed=True)(
            left, right[:1] if odd else right
        ),
        "unfit": lambda: ranking_loss.compute_loss_from_embeddings(
            [left, right[:1] if odd else right], None
        ),
        "columns": lambda: ranking_loss.compute_loss_from_embeddings(
            [left, right] + [right] * odd, None
        ),
    }
    for name, call in calls.items():
        try:
            call()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found
