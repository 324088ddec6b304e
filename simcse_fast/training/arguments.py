"""What transformers' trainer is told, and what it would refuse too late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.integrations import get_reporting_integration_callbacks

from simcse_fast.errors import InputError
from simcse_fast.training.sealed import UnwritableError

if TYPE_CHECKING:
    from pathlib import Path


def check_device(device: str | None) -> None:
    """Refuse devices that the trainer would not train on; it takes the first one of a process."""
    names = dict.fromkeys(["cpu", best_device()])
    if device is not None and device not in names:
        raise InputError(
            f"device: expected {' or '.join(names)}, or none for the best there is, got {device!r}"
        )


def best_device() -> str:
    """The kind of device that is taken where none is named."""
    best = torch.accelerator.current_accelerator()
    return "cpu" if best is None else best.type


def trainer_arguments(kind: Any, output: Path, device: str | None, **options: Any) -> Any:
    """Arguments of this kind, for one device a process, saved by steps, without its own bar."""
    try:
        arguments = kind(
            output_dir=str(output),
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            use_cpu="cpu" in (device, best_device()),
            **{"save_strategy": "steps", **options},
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnwritableError(f"output: {output} cannot be written ({reason})") from error
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from error
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001 - one process trains on one device
    return arguments


def check_reports(names: list[str]) -> None:
    """Refuse reports that cannot be made before anything takes time."""
    try:
        for callback in get_reporting_integration_callbacks(names):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"report_to: {' '.join(str(error).split())}") from error
