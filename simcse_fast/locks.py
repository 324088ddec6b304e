"""Doing something alone among processes."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@contextmanager
def alone(
    lock: Path,
    *,
    wait: bool = True,
    busy: Callable[[], object] = lambda: None,
    unlockable: Callable[[], object] = lambda: None,
) -> Iterator[bool]:
    """Whether no other process is within under this lock; the system frees it if one dies.

    Args:
        lock: a file that is made, and removed afterwards.
        wait: until the others are out.
        busy: called before waiting.
        unlockable: called where the file system has no locks; then it is not known.
    """
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as file:
            if not taken(file, wait=wait, busy=busy, unlockable=unlockable):
                yield False
                return
            # One that was waited for has removed the file: a lock on it keeps nobody out.
            if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                continue
            try:
                yield True
            finally:
                lock.unlink(missing_ok=True)
            return


def taken(
    file: IO[str], *, wait: bool, busy: Callable[[], object], unlockable: Callable[[], object]
) -> bool:
    """Whether the lock is ours, at once or after the others."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if wait:
            busy()
            fcntl.flock(file, fcntl.LOCK_EX)
        return wait
    except OSError:
        unlockable()
    return True
