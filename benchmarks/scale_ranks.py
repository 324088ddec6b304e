"""Many ranks on gloo: what the loss over a group sends and holds, and what a ring would send.

Bytes are those that the kernel counted on each rank's own TCP connections; memory is what torch's
allocator gave out. Losses and gradients are compared with one process that holds all rows.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import struct
import tempfile
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.profiler import profile

from simcse_fast import info_nce

ROWS, WIDTH, TEMPERATURE = 64, 256, 0.05  # rows of each rank
WORLDS = 2, 4, 8, 16, 32
PATIENCE = 900  # seconds, for one world
BYTES_SENT, TCP_INFO_SIZE = 200, 232  # where Linux' struct tcp_info has bytes_sent, bytes_retrans
TOLERANCE = {"float32": 2e-6, "bfloat16": 5e-3}  # of gradients, relative to the largest


@dataclass(frozen=True)
class Case:
    """One way to compute the loss."""

    design: str  # gather, the package's; or ring, this file's
    dtype: str = "float32"
    symmetric: bool = False


CASES = (
    Case("gather"),
    Case("gather", dtype="bfloat16"),
    Case("gather", symmetric=True),
    Case("ring"),
)


def batch(world: int, dtype: str) -> tuple[Tensor, Tensor]:
    """Queries and keys of all ranks, (world ROWS, WIDTH) each."""
    generator = torch.Generator().manual_seed(world)
    key = torch.randn(world * ROWS, WIDTH, generator=generator)
    query = key + 4 * torch.randn(key.shape, generator=generator)  # far from converged
    kind = getattr(torch, dtype)
    return query.to(kind), key.to(kind)


def sent() -> int:
    """Bytes that this process has sent on the TCP connections it has open."""
    total = 0
    for path in Path("/proc/self/fd").iterdir():
        try:
            if not str(path.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(path.name))) as one:
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
        except OSError:  # closed since it was listed, or no TCP
            continue
        bytes_sent, again = struct.unpack_from("<QQ", info, BYTES_SENT)
        total += bytes_sent - again
    return total


def gather(case: Case, query: Tensor, key: Tensor) -> tuple[Tensor, int]:
    """The package's loss and gradients; bytes sent before the backward pass."""
    loss = info_nce(
        query, key, temperature=TEMPERATURE, symmetric=case.symmetric, process_group="world"
    )
    before = sent()
    loss.backward()
    return loss, before


def passed_on(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors of the previous rank, for one's own."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    arrived = [torch.empty_like(x) for x in tensors]
    operations = [
        distributed.P2POp(*what)
        for out, x in zip(arrived, tensors, strict=True)
        for what in (
            (distributed.isend, x, (rank + 1) % world),
            (distributed.irecv, out, (rank - 1) % world),
        )
    ]
    for request in distributed.batch_isend_irecv(operations):
        request.wait()
    return arrived


def ring(query: Tensor, key: Tensor) -> tuple[Tensor, int]:
    """The same loss with no rank ever holding more than two blocks of keys.

    A row's softmax is known after all blocks were seen, and by then they are elsewhere: the keys
    travel twice, and the second time the sums of their gradients with them.
    """
    world, rows = distributed.get_world_size(), len(query)
    units = [torch.nn.functional.normalize(x.detach(), dim=-1) for x in (query, key)]
    mine, own = units
    block, sums = own, torch.full((rows,), -torch.inf)
    for step in range(world):
        (block,) = passed_on([block]) if step else [block]
        sums = torch.logaddexp(sums, (mine @ block.T / TEMPERATURE).logsumexp(1))
    loss = (sums - (mine * own).sum(1) / TEMPERATURE).mean()
    before = sent()
    block, kept, travelling = own, torch.empty(0), torch.zeros_like(own)
    of_query = torch.zeros_like(mine)
    for step in range(world):
        if step == 1:
            (block,) = passed_on([block])
        elif step:
            block, travelling = passed_on([block, travelling])
        gradient = (mine @ block.T / TEMPERATURE - sums[:, None]).exp()
        if not step:
            gradient.diagonal().sub_(1)
        gradient /= TEMPERATURE * rows
        of_query += gradient @ block
        if step:
            travelling += gradient.T @ mine
        else:
            kept = gradient.T @ mine
    if world > 1:
        (travelling,) = passed_on([travelling])
    for x, unit, found in ((query, mine, of_query), (key, own, kept + travelling)):
        along = (found * unit).sum(1, keepdim=True)
        x.grad = (found - along * unit) / x.detach().norm(dim=1, keepdim=True)
    return loss, before


def step(case: Case, query: Tensor, key: Tensor) -> tuple[Tensor, int]:
    """One loss with its gradients."""
    query.grad = key.grad = None
    return gather(case, query, key) if case.design == "gather" else ring(query, key)


def peak(found: profile) -> int:
    """Bytes at the highest that were allocated since the profiler began."""
    live = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


def work(rank: int, world: int, folder: str) -> None:
    """What a rank does: each case once to warm up, once counted."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    found = []
    for case in CASES:
        query, key = (x.chunk(world)[rank].clone() for x in batch(world, case.dtype))
        query.requires_grad_(), key.requires_grad_()
        step(case, query, key)
        distributed.barrier()
        begin = sent()
        # All ranks hold alike, and the profiler takes longer to start than all that is counted.
        with profile(profile_memory=True) if rank == 0 else nullcontext() as recorded:
            loss, before = step(case, query, key)
        counts = {"forward": before - begin, "backward": sent() - before}
        counts["peak"] = peak(recorded) if recorded else 0
        found.append((loss.item(), query.grad, key.grad, counts))
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def world_of(size: int) -> list[list[Any]]:
    """What each rank found."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "simcse_fast", "torch.profiler"])
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=work, args=(rank, size, folder)) for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE)
        late = [process for process in processes if process.exitcode != 0]
        for process in late:
            process.kill()
        if late:
            raise RuntimeError(f"{len(late)} of {size} ranks did not finish")
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(size)]


def apart(case: Case, world: int, found: list[Any]) -> float:
    """The largest difference of a gradient from one process's, relative to the largest."""
    query, key = (x.requires_grad_() for x in batch(world, case.dtype))
    loss = info_nce(query, key, temperature=TEMPERATURE, symmetric=case.symmetric)
    loss.backward()
    losses = torch.tensor([one[0] for one in found], dtype=torch.float64)
    worst = abs(float(losses.mean()) / loss.item() - 1)
    for place, whole in ((1, query.grad), (2, key.grad)):
        joined = torch.cat([one[place] for one in found]) / world
        worst = max(worst, float((joined - whole).abs().max() / whole.abs().max()))
    return worst


def measure() -> list[dict[str, Any]]:
    """A row for each world and case, in units of one rank's block of keys."""
    rows = []
    for world in WORLDS:
        ranks = world_of(world)
        for number, case in enumerate(CASES):
            found = [one[number] for one in ranks]
            difference = apart(case, world, found)
            if difference > TOLERANCE[case.dtype]:
                raise AssertionError(f"{case}, {world} ranks: gradients are {difference} apart")
            counts = {
                name: max(one[3][name] for one in found) for name in ("forward", "backward", "peak")
            }
            about = {"kind": "ranks", "world": world, "rows": ROWS, "width": WIDTH}
            rows.append(about | asdict(case) | {"apart": difference} | counts)
            print(rows[-1], flush=True)
    return rows
