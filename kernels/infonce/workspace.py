"""Memory that a loss needs while it runs; on a CPU kept for the next call.

Fresh pages cost a fault each on their first use. And large blocks that come and go between small
ones that stay would leave holes in the heap, too small for the next of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_kept: dict[tuple[str, torch.dtype], Tensor] = {}


@contextmanager
def borrowed(purpose: str, like: Tensor, size: int) -> Iterator[Tensor]:
    """Memory for `size` numbers or more, in the type and on the device of a tensor."""
    name = purpose, like.dtype
    memory = _kept.pop(name, None) if like.device.type == "cpu" else None
    if memory is None or memory.numel() < size:
        memory = None  # given back before the larger one is taken
        with torch.inference_mode(False):  # memory of that mode could not be written in another
            memory = torch.empty(size, dtype=like.dtype, device=like.device)
    yield memory
    if like.device.type == "cpu":
        _kept[name] = memory


def release() -> None:
    """Return what is kept between calls to the system."""
    _kept.clear()
