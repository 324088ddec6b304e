"""Numba functions that let go of the GIL, run by plain Python threads.

Threads, not `prange`: shared writes cannot happen by accident, compilation takes a third of the
time, and between two pieces of work Python can show progress and be interrupted.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])
Tick = Callable[[int], object]


def jit(function: Function) -> Function:
    """Compile at the first call; kept on disk where some folder can be written."""
    try:
        compiled: Function = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no folder for its cache: a read-only install without a home
        compiled = njit(nogil=True)(function)
    return compiled


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
        futures = [pool.submit(drive, worker) for worker in range(workers)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    for future in futures:
        future.result()
