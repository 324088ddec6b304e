"""Compilations of every Triton kernel for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

SCRIPT = Path(__file__).with_name("compile_kernels.py")


def possible() -> bool:
    """Whether Triton is there."""
    return importlib.util.find_spec("triton") is not None


def compile_for(capability: int) -> list[dict[str, Any]]:
    """What each kernel needs there, by a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", SCRIPT, str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def compile_all(capabilities: Iterable[int]) -> dict[int, list[dict[str, Any]]]:
    """All at once: capability -> kernels."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(capabilities, pool.map(compile_for, capabilities), strict=True))
