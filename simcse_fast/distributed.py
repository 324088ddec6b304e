"""Processes that share a loss: who they are, and what they agree on before anything is gathered.

The ranks exchange one short vector of integers. What does not fit together, or a rank that refuses
its arguments, becomes the same error everywhere instead of a wait.
"""

from __future__ import annotations

import math
import re
import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Function = TypeVar("Function", bound="Callable[..., Any]")
LOSSES = ("info_nce", "MultipleNegativesRankingLoss", "ClipLoss", "NTXentLoss")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
OPTIONS = 8  # of a loss, at most, that the ranks must agree on
HEADER = 6  # refused, loss, rows, columns, weight, wanted


@dataclass(frozen=True)
class Ranks:
    """The processes of a group, seen from one of them."""

    group: Any  # torch.distributed.ProcessGroup
    rank: int  # in the group
    names: list[int]  # of all members, in the whole world: what a log calls them
    device: torch.device  # of what is exchanged first

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self.names)


@dataclass(frozen=True)
class Shares:
    """What each rank brings, as all of them know after the exchange."""

    ranks: Ranks
    rows: list[int]
    columns: list[int]
    weight: float  # of all rows together
    wanted: int  # bit t: some rank wants the gradient of its t-th gathered tensor

    @property
    def before(self) -> int:
        """Columns of the ranks that stand before this one."""
        return sum(self.columns[: self.ranks.rank])

    @property
    def mean_factor(self) -> float:
        """Of the sum of a rank's losses, so that the mean over the ranks is that of all rows."""
        return self.ranks.size / self.weight if self.weight else math.nan


def outside_graphs(function: Function) -> Function:
    """Have compilers leave a function to Python: what it does depends on the other ranks.

    What torch.compiler.disable says, without the import of the whole compiler.
    """
    function._torchdynamo_disable = True  # type: ignore[attr-defined]  # noqa: SLF001
    return function


def ranks_of(process_group: Any) -> Ranks:
    """The members of a group, which the caller must be one of.

    Args:
        process_group: a `torch.distributed.ProcessGroup`, or "world".

    Raises:
        TypeError: something else.
        ValueError: torch.distributed is not initialised, or this process is not in the group.
    """
    check_group(process_group)
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "process_group: torch.distributed is not initialised; call "
            "torch.distributed.init_process_group() first, or pass None."
        )
    if process_group == "world":
        process_group = dist.group.WORLD
    if isinstance(process_group, int) or (rank := dist.get_rank(process_group)) < 0:
        raise ValueError(
            f"process_group: rank {dist.get_rank()} is not in this group; only its members may "
            "call the loss."
        )
    names = dist.get_process_group_ranks(process_group)
    return Ranks(process_group, rank, names, _exchange_device(process_group))


def check_group(process_group: Any) -> None:
    """A group, "world", or what `new_group` gives to those who are not members."""
    if isinstance(process_group, str) and process_group == "world":
        return
    outside = isinstance(process_group, int) and process_group == -100  # noqa: PLR2004
    known = dist.is_available() and isinstance(process_group, dist.ProcessGroup)
    if not (outside or known):
        raise TypeError(
            'process_group: expected a torch.distributed.ProcessGroup, "world" or None, got '
            f"{process_group!r}."
        )


def world_size() -> int:
    """Processes in the default group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _device_types(group: Any) -> list[str]:
    """Kinds of devices whose tensors the group moves, the CPU first."""
    pairs = dist.get_backend_config(group).split(",")
    return sorted((pair.partition(":")[0] for pair in pairs), key=lambda kind: kind != "cpu")


def _exchange_device(group: Any) -> torch.device:
    # On the CPU where the group can: the numbers are read at once, and a GPU would be waited for.
    kind = _device_types(group)[0]
    return torch.device(kind) if kind == "cpu" else torch.device(kind, torch.cuda.current_device())


def check_device(ranks: Ranks, name: str, x: Tensor) -> None:
    """Raises where the group cannot move a tensor."""
    if x.device.type not in (kinds := _device_types(ranks.group)):
        raise ValueError(
            f"process_group: moves tensors on {' and '.join(kinds)}, and {name} is on {x.device}."
        )


@contextmanager
def announced(ranks: Ranks) -> Iterator[None]:
    """Have an error in the block end the others' wait: they raise at the exchange."""
    try:
        yield
    except Exception:
        with suppress(RuntimeError):  # the error in the block is the one to see
            _exchange(ranks, [1] + [0] * (HEADER + OPTIONS - 1))
        raise


def agree(
    ranks: Ranks,
    loss: str,
    rows: int,
    columns: int,
    gathered: Sequence[Tensor],
    options: Mapping[str, bool | int],
    *,
    weight: float | None = None,
    name: str = "key",
) -> Shares:
    """Tell the others what this rank brings, and learn what they bring.

    Args:
        ranks: the group.
        loss: one of `LOSSES`.
        rows: losses of this rank.
        columns: rows of each tensor that this rank lets the others gather.
        gathered: these tensors; a rank takes part in their gradient if any rank wants it.
        options: what must be the same on all ranks, under the names of the arguments.
        weight: of this rank's rows together; None for their number.
        name: what the caller calls the gathered tensors.

    Raises:
        ValueError: the ranks do not fit together, one refused its arguments, or none has a row.
        RuntimeError: a rank was lost or late.
    """
    grad, (_, width) = torch.is_grad_enabled(), gathered[0].shape
    same: dict[str, Any] = {**options, "torch.is_grad_enabled()": grad}
    same |= {f"{name}.shape[1]": width, f"{name}.dtype": gathered[0].dtype}
    wanted = sum(1 << t for t, x in enumerate(gathered) if grad and x.requires_grad)
    bits = struct.unpack("<q", struct.pack("<d", rows if weight is None else weight))[0]
    codes = [DTYPES.index(x) if isinstance(x, torch.dtype) else int(x) for x in same.values()]
    header = [0, LOSSES.index(loss), rows, columns, bits, wanted]
    table = _exchange(ranks, header + codes + [0] * (OPTIONS - len(codes)))
    _check_table(ranks, table, same)
    weights = [struct.unpack("<d", struct.pack("<q", line[4]))[0] for line in table]
    of_any = 0
    for line in table:
        of_any |= line[5]
    return Shares(ranks, [x[2] for x in table], [x[3] for x in table], sum(weights), of_any)


def _exchange(ranks: Ranks, numbers: list[int]) -> list[list[int]]:
    mine = torch.tensor(numbers, dtype=torch.int64, device=ranks.device)
    everything = mine.new_empty(ranks.size * len(numbers))
    with named(ranks, "exchanging the sizes of the batch"):
        all_gather(everything, mine, ranks.group)
        return everything.view(ranks.size, -1).tolist()


def _check_table(ranks: Ranks, table: list[list[int]], options: Mapping[str, Any]) -> None:
    """The same error on every rank, since all see the same table."""
    if refused := [name for name, line in zip(ranks.names, table, strict=True) if line[0]]:
        raise ValueError(
            f"process_group: {_listed(refused)} refused the arguments before anything was "
            "gathered; the error raised there says why."
        )
    _check_same(ranks, "process_group", [LOSSES[line[1]] for line in table])
    for number, (name, value) in enumerate(options.items()):
        codes = [line[HEADER + number] for line in table]
        decode: Callable[[int], Any] = type(value)
        decode = DTYPES.__getitem__ if isinstance(value, torch.dtype) else decode
        _check_same(ranks, name, [decode(code) for code in codes])
    if not any(line[2] for line in table):
        raise ValueError(
            f"process_group: expected at least one row on some rank, got none on all {ranks.size}."
        )


def _check_same(ranks: Ranks, name: str, values: list[Any]) -> None:
    if all(value == values[0] for value in values):
        return
    groups: dict[Any, list[int]] = {}
    for rank, value in zip(ranks.names, values, strict=True):
        groups.setdefault(value, []).append(rank)
    found = ", ".join(f"{value} on {_listed(who)}" for value, who in groups.items())
    raise ValueError(f"{name}: expected the same on all ranks of process_group, got {found}.")


def _listed(ranks: Sequence[int]) -> str:
    some = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")  # noqa: PLR2004
    return f"rank{'s' * (len(ranks) > 1)} {some}"


@contextmanager
def named(ranks: Ranks, what: str) -> Iterator[None]:
    """Have a failed collective say what it did, and what that means."""
    try:
        yield
    except RuntimeError as error:
        # gloo begins with a place in its source in brackets, and goes on with advice.
        cause = re.sub(r"^\[\S*\] ", "", str(error).partition("\n")[0]).partition(". ")[0]
        raise RuntimeError(
            f"process_group: {what} failed on rank {ranks.names[ranks.rank]} of {ranks.size}: "
            f"a rank was lost or late ({cause.rstrip('.')})."
        ) from error


def all_gather(out: Tensor, mine: Tensor, group: Any) -> None:
    """Blocks of one size of all ranks, in the order of the ranks."""
    run: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    run(out, mine, group=group)  # the first since torch 2.13, which deprecates the second
