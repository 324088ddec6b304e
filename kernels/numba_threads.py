"""Numba functions that let go of the GIL, run by plain Python threads.

Threads, not `prange`: shared writes cannot happen by accident, compilation takes a third of the
time, and between two pieces of work Python can show progress and be interrupted.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., object])
Tick = Callable[[int], object]


def jit(function: Function) -> Function:
    """Compile at the first call; kept on disk where some folder can be written."""
    try:
        compiled: Function = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no folder for its cache: a read-only install without a home
        compiled = njit(nogil=True)(function)
    return compiled


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of array[index]."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address, flag = builder.gep(data, [arguments[1]]), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, flag, flag, flag])
        call = builder.module.declare_intrinsic("llvm.prefetch", (address.type,), kind)
        builder.call(call, [address, flag(0), flag(3), flag(1)])  # for reading, keep, data
        return context.get_dummy_value()

    return types.void(array, index), emit


def pieces(low: int, high: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges [a, b) that cover [low, high), `size` long but for the last."""
    for a in range(low, high, size):
        yield a, min(a + size, high)


def run_workers(workers: int, work: Callable[[int], Iterator[int]], tick: Tick) -> None:
    """Run `work(0) ... work(workers - 1)` side by side, to the end or until one fails.

    Each yields, after a piece of its work, how much is done; `tick` gets these numbers one at a
    time. An exception, Ctrl-C included, stops every worker at its next yield.
    """
    stop, lock = threading.Event(), threading.Lock()

    def drive(worker: int) -> None:
        for done in work(worker):
            with lock:
                tick(done)
            if stop.is_set():
                return

    if workers == 1:
        drive(0)
        return
    with ThreadPoolExecutor(workers) as pool:
        futures = []
        try:
            futures += [pool.submit(drive, worker) for worker in range(workers)]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    for future in futures:
        future.result()
