"""The only place that chooses by device: which back-end runs, and with how much workspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from simcse_fast.errors import BackendUnavailableError
from simcse_fast.kernels import native
from simcse_fast.kernels.infonce import cpu, torch_ops, workspace

if TYPE_CHECKING:
    from torch import Tensor

    from simcse_fast.kernels.infonce.panels import Part

NAMES = ("auto", "reference", "torch", "cpu", "triton", "cuda")
DEFAULT_LIMIT = {"cpu": 96 << 20, "cuda": 1536 << 20}
SCALES = 1e-9, 1e9  # of the native loops: 1 / temperature
NO_KERNELS = "this version has no GPU kernels yet; CUDA tensors take torch"
_limit: int | None = None


def _native_problem() -> str:
    try:
        native.load()
    except OSError as error:
        return (
            f"the native library is missing ({error}); install a C++ compiler and run "
            "`pip install -e .` again"
        )
    return ""


def _native_detail() -> str:
    products = " and products" if native.load().sf_outruns_blas() else ""
    return f"row panels, native loops{products} ({native.instruction_set()})"


MISSING = {"cpu": _native_problem(), "triton": NO_KERNELS, "cuda": NO_KERNELS}


@dataclass(frozen=True)
class BackendStatus:
    """Whether a back-end runs here, and what with, or what is missing."""

    available: bool
    detail: str


def backends() -> dict[str, BackendStatus]:
    """What runs on this machine, and why the others do not.

    Returns:
        A mapping from the names that `backend=` takes to their status.

    Example:
        >>> backends()["reference"].available
        True
    """
    details = {
        "reference": "plain torch in double precision with the full N x N matrix",
        "torch": "row panels on torch operations, any device",
        "cpu": "" if MISSING["cpu"] else _native_detail(),
    }
    return {
        name: BackendStatus(not MISSING.get(name), MISSING.get(name) or details[name])
        for name in NAMES[1:]
    }


def set_workspace_limit(limit: int | None) -> None:
    """Bound the panel of similarities that a loss holds beside its inputs and gradients.

    On a CPU, matrix products of our own pack up to 24 MiB and 1 MiB a thread beside it. What the
    last call used is kept for the next one; setting a limit releases it.

    Args:
        limit: bytes, >= 1; a panel has at least one row. None restores the default, 96 MiB on a
            CPU and 1.5 GiB on a GPU.

    Raises:
        TypeError: limit is not an integer.
        ValueError: limit is not positive.

    Example:
        >>> set_workspace_limit(32 * 2**20)
        >>> set_workspace_limit(None)
    """
    global _limit  # noqa: PLW0603  # a process-wide setting, as torch's own
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        raise TypeError(f"limit: expected a number of bytes or None, got {limit!r}.")
    if limit is not None and limit <= 0:
        raise ValueError(f"limit: expected at least 1 byte, got {limit}.")
    _limit = limit
    workspace.release()


def workspace_limit(device: torch.device) -> int:
    """Bytes that the panels of one loss may take on this device."""
    return _limit if _limit is not None else DEFAULT_LIMIT.get(device.type, DEFAULT_LIMIT["cuda"])


def choose(backend: str, device: torch.device) -> str:
    """The back-end that runs: one of reference, torch, cpu.

    Raises:
        ValueError: unknown name.
        BackendUnavailableError: the named one cannot run on this device.
    """
    if backend not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(NAMES)}, got {backend!r}.")
    if backend == "auto":
        return "cpu" if device.type == "cpu" and not MISSING["cpu"] else "torch"
    if backend == "cpu" and device.type != "cpu":
        raise BackendUnavailableError(
            f'backend="cpu": the tensors are on {device}; move them to the CPU, or use '
            'backend="auto".'
        )
    if missing := MISSING.get(backend):
        raise BackendUnavailableError(f'backend="{backend}": {missing}; or use backend="auto".')
    return backend


def part_of(name: str, dtype: torch.dtype, scale: Tensor | float) -> Part:
    """The part of the panel plan behind a name.

    The native one is fp32, and for logits that its mark for columns left out lies far below.
    """
    if name != "cpu" or dtype != torch.float32:
        return torch_ops
    return cpu if SCALES[0] <= float(scale) <= SCALES[1] else torch_ops
