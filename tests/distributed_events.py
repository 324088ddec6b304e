"""What processes do in the tests of errors, losses of ranks, DDP, groups and compilers."""

from __future__ import annotations

import datetime as dt
import os
import signal
import time
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from simcse_fast import InfoNCELoss, info_nce, losses


def rows(count: int, width: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(count))
    return drawn.to(dtype).requires_grad_()


def raised(call: Any) -> str:
    """Type and message of what a call raises."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def mismatches(rank: int) -> dict[str, str]:
    """Rank 1 calls otherwise than ranks 0 and 2; what each of them sees."""
    odd = rank == 1
    together = {"process_group": "world"}
    ids = torch.arange(3)
    temperature = torch.tensor(0.1, requires_grad=odd)

    def without_gradient() -> None:
        with torch.set_grad_enabled(not odd):
            info_nce(rows(3), rows(3), **together)

    calls = {
        "width": lambda: info_nce(rows(3, 4 + odd), rows(3, 4 + odd), **together),
        "dtype": lambda: info_nce(
            *[rows(3, dtype=torch.float64 if odd else torch.float32)] * 2, **together
        ),
        "symmetric": lambda: info_nce(rows(3), rows(3), symmetric=odd, **together),
        "ids": lambda: info_nce(
            *(rows(3), rows(3)), **together, **({} if odd else {"query_ids": ids, "key_ids": ids})
        ),
        "temperature": lambda: info_nce(rows(3), rows(3), temperature=temperature, **together),
        "gradients": without_gradient,
        "refused": lambda: info_nce(
            rows(3), rows(3), labels=torch.tensor([0, 1, 3 if odd else 2]), **together
        ),
        "refused-type": lambda: info_nce("rows" if odd else rows(3), rows(3), **together),
        "refused-finite": lambda: info_nce(
            rows(3) * (float("nan") if odd else 1), rows(3), check_finite=True, **together
        ),
        "no-rows": lambda: info_nce(rows(0), rows(2), **together),
    }
    found = {name: raised(call) for name, call in calls.items()}
    # After every error the ranks are in step again.
    found["afterwards"] = f"{info_nce(rows(3), rows(3), **together).item():.6f}"
    return found


def own_gradient_unwanted(rank: int) -> dict[str, torch.Tensor | None]:
    """Rank 0's keys are constants: it still takes part in the gradients of the others' keys."""
    query, key = rows(3), rows(4)
    key.requires_grad_(rank > 0)
    info_nce(query, key, temperature=0.5, process_group="world").backward()
    constant = rows(4).requires_grad_(False)
    info_nce(query, constant, temperature=0.5, process_group="world").backward()  # no one's keys
    with torch.no_grad():
        value = info_nce(query, key, temperature=0.5, process_group="world")
    return {"query": query.grad, "key": key.grad, "value": value}


def second_derivative(rank: int) -> str:
    query, key = rows(3), rows(3)
    loss = info_nce(query, key, process_group="world")
    (of_key,) = torch.autograd.grad(loss, key, create_graph=True)
    return raised(lambda: of_key.sum().backward())


def in_a_subgroup(rank: int) -> dict[str, Any]:
    """Ranks 2 and 0 share a loss, in the order of the group; rank 1 is not asked."""
    group = distributed.new_group([2, 0])
    query, key = rows(3 + rank), rows(3 + rank)
    found: dict[str, Any] = {}
    if rank == 1:
        found["error"] = raised(lambda: info_nce(query, key, process_group=group))
    else:
        loss = info_nce(query, key, temperature=0.5, process_group=group)
        loss.backward()
        found |= {"loss": loss.detach(), "query": query.grad, "key": key.grad}
        wide = rows(3, 4 if rank == 0 else 5)
        found["error"] = raised(lambda: info_nce(wide, wide, process_group=group))
    alone = [distributed.new_group([r]) for r in range(3)][rank]
    found["alone"] = info_nce(query, key, temperature=0.5, process_group=alone).detach()
    distributed.barrier()
    return found


SPLITS = (7, 2, 4), (9, 0, 4)


class Step(torch.nn.Module):
    """An encoder and a learned temperature, from inputs to the loss."""

    def __init__(self, process_group: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = torch.nn.Linear(5, 4).double()
        self.loss = InfoNCELoss(learnable=True, symmetric=True, process_group=process_group)
        self.loss.double()

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        query, key = self.encoder(torch.cat([left, right])).tensor_split(2)
        return self.loss(query, key)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    left = torch.randn(13, 5, generator=torch.Generator().manual_seed(1)).double()
    return left, left + 0.3 * left.flip(0)


def data_parallel(rank: int) -> list[dict[str, torch.Tensor]]:
    """Gradients that DDP averages for uneven splits; one rank has no rows in the second."""
    found = []
    for split in SPLITS:
        step = Step("world")
        own = [x.split(split)[rank] for x in inputs()]
        parallel = DistributedDataParallel(step)  # by name, since it must outlive the backward
        parallel(*own).backward()
        found.append({name: x.grad for name, x in step.named_parameters()})
    return found


def repeated(rank: int) -> list[list[torch.Tensor]]:
    query, key = rows(90 + rank, 40), rows(90 + rank, 40)
    found = []
    for _ in range(4):
        loss = info_nce(query, key, symmetric=True, process_group="world")
        found.append([loss.detach(), *torch.autograd.grad(loss, [query, key])])
    return found


def compiled(rank: int) -> dict[str, Any]:
    """A compiled step falls to a graph break at the loss; as one graph it is refused."""

    def step(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return 2 * info_nce(3 * query, key + 1, temperature=0.5, process_group="world")

    query, key = rows(3 + rank), rows(3 + rank)
    found = {}
    for name, function in {"eager": step, "compiled": torch.compile(step, backend="eager")}.items():
        loss = function(query, key)
        found[name] = [loss.detach(), *torch.autograd.grad(loss, [query, key])]
    for name, loss in drop_ins(rank).items():
        eager, graph = loss(query, key), torch.compile(loss, backend="eager")(query, key)
        pair = [[x.detach(), *torch.autograd.grad(x, [query, key])] for x in (eager, graph)]
        found[name] = all(map(torch.equal, *pair))
    torch.compiler.reset()  # or the code compiled above is taken
    whole = torch.compile(step, backend="eager", fullgraph=True)
    return {**found, "whole": raised(lambda: whole(query, key))}


def drop_ins(rank: int) -> dict[str, Any]:
    clip = losses.ClipLoss(rank=rank, world_size=distributed.get_world_size())
    ranking = losses.MultipleNegativesRankingLoss(None, gather_across_devices=True)
    return {
        "clip": lambda image, text: clip(image, text, 2.0),
        "views": losses.NTXentLoss(gather_distributed=True),
        "ranking": lambda left, right: ranking.compute_loss_from_embeddings([left, right], None),
    }


PATIENCE = 2.0  # seconds, of a group that waits for a rank that is late


def failed(call: Any) -> dict[str, Any]:
    begin = time.monotonic()
    return {"error": raised(call), "seconds": time.monotonic() - begin}


def waiting_for_a_rank(rank: int) -> dict[str, Any]:
    """Rank 1 is late for a loss, then for a gradient, then killed before a loss."""
    patience = dt.timedelta(seconds=PATIENCE)
    early, late = (distributed.new_group(timeout=patience) for _ in range(2))
    query, key = rows(3), rows(3)
    found = {}
    if rank == 1:
        time.sleep(2 * PATIENCE)
    else:
        found["loss"] = failed(lambda: info_nce(query, key, process_group=early))
    distributed.barrier()
    loss = info_nce(query, key, process_group=late)
    if rank == 1:
        time.sleep(2 * PATIENCE)
    else:
        found["backward"] = failed(loss.backward)
    distributed.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    found["killed"] = failed(lambda: info_nce(query, key, process_group="world"))
    return found


def killed_before_its_gradients(rank: int) -> dict[str, Any]:
    query, key = rows(3), rows(3)
    loss = info_nce(query, key, process_group="world")
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return failed(loss.backward)


def together(rank: int) -> dict[str, Any]:
    """All that three ranks do without losing one of them."""
    scenes = (mismatches, own_gradient_unwanted, second_derivative, in_a_subgroup)
    return {scene.__name__: scene(rank) for scene in (*scenes, data_parallel, repeated, compiled)}
