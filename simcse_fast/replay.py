"""What must be the same when a forward pass is run again."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


class RandomState:
    """The random number generators of the CPU and of a device, as they are now.

    As a context: the generators as they were then, and afterwards as if nothing had been drawn.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.states = self._now()

    def _now(self) -> tuple[Tensor, Tensor | None]:
        cpu = torch.get_rng_state()
        if self.device.type == "cpu":
            return cpu, None
        if self.device.type == "mps":
            return cpu, torch.mps.get_rng_state()
        return cpu, torch.get_device_module(self.device).get_rng_state(self.device)

    def _set(self, states: tuple[Tensor, Tensor | None]) -> None:
        cpu, device = states
        torch.set_rng_state(cpu)
        if device is None:
            return
        if self.device.type == "mps":
            torch.mps.set_rng_state(device)
        else:
            torch.get_device_module(self.device).set_rng_state(device, self.device)

    def restore(self) -> None:
        """Go on from then, as if nothing had been drawn since."""
        self._set(self.states)

    def __enter__(self) -> None:
        self.outside = self._now()
        self._set(self.states)

    def __exit__(self, *_: object) -> None:
        self._set(self.outside)


class Autocast:
    """Automatic mixed precision as it is now, for this forward pass and for the one again."""

    def __init__(self, device: torch.device) -> None:
        self.device = device.type
        self.enabled = torch.is_autocast_enabled(self.device)
        self.dtype = torch.get_autocast_dtype(self.device) if self.enabled else None

    @contextmanager
    def __call__(self, *, grad: bool) -> Iterator[None]:
        """The same precision, with graphs or without."""
        if self.enabled:
            context: AbstractContextManager[object] = torch.autocast(self.device, self.dtype)
        else:
            # Off there must be off here, whatever runs around the backward pass.
            on = torch.is_autocast_enabled(self.device)
            context = torch.autocast(self.device, enabled=False) if on else nullcontext()
        with torch.set_grad_enabled(grad), context:
            try:
                yield
            finally:
                if self.enabled and not grad:
                    # Weights that were rounded without a graph would cut the graph of a later pass.
                    torch.clear_autocast_cache()


def parallel_of(module: object) -> DistributedDataParallel | None:
    """The wrapper that averages a module's gradients over processes, if there is one."""
    module = getattr(module, "_orig_mod", module)  # as torch.compile wraps
    return module if isinstance(module, DistributedDataParallel) else None


def learns(parallel: DistributedDataParallel | None) -> bool:
    """Whether a static graph is still to be learned: by a pass that synchronises, come what may."""
    return (
        parallel is not None
        and bool(parallel.static_graph)
        and not parallel._static_graph_delay_allreduce_enqueued  # noqa: SLF001
    )


@contextmanager
def synchronised(parallel: DistributedDataParallel | None, ending: bool) -> Iterator[None]:
    """Gradients of the mini-batch that ends a batch are averaged over processes, no others.

    An outer `no_sync`, as for gradient accumulation, puts that off too. Buffers are sent out with
    the first pass of a batch: how many passes follow differs from process to process.
    """
    if parallel is None:
        yield
        return
    outside = parallel.require_backward_grad_sync
    parallel.require_backward_grad_sync = learns(parallel) or (ending and outside)
    try:
        yield
    finally:
        parallel.require_backward_grad_sync = outside
        parallel.require_forward_param_sync = False


def finish(parallel: DistributedDataParallel | None) -> None:
    """After the last pass of a batch: the next one sends buffers out, unless in a `no_sync`."""
    if parallel is not None:
        parallel.require_forward_param_sync = parallel.require_backward_grad_sync
