"""The only place that chooses by device: which back-end runs, and with how much workspace."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from simcse_fast.errors import BackendUnavailableError
from simcse_fast.kernels import native
from simcse_fast.kernels.alignment import chunks
from simcse_fast.kernels.infonce import cpu, graphs, panels, terms, torch_ops, workspace
from simcse_fast.kernels.uniformity import tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from simcse_fast.kernels.infonce.terms import Job

NAMES = ("auto", "reference", "torch", "cpu", "triton", "cuda")
DEFAULT_LIMIT = {"cpu": 96 << 20, "cuda": 1536 << 20}
SCALES = 1e-9, 1e9  # of the native loops: 1 / temperature
OLDEST = 8, 0  # compute capability: the first with bfloat16 products
HOPPER = 9, 0  # for whose instructions the kernels in CUDA C++ are written
FUSED = "triton", "cuda"  # plans of a GPU, which differ in who multiplies 16-bit rows
_limit: int | None = None


@functools.cache
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


@functools.cache
def _interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on any device: for tests."""
    if importlib.util.find_spec("triton") is None:
        return False
    return bool(importlib.import_module("triton").knobs.runtime.interpret)


@functools.cache
def _triton_problem() -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; run `pip install triton`"
    if _interpreted():
        return ""
    if not torch.cuda.is_available():
        return (
            "torch finds no CUDA device; install a build of torch with CUDA on a machine with one"
        )
    if (found := torch.cuda.get_device_capability()) < OLDEST:
        return "the device has compute capability {}.{}, and 8.0 is needed".format(*found)
    return ""


def _triton_detail() -> str:
    if _interpreted():
        return "fused products in Triton's interpreter: for tests, very slow"
    return f"fused products ({torch.cuda.get_device_name()})"


@functools.cache
def _cuda_problem() -> str:
    if problem := _triton_problem():  # whose kernels do all but the products
        return problem
    try:
        native.load_cuda()
    except OSError as error:
        return (
            f"the kernels in CUDA C++ are missing ({error}); install the CUDA toolkit, 12.5 or "
            'newer, and run `pip install -e .` again, or use backend="triton"'
        )
    if _interpreted():
        return "Triton's kernels are interpreted, and these need a GPU"
    if (found := torch.cuda.get_device_capability()) != HOPPER:
        return "the device has compute capability {}.{}, and these kernels are for 9.0".format(
            *found
        )
    return ""


def _cuda_detail() -> str:
    return f"as triton, large products in CUDA C++ ({torch.cuda.get_device_name()})"


PROBLEMS: dict[str, Callable[[], str]] = {
    "cpu": _native_problem,
    "triton": _triton_problem,
    "cuda": _cuda_problem,
}


def missing(name: str, device: str | None = None) -> str:
    """Why a back-end cannot run, at all or on a kind of device; empty: it can."""
    if problem := PROBLEMS[name]() if name in PROBLEMS else "":
        return problem
    where = {"cpu": "cpu", **dict.fromkeys(FUSED, "cuda")}.get(name)
    if where is None or device in (None, where) or (name in FUSED and _interpreted()):
        return ""
    return f"the tensors are on {device}; move them to {where}"


# What torch.compiler.assume_constant_result does, without the import of the whole compiler.
missing._dynamo_marked_constant = True  # type: ignore[attr-defined]  # noqa: SLF001


@dataclass(frozen=True)
class BackendStatus:
    """Whether a back-end runs here, and what with, or what is missing."""

    available: bool
    detail: str


def copy_past_caches(source: Tensor, out: Tensor) -> None:
    """Bytes on the CPU to memory that begins at a multiple of 64 and is not read soon."""
    if missing("cpu"):
        out.copy_(source)
        return
    native.load().sf_copy_past_caches(
        source.data_ptr(), source.numel(), out.data_ptr(), torch.get_num_threads()
    )


def backends() -> dict[str, BackendStatus]:
    """What runs on this machine, and why the others do not.

    Returns:
        A mapping from the names that `backend=` takes to their status.

    Example:
        >>> backends()["reference"].available
        True
    """
    details = {
        "reference": lambda: "plain torch in double precision with the full N x N matrix",
        "torch": lambda: "row panels on torch operations, any device",
        "cpu": _native_detail,
        "triton": _triton_detail,
        "cuda": _cuda_detail,
    }
    return {
        name: BackendStatus(not missing(name), missing(name) or details[name]())
        for name in NAMES[1:]
    }


def set_workspace_limit(limit: int | None) -> None:
    """Bound the panel of similarities that a loss holds beside its inputs and gradients.

    On a CPU, matrix products of our own pack up to 24 MiB and 1 MiB a thread beside it. What the
    last call used is kept for the next one, on a GPU with the CUDA graphs of small batches; setting
    a limit releases it.

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
    graphs.release()


def workspace_limit(device: torch.device) -> int:
    """Bytes that the panels of one loss may take on this device."""
    return _limit if _limit is not None else DEFAULT_LIMIT.get(device.type, DEFAULT_LIMIT["cuda"])


def choose(backend: str, device: torch.device) -> str:
    """The back-end that runs: any but auto.

    Raises:
        ValueError: unknown name.
        BackendUnavailableError: the named one cannot run on this device.
    """
    if backend not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(NAMES)}, got {backend!r}.")
    if backend == "auto":
        own = {"cpu": "cpu", "cuda": "triton"}.get(device.type, "torch")
        return "torch" if missing(own) else own
    if problem := missing(backend, device.type):
        raise BackendUnavailableError(f'backend="{backend}": {problem}; or use backend="auto".')
    return backend


def kept_type(backend: str, dtype: torch.dtype) -> torch.dtype:
    """Type of the gradients that a back-end's forward pass leaves for inputs of a type."""
    return terms.kept_type(dtype) if backend in FUSED else torch.promote_types(dtype, torch.float32)


def evaluate(
    backend: str,
    tensors: Sequence[Tensor],  # (rows, D) each, one type and device
    hard: Tensor | None,  # (M, K, D)
    job: Job,
    needs: Sequence[bool],  # gradients wanted, like tensors + [hard]
) -> panels.Result:
    """Losses and gradients by the plan behind a name."""
    dtype, device = tensors[0].dtype, tensors[0].device
    limit = workspace_limit(device)
    usual = isinstance(job.scale, torch.Tensor) or SCALES[0] <= job.scale <= SCALES[1]
    with _no_autocast(device.type):
        if backend in FUSED and dtype.itemsize < torch.float32.itemsize and usual:
            fused = importlib.import_module("simcse_fast.kernels.infonce.fused")
            name = "cuda" if backend == "cuda" else "triton_kernels"
            products = importlib.import_module(f"simcse_fast.kernels.infonce.{name}")
            result: panels.Result = fused.run(products, list(tensors), hard, job, needs, limit)
            return result
        wide = torch.promote_types(dtype, torch.float32)
        inputs = [x.to(wide).contiguous() for x in tensors]
        hard = None if hard is None else hard.to(wide).contiguous()
        # The native part is fp32, for logits that its mark for columns left out lies far below.
        native_part = backend == "cpu" and wide == torch.float32
        native_part = native_part and SCALES[0] <= float(job.scale) <= SCALES[1]
        part: panels.Part = cpu if native_part else torch_ops
        if backend in FUSED and wide == torch.float32 and usual:
            part = importlib.import_module("simcse_fast.kernels.infonce.triton_panels")
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            result = panels.run(part, inputs, hard, job, needs, limit)
        kept = kept_type(backend, dtype)
        if kept == wide:
            return result
        gradients = [None if g is None else g.to(kept) for g in result.gradients]
        return dataclasses.replace(result, gradients=gradients)


def uniformity(
    backend: str,
    x: Tensor,  # (N, D)
    t: float,
    normalize: bool,
    gradient: bool,  # whether it is wanted
) -> tuple[Tensor, Tensor | None]:
    """The uniformity, 0-d fp64, and its gradient in fp32 or wider."""
    with _no_autocast(x.device.type):
        limit = workspace_limit(x.device)
        wide = torch.promote_types(x.dtype, torch.float32)
        narrowest = x.dtype if backend in FUSED else wide
        found = None
        for dtype in dict.fromkeys((narrowest, wide, torch.float64)):
            if found is None:
                part = _metric_part(backend, dtype)
                rows = x.to(torch.promote_types(dtype, torch.float32)).contiguous()
                found = tiles.run(part, rows, dtype, t, normalize, gradient, limit)
        value, back = cast("tuple[Tensor, Tensor | None]", found)  # fp64 is always wide enough
        return value, None if back is None else back.to(wide)


def alignment(
    backend: str,
    pair: tuple[Tensor, Tensor],  # (N, D) each
    alpha: float,
    normalize: bool,
    needs: tuple[bool, bool],  # gradients wanted
) -> tuple[Tensor, list[Tensor | None]]:
    """The alignment, 0-d fp64, and its gradients in fp32 or wider."""
    dtype = torch.promote_types(pair[0].dtype, torch.float32)
    part = cpu if backend == "cpu" and dtype == torch.float32 else torch_ops
    x, y = (z.to(dtype).contiguous() for z in pair)
    return chunks.run(part, (x, y), alpha, normalize, needs)


def _metric_part(backend: str, dtype: torch.dtype) -> tiles.Part:
    own = "cpu" if backend == "cpu" else "triton_kernels"
    plain = backend == "torch" or dtype == torch.float64
    name = "torch_ops" if plain else own
    part: tiles.Part = importlib.import_module(f"simcse_fast.kernels.uniformity.{name}")
    return part


def path_kernels(device: torch.device, dtype: torch.dtype) -> Any:
    """The module with `path_points` and `path_contributions` for word embeddings of a type."""
    own = device.type == "cuda" and dtype != torch.float64 and not missing("triton")
    name = "triton_kernels" if own else "reference"
    return importlib.import_module(f"simcse_fast.kernels.path_integral.{name}")


def attention_kernel() -> Any:
    """The module with `takes`, `bias_of`, `forward` and `backward`; None: it cannot run here."""
    return None if missing("cpu") else importlib.import_module("simcse_fast.kernels.attention.cpu")


def _no_autocast(device: str) -> AbstractContextManager[object]:
    """Autocast would round the products behind the plan's back."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
