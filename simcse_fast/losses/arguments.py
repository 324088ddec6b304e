"""What callers of the loss pass: checked, and in the form that the plan takes."""

from __future__ import annotations

import functools
import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from simcse_fast.distributed import check_group

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_pair(query: Tensor, key: Tensor, *, least: int = 1) -> None:
    """Two matrices of rows of one width, type and device, with at least so many rows."""
    check_rows("query", query, least=least)
    check_rows("key", key, least=least)
    check_same_kind("key", key, "query", query)


def check_rows(name: str, x: Tensor, *, least: int, why: str = "") -> None:
    """A matrix of at least so many rows, of a floating-point type."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}.")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name}: expected fp64, fp32, bf16 or fp16, got {x.dtype}.")
    if x.ndim != 2 or x.shape[0] < least or x.shape[1] == 0:  # noqa: PLR2004
        raise ValueError(
            f"{name}: expected shape (rows >= {least}, D >= 1), got {tuple(x.shape)}{why}."
        )


def check_same_kind(name: str, x: Tensor, other: str, y: Tensor) -> None:
    """Width, type and device of another tensor."""
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{name}: width {x.shape[-1]} of shape {tuple(x.shape)} differs from {other}'s, which "
            f"has shape {tuple(y.shape)}."
        )
    if x.dtype != y.dtype:
        raise TypeError(f"{name}: has dtype {x.dtype}, expected {other}'s, {y.dtype}.")
    if x.device != y.device:
        raise ValueError(f"{name}: is on {x.device}, expected {other}'s device, {y.device}.")


def labels_of(labels: Tensor | None, query: Tensor, key: Tensor, symmetric: bool) -> Tensor:
    """Row i's positive, int64; 0 ... M - 1 where the caller gives none."""
    rows, columns = query.shape[0], key.shape[0]
    if symmetric and labels is not None:
        raise ValueError("labels: cannot be given with symmetric=True, which pairs row i with i.")
    if symmetric and rows != columns:
        raise ValueError(
            f"symmetric: needs as many queries as keys, got shapes {tuple(query.shape)} and "
            f"{tuple(key.shape)}."
        )
    if labels is None:
        if rows > columns:
            raise ValueError(
                f"labels: needed when query has more rows than key ({rows} > {columns})."
            )
        return arange(rows, query)
    _check_integers("labels", labels, query, rows, "query")
    labels = labels.to(torch.int64)
    outside = (labels < 0) | (labels >= columns)
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(~outside.any(), "labels: a value does not index a row of key")  # noqa: SLF001
    elif count := int(outside.sum()):
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"labels: {count} of {rows} values are outside [0, {columns}): first at row {row} "
            f"(value {int(labels[row])}); each must index a row of key, which has shape "
            f"{tuple(key.shape)}."
        )
    return labels.contiguous()


def _check_integers(name: str, x: Tensor, query: Tensor, rows: int, of: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor of integers, got {type(x).__name__}.")
    if x.dtype.is_floating_point or x.dtype.is_complex or x.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers (int64), got {x.dtype}.")
    if x.shape != (rows,):
        raise ValueError(
            f"{name}: expected shape ({rows},), one per row of {of}, got {tuple(x.shape)}."
        )
    if x.device != query.device:
        raise ValueError(f"{name}: is on {x.device}, expected query's device, {query.device}.")


def ids_of(
    query_ids: Tensor | None, key_ids: Tensor | None, query: Tensor, key: Tensor
) -> tuple[Tensor, Tensor]:
    """Ids of the rows and of the columns, int64."""
    if query_ids is None or key_ids is None:
        missing = "query_ids" if query_ids is None else "key_ids"
        raise ValueError(f"{missing}: expected beside the other ids, got None.")
    _check_integers("query_ids", query_ids, query, query.shape[0], "query")
    _check_integers("key_ids", key_ids, query, key.shape[0], "key")
    return query_ids.to(torch.int64).contiguous(), key_ids.to(torch.int64).contiguous()


def check_hard_negatives(hard: Tensor, query: Tensor) -> None:
    """(M, K, D), like the queries."""
    if not isinstance(hard, Tensor):
        raise TypeError(f"hard_negatives: expected a tensor, got {type(hard).__name__}.")
    if hard.ndim != 3 or hard.shape[0] != query.shape[0] or hard.shape[1] == 0:  # noqa: PLR2004
        raise ValueError(
            f"hard_negatives: expected shape ({query.shape[0]}, K >= 1, {query.shape[1]}), got "
            f"{tuple(hard.shape)}."
        )
    check_same_kind("hard_negatives", hard, "query", query)


def check_range(
    name: str, value: float, low: float, high: float, *, open_below: bool = False
) -> None:
    """A finite number, not below `low` (or above it), not above `high`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}.")
    if not (low < value if open_below else low <= value) or value > high or value == math.inf:
        kind = f"> {low}" if open_below else f">= {low}"
        bound = "" if math.isinf(high) else f" and <= {high}"
        raise ValueError(f"{name}: expected a finite number {kind}{bound}, got {value}.")


def check_options(
    *,
    hardness: float = 0.0,
    hard_negative_weight: float = 1.0,
    label_smoothing: float = 0.0,
    false_negative_margin: float | None = None,
    reduction: str = "mean",
    process_group: object = None,
    **_others: object,
) -> None:
    """The values of options that are neither tensors nor the temperature."""
    check_range("hardness", hardness, 0, math.inf)
    check_range("hard_negative_weight", hard_negative_weight, 0, math.inf, open_below=True)
    check_range("label_smoothing", label_smoothing, 0, 1)
    margin = 0.0 if false_negative_margin is None else false_negative_margin
    if isinstance(margin, bool) or not isinstance(margin, Real):
        raise TypeError(
            f"false_negative_margin: expected a number or None, got {type(margin).__name__}."
        )
    if math.isnan(margin):
        raise ValueError("false_negative_margin: expected a number or None, got nan.")
    if not isinstance(reduction, str) or reduction not in {"mean", "sum", "none"}:
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}.")
    if process_group is not None:
        check_group(process_group)


def scale_of(temperature: float | Tensor, query: Tensor) -> tuple[Tensor | None, float]:
    """1 / temperature as a tensor on the device, or as a number."""
    if not isinstance(temperature, Tensor):
        check_range("temperature", temperature, 0, math.inf, open_below=True)
        return None, 1 / temperature
    if temperature.ndim != 0 or not temperature.dtype.is_floating_point:
        raise ValueError(
            f"temperature: expected a number or a 0-d floating-point tensor, got shape "
            f"{tuple(temperature.shape)} and {temperature.dtype}."
        )
    if temperature.device != query.device:
        raise ValueError(
            f"temperature: is on {temperature.device}, expected query's device, {query.device}."
        )
    if temperature.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(temperature > 0, "temperature: expected > 0")  # noqa: SLF001
    elif not 0 < (value := temperature.item()) < math.inf:
        raise ValueError(f"temperature: expected a finite number > 0, got {value}.")
    return temperature.double().reciprocal(), 1.0  # in fp64, as 1 / a number is


def row_weight_of(
    weight: Tensor | None, query: Tensor, reduction: str
) -> tuple[Tensor | None, float]:
    """Weight of each row in the result: a tensor, or one number for all."""
    rows = query.shape[0]
    if weight is None:
        return None, 1 / rows if reduction == "mean" else 1.0
    if not isinstance(weight, Tensor) or not weight.dtype.is_floating_point:
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"weight: expected a floating-point tensor, got {kind}.")
    if weight.shape != (rows,):
        raise ValueError(f"weight: expected shape ({rows},), got {tuple(weight.shape)}.")
    if weight.device != query.device:
        raise ValueError(f"weight: is on {weight.device}, expected query's, {query.device}.")
    if weight.requires_grad:
        raise ValueError("weight: gets no gradient; pass weight.detach().")
    wide = weight.to(torch.float64 if query.dtype == torch.float64 else torch.float32)
    return (wide / wide.sum() if reduction == "mean" else wide).contiguous(), 1.0


def check_rank(
    query: Tensor,
    key: Tensor,
    labels: Tensor | None,
    hard_negatives: Tensor | None,
    temperature: float | Tensor,
    symmetric: bool,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    **options: Any,
) -> Tensor:
    """All that one rank of several can know to be wrong before it gathers; the labels."""
    check_pair(query, key, least=0)
    labels = labels_of(labels, query, key, symmetric)
    scale_of(temperature, query)
    if hard_negatives is not None:
        check_hard_negatives(hard_negatives, query)
    if query_ids is not None or key_ids is not None:
        ids_of(query_ids, key_ids, query, key)
    check_options(**options)
    return labels


def check_finite(**tensors: Tensor | None) -> None:
    """Raises where a row holds NaN or infinity."""
    for name, x in tensors.items():
        if x is None:
            continue
        bad = ~x.isfinite().flatten(1).all(1)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"{name}: {int(bad.sum())} of {x.shape[0]} rows hold NaN or infinity, first at "
                f"row {row}."
            )


@functools.lru_cache(maxsize=8)
def _kept_arange(rows: int, device: torch.device, _stream: int) -> Tensor:
    # Memory that a CUDA stream has written is read and freed there alone.
    return torch.arange(rows, device=device)


def arange(rows: int, like: Tensor) -> Tensor:
    """0 ... rows - 1; of plain tensors that of the last call, for small batches."""
    device, keep = like.device, type(like) in (Tensor, torch.nn.Parameter)
    keep = keep and not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled()
    if keep and device.type == "cpu":
        return _kept_arange(rows, device, 0)
    # What a graph reads must live as long as the graph.
    if keep and device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        return _kept_arange(rows, device, torch.cuda.current_stream(device).cuda_stream)
    return torch.arange(rows, device=device)
