"""How much memory is free, on a CPU with or without a container's limit, or on a device."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

RESIDENT = Path("/proc/self/statm")
MEMINFO = Path("/proc/meminfo")
# Limit and use of the container, in cgroups of version 2 and 1, and what of it are cached files.
V2, V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
CONTAINERS = (
    (V2 / "memory.max", V2 / "memory.current", V2 / "memory.stat", "inactive_file"),
    (
        *(V1 / "memory.limit_in_bytes", V1 / "memory.usage_in_bytes", V1 / "memory.stat"),
        "total_inactive_file",
    ),
)
# glibc's mallopt: https://man7.org/linux/man-pages/man3/mallopt.3.html
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
KEPT_FREE, GROWTH, LARGEST_IN_HEAP = 1 << 30, 64 << 20, 32 << 20  # bytes; the last is glibc's most
CHOSEN = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")


def free_memory(device: torch.device) -> int:
    """Bytes that a process could still take on a device; 0 where nobody says.

    Example:
        >>> free_memory(torch.device("cpu")) >= 0
        True
    """
    import torch  # noqa: PLC0415 - counting on a cluster starts without it

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return _free_on_cpu() if device.type == "cpu" else 0


def _free_on_cpu() -> int:
    bounds = [_container_room(*files) for files in CONTAINERS]
    return min([_available(), *(room for room in bounds if room is not None)])


def _available() -> int:
    try:
        lines = MEMINFO.read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if _has_pages() else 0
    return int(line.split()[1]) * 1024


def _has_pages() -> bool:
    return "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {})


def _container_room(limit: Path, used: Path, parts: Path, files: str) -> int | None:
    try:
        most, taken = limit.read_text().strip(), int(used.read_text())
        counts = dict(line.split() for line in parts.read_text().splitlines())
    except (OSError, ValueError):
        return None
    taken -= int(counts.get(files, 0))  # which the system takes back when it must
    return max(int(most) - taken, 0) if most.isdigit() else None


def resident_memory() -> int:
    """Bytes of this process that are in memory; 0 where nobody says."""
    try:
        pages = int(RESIDENT.read_text().split()[1])
    except (OSError, ValueError, IndexError):  # not Linux
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def return_free_pages() -> None:
    """Give what the C library keeps of freed memory back to the system, where it can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # not glibc
        return


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep up to 1 GiB that was freed for the next mini-batch, where it can.

    By itself glibc returns all but some MB to the system, and a mini-batch spends a tenth of its
    time on faults of fresh pages. It stays so for the process. Who has chosen by an environment
    variable of glibc is left alone.
    """
    if any(name in os.environ for name in CHOSEN):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(MMAP_THRESHOLD, LARGEST_IN_HEAP)
    mallopt(TRIM_THRESHOLD, KEPT_FREE)
    mallopt(TOP_PAD, GROWTH)
