"""The gradient cache under DistributedDataParallel, against one process that holds all rows."""

from __future__ import annotations

import itertools
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn.functional import embedding

if not torch.distributed.is_available():
    pytest.skip("this torch was built without torch.distributed", allow_module_level=True)

import processes
from torch.nn.parallel import DistributedDataParallel

from simcse_fast import GradientCache

WORLD = 2
STEPS = 3  # DDP rearranges its buckets in the second


class Encoder(nn.Module):
    """Embeds tokens, with a buffer that DDP sends out if asked, and a path that learns nothing."""

    def __init__(self, seed: int, dtype: torch.dtype, buffered: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Parameter(torch.randn(11, 6, dtype=dtype))
        self.first, self.second = (nn.Linear(6, 6, dtype=dtype) for _ in range(2))
        self.spare = nn.Linear(6, 6, dtype=dtype)  # of a path of its own
        if buffered:
            self.register_buffer("shift", torch.full((6,), 0.1, dtype=dtype))

    def forward(self, features: dict) -> torch.Tensor:
        mask = features["attention_mask"].unsqueeze(-1).to(self.words.dtype)
        task = features.get("task")
        x = embedding(features["input_ids"], self.words)
        x = (x * mask).sum(1) / mask.sum(1)
        x = x + getattr(self, "shift", 0.0)
        if task == "frozen":
            return self.first(x).tanh().detach()
        x = self.first(x).tanh()
        return self.spare(x) if task == "spare" else self.second(x)


def batch(rank: int, step: int, rows: int) -> list[dict]:
    """Two columns of like rows, of other lengths on every rank and in every step."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    columns = []
    for count, width in ((rows, 7), (rows + 2, 5)):
        lengths = torch.randint(1, width + 1, (count,), generator=generator)
        mask = (torch.arange(width) < lengths[:, None]).long()
        ids = torch.randint(1, 11, (count, width), generator=generator) * mask
        columns.append({"input_ids": ids, "attention_mask": mask})
    return columns


def loss_of(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Of all rows at once, without the rows of other ranks, so that ranks average."""
    return (query @ key.T).logsumexp(1).mean() + 0.1 * key.square().mean()


# Each: rows and memory limit of both ranks, and what is special. A limit of 0 keeps nothing.
CASES = {
    "different-numbers-of-mini-batches": {"rows": (9, 2)},
    "one-rank-keeps-nothing": {"rows": (6, 6), "limits": (0, 1 << 20)},
    "nobody-keeps-anything": {"rows": (6, 3), "limits": (0, 0)},
    # A mini-batch that is first and last is made under synchronisation at once, if it is kept.
    "one-mini-batch-on-a-rank": {"rows": (1, 9), "tokens": 40},
    "one-mini-batch-on-a-rank-nothing-kept": {"rows": (1, 9), "tokens": 40, "limits": (0, 1 << 20)},
    "one-mini-batch-each": {"rows": (4, 4), "tokens": 10**6},
    "buffers": {"rows": (9, 2), "buffered": True},
    # As many messages with one mini-batch as with many, with and without its graph kept.
    "buffers-one-mini-batch": {"rows": (1, 9), "tokens": 40, "buffered": True},
    "buffers-one-mini-batch-nothing-kept": {
        "rows": (1, 9),
        "tokens": 40,
        "limits": (0, 1 << 20),
        "buffered": True,
    },
    "accumulation": {"rows": (9, 2), "accumulate": 2},
    "accumulation-buffers": {"rows": (9, 2), "accumulate": 2, "buffered": True},
    "unused-parameters": {"rows": (9, 2), "ddp": {"find_unused_parameters": True}},
    # The spare path is used by one of the columns, not by the mini-batch that synchronises.
    "used-in-some-mini-batches": {
        "rows": (5, 3),
        "tasks": ("spare", "main"),
        "ddp": {"find_unused_parameters": True},
    },
    "static-graph": {"rows": (9, 2), "ddp": {"static_graph": True}},
    "static-graph-nothing-kept": {"rows": (9, 2), "limits": (0, 0), "ddp": {"static_graph": True}},
    # The only mini-batch of a rank teaches the graph and synchronises, elsewhere two do.
    "static-graph-one-mini-batch": {"rows": (9, 1), "tokens": 40, "ddp": {"static_graph": True}},
    "static-graph-buffers": {"rows": (9, 2), "ddp": {"static_graph": True}, "buffered": True},
    "static-graph-one-mini-batch-buffers": {
        "rows": (1, 9),
        "tokens": 40,
        "ddp": {"static_graph": True},
        "buffered": True,
    },
    "static-graph-one-mini-batch-accumulation": {
        "rows": (1, 9),
        "tokens": 40,
        "ddp": {"static_graph": True},
        "accumulate": 2,
    },
    "static-graph-accumulation": {"rows": (9, 2), "ddp": {"static_graph": True}, "accumulate": 2},
    "two-towers": {"rows": (9, 2), "towers": 2},
    "two-towers-accumulation": {"rows": (2, 7), "towers": 2, "accumulate": 2},
    # Nothing flows back from the column that comes last.
    "last-mini-batch-frozen": {"rows": (5, 3), "tasks": ("main", "frozen")},
    "last-mini-batch-frozen-nothing-kept": {
        "rows": (5, 3),
        "tasks": ("main", "frozen"),
        "limits": (0, 0),
        "buffered": True,
    },
    "first-mini-batch-frozen": {"rows": (5, 3), "tasks": ("frozen", "main")},
    "last-column-unread": {"rows": (5, 3), "tasks": ("main", "other"), "unread": True},
    "out-of-memory-on-a-rank": {"rows": (9, 2), "fails": 4, "buffered": True},
    "out-of-memory-on-a-rank-at-once": {"rows": (9, 2), "fails": 1, "buffered": True},
}
DTYPES = {"float64": (torch.float64, 1e-10), "float32": (torch.float32, 1e-6)}
SINGLE = ("different-numbers-of-mini-batches", "accumulation", "two-towers")
RUNS = {
    **{f"{name}-float64": (case, "float64") for name, case in CASES.items()},
    **{f"{name}-float32": (CASES[name], "float32") for name in SINGLE},
}


def fail_once(module: nn.Module, call: int) -> None:
    """Run out of memory in the n-th call."""
    calls = itertools.count(1)

    def before(*_: object) -> None:
        if next(calls) == call:
            raise torch.OutOfMemoryError("pretended")

    module.register_forward_pre_hook(before)


def columns_of(case: dict, rank: int, step: int) -> list[dict]:
    columns = batch(rank, step, case["rows"][rank])
    tasks = case.get("tasks")
    if tasks:
        columns = [{**x, "task": task} for x, task in zip(columns, tasks, strict=True)]
    return columns


def towers_of(case: dict, dtype: torch.dtype) -> list[Encoder]:
    made = [
        Encoder(seed, dtype, case.get("buffered", False)) for seed in range(case.get("towers", 1))
    ]
    unused = case.get("ddp", {}).get("find_unused_parameters")
    if not unused:  # DDP waits for every parameter that could learn
        for tower in made:
            tower.spare.requires_grad_(False)
    return made


def on_ranks(rank: int, names: list[str]) -> dict[str, dict]:
    return {name: train(rank, *RUNS[name]) for name in names}


def train(rank: int, case: dict, dtype: str) -> dict:
    towers = towers_of(case, DTYPES[dtype][0])
    if case.get("buffered") and rank:
        for tower in towers:
            tower.shift.fill_(7.0)  # until rank 0 sends its own
    wrapped = [DistributedDataParallel(x, **case.get("ddp", {})) for x in towers]
    if rank == 0 and "fails" in case:
        fail_once(towers[0].first, case["fails"])
    limits = case.get("limits", (4000, 1 << 20))  # a few graphs, and all
    cache = GradientCache(
        wrapped if len(wrapped) > 1 else wrapped[0],
        mini_batch_tokens=case.get("tokens", 12),
        memory_limit=limits[rank],
    )
    parameters = [p for x in towers for p in x.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=0.05)
    gradients, batches = [], []
    accumulate = case.get("accumulate", 1)
    for step in range(STEPS):
        optimiser.zero_grad()
        for part in range(accumulate):
            waits = part < accumulate - 1
            with ExitStack() as stack:
                for tower in wrapped if waits else []:
                    stack.enter_context(tower.no_sync())
                query, key = cache(*columns_of(case, rank, step * accumulate + part))
                loss = query.square().mean() if case.get("unread") else loss_of(query, key)
                (loss / accumulate).backward()
            batches.append(cache.statistics.mini_batches)
        gradients.append([None if p.grad is None else p.grad.clone() for p in parameters])
        optimiser.step()
    shifts = [x.shift.clone() for x in towers if case.get("buffered")]
    return {"gradients": gradients, "batches": batches, "shifts": shifts}


def alone(case: dict, dtype: str) -> list[list[torch.Tensor | None]]:
    """The same steps in one process, without a cache, over the batches of all ranks."""
    towers = towers_of(case, DTYPES[dtype][0])
    parameters = [p for x in towers for p in x.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=0.05)
    accumulate, found = case.get("accumulate", 1), []
    for step in range(STEPS):
        optimiser.zero_grad()
        for part in range(accumulate):
            for rank in range(WORLD):
                columns = columns_of(case, rank, step * accumulate + part)
                query, key = (
                    tower(x) for tower, x in zip([towers[0], towers[-1]], columns, strict=True)
                )
                loss = query.square().mean() if case.get("unread") else loss_of(query, key)
                (loss / accumulate / WORLD).backward()
        found.append([None if p.grad is None else p.grad.clone() for p in parameters])
        optimiser.step()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What both ranks found in all cases; they are started once."""
    folder = tmp_path_factory.mktemp("cached")
    return processes.run(WORLD, on_ranks, folder, list(RUNS), timeout=30)


@pytest.mark.parametrize("name", RUNS)
def test_averaged_gradients_are_those_of_one_process(found, name):
    case, dtype = RUNS[name]
    exact = alone(case, dtype)
    for rank in range(WORLD):
        for ours, theirs in zip(found[rank][name]["gradients"], exact, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                if other is None:
                    assert one is None or not one.any()
                else:
                    assert torch.allclose(one, other, rtol=0, atol=DTYPES[dtype][1])
    for one, other in zip(*(rank[name]["gradients"][-1] for rank in found), strict=True):
        assert (one is None) is (other is None)
        assert one is None or torch.equal(one, other)


def test_the_ranks_differ_in_their_numbers_of_mini_batches(found):
    one, other = (rank["different-numbers-of-mini-batches-float64"]["batches"] for rank in found)
    assert all(a > b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", [x for x in RUNS if RUNS[x][0].get("buffered")])
def test_buffers_are_those_of_the_first_rank(found, name):
    for rank in found:
        for shift in rank[name]["shifts"]:
            assert torch.equal(shift, torch.full_like(shift, 0.1))
