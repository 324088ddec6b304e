"""The loss over the batches of several processes: its gradient is that of one with all rows.

torchrun --nproc-per-node 2 examples/torchrun_info_nce.py
python examples/torchrun_info_nce.py
"""

import argparse
import copy
import os

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from simcse_fast import info_nce

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--rows", type=int, default=50, help="of rank 0; rank 1 has twice as many, ...")
parser.add_argument("--temperature", type=float, default=0.05)
args = parser.parse_args()

if "RANK" in os.environ:  # torchrun sets what this reads
    gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
else:  # one process on its own
    gpus = torch.cuda.is_available()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
rank, world = distributed.get_rank(), distributed.get_world_size()
device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpus else "cpu"


def batch(number):
    """Two views of the rows of one rank."""
    generator = torch.Generator().manual_seed(number)
    rows = torch.randn(args.rows * (number + 1), 64, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    return rows.to(device), (rows + 0.5 * noise).to(device)


torch.manual_seed(0)
encoder = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 32))
encoder = encoder.double().to(device)  # so that rounding cannot hide a difference
alone = copy.deepcopy(encoder)

parallel = DistributedDataParallel(encoder)
query, key = parallel(torch.cat(batch(rank))).chunk(2)  # one pass: DDP allows one a backward
loss = info_nce(query, key, temperature=args.temperature, process_group="world")
loss.backward()
distributed.all_reduce(loss := loss.detach() / world)  # the mean over the ranks is the loss

if rank == 0:
    left, right = (torch.cat(x) for x in zip(*map(batch, range(world)), strict=True))
    whole = info_nce(alone(left), alone(right), temperature=args.temperature)
    whole.backward()
    pairs = zip(encoder.parameters(), alone.parameters(), strict=True)
    difference = max((ours.grad - its.grad).abs().max().item() for ours, its in pairs)
    print(f"loss of {len(left)} pairs: {loss:.6f} of {world} processes, {whole:.6f} of one")
    print(f"gradients differ by {difference:.1e} at most")
distributed.barrier()  # gloo may abort a process that leaves while rank 0 is still at work
distributed.destroy_process_group()
