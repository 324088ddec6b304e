"""The kernels in CUDA C++ for tests: on Hopper as they are, elsewhere on an emulated machine.

The emulation runs the same source, with its barriers, copies and products as asynchronous as a seed
makes them; see tests/emulated/machine.h for what it notices.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from info_nce_cases import OnCuda

from simcse_fast import backend, backends
from simcse_fast.kernels import native
from simcse_fast.kernels.infonce import tiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent / "csrc"
FLAGS = "-std=c++17 -fPIC -shared -fvisibility=hidden -Wall -Wextra -Wno-unknown-pragmas"
REAL = backends()["cuda"].available
DEVICE = "cuda" if REAL else "cpu"
BACKEND = OnCuda("cuda") if REAL else "cuda"
MARKS = [pytest.mark.gpu] if REAL else []


def problem() -> str:
    """Why neither the kernels nor their emulation can run here; empty: one can."""
    for name in ("triton", "cuda") if torch.cuda.is_available() else ("triton",):
        if not backends()[name].available:
            return backends()[name].detail
    if not REAL and shutil.which("g++") is None:
        return "needs g++, or a GPU of compute capability 9.0"
    return ""


def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test runs on; where nothing was written, its memory holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    monkeypatch.setattr(tiles, "processors", lambda _: 2)  # which one tile keeps busy
    if not REAL:
        emulated = library()
        emulated.sf_emulate(0, 2)
        monkeypatch.setattr(native, "load_cuda", lambda: emulated)
        monkeypatch.setitem(backend.PROBLEMS, "cuda", lambda: "")
    yield
    torch.use_deterministic_algorithms(False)


def build(out: Path, kernels: Path, *flags: str) -> ctypes.CDLL:
    """Compile the kernels in a folder for the emulated machine."""
    emulated = HERE / "emulated"
    flags += tuple(f"-I{folder}" for folder in (emulated, CSRC, kernels))
    command = ["g++", *FLAGS.split(), *flags, str(emulated / "infonce.cpp"), "-o", str(out)]
    subprocess.run(command, check=True)  # noqa: S603
    library = native.declare_cuda(ctypes.CDLL(str(out)))
    library.sf_emulate.argtypes = ctypes.c_uint32, ctypes.c_int32
    library.sf_emulate.restype = None
    return library


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels as they are."""
    folder = tempfile.mkdtemp(prefix="simcse-fast-emulated-")
    try:
        return build(Path(folder, "infonce.so"), CSRC / "cuda", "-O2")
    finally:
        shutil.rmtree(folder)  # a loaded library stays


def changed(folder: Path, changes: Sequence[tuple[str, str, str]]) -> ctypes.CDLL:
    """The kernels with faults: in a file, a text that stands there once, and what to put there."""
    kernels = folder / "cuda"
    shutil.copytree(CSRC / "cuda", kernels)
    for name in ("hopper.h", "launch.h"):  # would be found before the emulated ones
        (kernels / name).unlink()
    for file, old, new in changes:
        text = (kernels / file).read_text()
        assert text.count(old) == 1, (file, old, text.count(old))
        (kernels / file).write_text(text.replace(old, new))
    return build(folder / "changed.so", kernels, "-O1")
