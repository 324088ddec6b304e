"""Small batches on a GPU: a computation that comes back is captured as a CUDA graph and replayed.

Launches from Python cost such a batch more than its kernels. A replay is a copy of the inputs, the
graph, and a copy of the results into memory of their own. The graphs of a device share a pool of
memory, so no two of them may run at once: a lock keeps threads apart, an event streams.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Maybe = Sequence[Tensor | None]
Compute = Callable[[Maybe], Maybe]

MOST = 1 << 23  # similarities above which kernels take longer than launches: a guess
DIRECT = 2  # calls before a key is captured: most shapes that vary do not come back
KEPT = 8  # graphs of a device
IDLE = 1000  # calls without a use of a graph before another may take its place
REMEMBERED = 64  # keys that are counted
FAILURES = 8  # of captures, after which none is tried


class Recorder(Protocol):
    """What captures, and orders what is replayed."""

    def may_capture(self) -> bool:
        """Whether a capture would disturb nobody now."""

    def capture(
        self, compute: Compute, like: Maybe, first: bool
    ) -> tuple[Callable[[], None], Maybe, Maybe]:
        """What replays a computation, the inputs that it reads, the results that it overwrites."""

    def begin(self) -> None:
        """Wait for the replays before this one, whatever stream they ran on."""

    def end(self) -> None:
        """What is launched after this need not wait."""


@dataclass
class Captured:
    """A computation with its inputs and results in memory of its own."""

    replay: Callable[[], None]
    inputs: Maybe
    outputs: Maybe
    used: int  # the call of its last use
    constant: Sequence[int] = ()  # inputs that the key determines

    def __post_init__(self) -> None:
        self.sources = _by_type(
            [None if i in self.constant else x for i, x in enumerate(self.inputs)]
        )
        self.results = _by_type(self.outputs)

    # No public function of torch copies several tensors in one launch.
    def take(self, inputs: Maybe) -> None:
        """Copy a call's inputs in, those of a type at once."""
        for places, mine in self.sources:
            given = [x for x in (inputs[i] for i in places) if x is not None]
            torch._foreach_copy_(mine, given)

    def give(self) -> Maybe:
        """Copy the results out, those of a type at once."""
        found: list[Tensor | None] = [None] * len(self.outputs)
        for places, mine in self.results:
            fresh = [torch.empty_like(x) for x in mine]
            torch._foreach_copy_(fresh, mine)
            for i, x in zip(places, fresh, strict=True):
                found[i] = x
        return found


def _by_type(tensors: Maybe) -> list[tuple[list[int], list[Tensor]]]:
    """Places and tensors of each type: torch copies a list in one launch only if all have one."""
    groups: dict[torch.dtype, tuple[list[int], list[Tensor]]] = {}
    for i, x in enumerate(tensors):
        if x is not None:
            places, members = groups.setdefault(x.dtype, ([], []))
            places.append(i)
            members.append(x)
    return list(groups.values())


class Replays:
    """The graphs of a device."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.lock = recorder, threading.Lock()
        self.graphs: dict[Hashable, Captured] = {}
        self.seen: OrderedDict[Hashable, int] = OrderedDict()
        self.refused: set[Hashable] = set()
        self.calls = 0

    def clear(self) -> None:
        """Forget graphs and counts; what cannot be captured stays known."""
        with self.lock:
            self.graphs.clear()
            self.seen.clear()

    def run(
        self, key: Hashable, inputs: Maybe, compute: Compute, constant: Sequence[int] = ()
    ) -> Maybe:
        """The results of a computation of tensors, in memory that nobody else writes.

        The key determines everything but the values of the inputs, and of the constant ones those.
        """
        if not self.lock.acquire(blocking=False):
            return compute(inputs)
        try:
            self.calls += 1
            graph = self.graphs.get(key)
            if graph is not None:
                return self._replayed(graph, inputs)
            if self._comes_back(key):
                return self._captured(key, inputs, compute, constant)
        finally:
            self.lock.release()
        return compute(inputs)

    def _replayed(self, graph: Captured, inputs: Maybe) -> Maybe:
        graph.used = self.calls
        self.recorder.begin()
        try:
            with torch.no_grad():
                graph.take(inputs)
                graph.replay()
                return graph.give()
        finally:
            self.recorder.end()

    def _comes_back(self, key: Hashable) -> bool:
        """Count a call; whether it is time to capture, and there is room."""
        count = self.seen.pop(key, 0) + 1
        self.seen[key] = count
        if len(self.seen) > REMEMBERED:
            self.seen.popitem(last=False)
        if count <= DIRECT or key in self.refused or len(self.refused) >= FAILURES:
            return False
        return self._has_room() and self.recorder.may_capture()

    def _has_room(self) -> bool:
        # One more key than there is room for must not capture at every call.
        oldest = min((g.used for g in self.graphs.values()), default=0)
        return len(self.graphs) < KEPT or self.calls - oldest > IDLE

    def _captured(
        self, key: Hashable, inputs: Maybe, compute: Compute, constant: Sequence[int]
    ) -> Maybe:
        """This call's results, computed as before; after it a graph, if that succeeds."""
        found = compute(inputs)
        try:
            # Memory of inference mode could not be written outside it.
            with torch.inference_mode(False), torch.no_grad():
                made = self.recorder.capture(compute, inputs, not self.graphs)
                Captured(*made, used=0).take(inputs)
                self.recorder.end()
        except Exception:  # whatever it is, the results are there without a graph
            self.refused.add(key)
            return found
        if len(self.graphs) >= KEPT:
            del self.graphs[min(self.graphs, key=lambda k: self.graphs[k].used)]
        self.graphs[key] = Captured(*made, self.calls, constant)
        return found


class Cuda:
    """Captures on a device."""

    def __init__(self, device: torch.device) -> None:
        # Graphs keep the workspace that cuBLAS has on the stream of their capture. Nobody else
        # computes on this one: torch hands out streams of high priority only where asked to.
        self.device, self.stream = device, torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self.done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.failed: list[torch.cuda.CUDAGraph] = []
        self.last: torch.cuda.Stream | None = None

    def may_capture(self) -> bool:
        """Not where the user has forbidden to wait for the device, as a capture does once."""
        return torch.cuda.get_sync_debug_mode() == 0

    def capture(
        self, compute: Compute, like: Maybe, first: bool
    ) -> tuple[Callable[[], None], Maybe, Maybe]:
        """Kernels were compiled by the calls before this one."""
        if first:  # a pool whose graphs are all gone cannot be used again
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # torch's context leaves the stream of a failed capture current, hence one around it.
        with torch.cuda.device(self.device), torch.cuda.stream(torch.cuda.current_stream()):
            try:
                inputs, outputs = self._into(graph, compute, like)
            except BaseException:
                self.failed.append(graph)  # torch's allocators may still ask it
                with suppress(Exception):  # torch ends this itself unless CUDA refused the capture
                    torch._C._cuda_endAllocateToPool(self.device.index, self.pool)  # noqa: SLF001
                raise
        self.begin()
        return graph.replay, inputs, outputs

    def _into(
        self, graph: torch.cuda.CUDAGraph, compute: Compute, like: Maybe
    ) -> tuple[Maybe, Maybe]:
        # In any other mode another thread's call to CUDA would break the capture.
        mode = "thread_local"
        with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode=mode):
            # All is in the pool, which hands nothing on before another capture, and that begins
            # by waiting for the device: graphs may be dropped while they run.
            inputs = [None if x is None else torch.empty_like(x) for x in like]
            return inputs, compute(inputs)

    def begin(self) -> None:
        """Order after what ran on another stream."""
        stream = torch.cuda.current_stream(self.device)
        if self.last is not None and stream != self.last:
            stream.wait_event(self.done)
        self.last = stream

    def end(self) -> None:
        """Mark the end of a replay's last copy."""
        self.done.record(self.last)


_devices: dict[torch.device, Replays] = {}


def of(device: torch.device) -> Replays:
    """The graphs of a device."""
    found = _devices.get(device)
    return _devices.setdefault(device, Replays(Cuda(device))) if found is None else found


def release() -> None:
    """Drop all graphs; their memory returns to torch."""
    for replays in list(_devices.values()):
        replays.clear()


def serve(inputs: Maybe, similarities: int) -> bool:
    """Whether a call is one for graphs: small, on a GPU, and nothing watches its operations."""
    there = [x for x in inputs if x is not None]
    return (
        all(x.is_cuda for x in there)
        and similarities <= MOST
        and all(_plain(x) for x in there)
        and not torch.cuda.is_current_stream_capturing()
        and not torch.is_anomaly_enabled()
        and not torch.are_deterministic_algorithms_enabled()
    )


def _plain(x: Tensor) -> bool:
    """Whether kernels compiled for a contiguous copy are those compiled for the tensor.

    Triton compiles anew, and may add in another order, where an address or a stride is no multiple
    of 16.
    """
    if x.dim() == 0:
        return True
    rows = x.dim() == 2 and x.stride(1) == 1 and x.stride(0) % 16 == x.shape[1] % 16 == 0  # noqa: PLR2004
    return (rows or x.is_contiguous()) and x.data_ptr() % 16 == 0


def key_of(inputs: Maybe, *more: Hashable) -> Hashable:
    """What determines a computation besides the values of its inputs."""
    shapes = tuple(None if x is None else (x.shape, x.dtype) for x in inputs)
    products = torch.backends.cuda.matmul
    try:
        single = torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer switch of CUDA's products was used
        single = products.fp32_precision
    half = products.allow_bf16_reduced_precision_reduction
    return (
        *(shapes, single, half, products.allow_fp16_reduced_precision_reduction),
        *(torch.is_inference_mode_enabled(), *more),
    )
