"""The public loss: validation, defaults, and the choice of what runs."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from simcse_fast import autograd
from simcse_fast.autograd import Call
from simcse_fast.backend import choose
from simcse_fast.kernels.infonce import reference
from simcse_fast.kernels.infonce.terms import Block, Terms

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def info_nce(
    query: Tensor,  # (M, D)
    key: Tensor,  # (N, D)
    *,
    labels: Tensor | None = None,  # (M,)
    hard_negatives: Tensor | None = None,  # (M, K, D)
    temperature: float | Tensor = 0.05,
    symmetric: bool = False,
    query_ids: Tensor | None = None,  # (M,)
    key_ids: Tensor | None = None,  # (N,)
    false_negative_margin: float | None = None,
    hardness: float = 0.0,
    hard_negative_weight: float = 1.0,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,  # (M,)
    normalize: bool = True,
    reduction: str = "mean",
    check_finite: bool = False,
    process_group: Any = None,
    backend: str = "auto",
) -> Tensor:
    """InfoNCE: cross-entropy of each row's positive among all keys, without the N x N matrix.

    loss_i = -log( exp(cos(q_i, k_t(i)) / temperature) / sum_j exp(cos(q_i, k_j) / temperature) )

    Needs memory for the inputs, their gradients and one bounded panel; the result is the same bit
    for bit from run to run.

    Args:
        query: (M, D) embeddings; fp64, fp32, bf16 or fp16, CPU or CUDA, any strides.
        key: (N, D) embeddings, same type and device; every row but the positive is a negative.
        labels: (M,) integers, row of `key` that is each query's positive; default 0 ... M - 1.
        hard_negatives: (M, K, D) negatives that only their own row sees.
        temperature: > 0; a 0-d tensor that requires grad gets its gradient.
        symmetric: mean of the loss of keys given queries and of queries given keys (CLIP); M == N.
        query_ids: (M,) integers; columns with the row's id, its positive aside, are left out.
        key_ids: (N,) integers, given together with `query_ids`.
        false_negative_margin: columns with cos > cos(positive) + margin are left out.
        hardness: >= 0; adds hardness * cos to each negative's logit, without gradient.
        hard_negative_weight: > 0; multiplies the exp-terms of `hard_negatives`.
        label_smoothing: in [0, 1], over the row's remaining logits, as in torch's cross_entropy.
        weight: (M,) weights of the rows; "mean" divides by their sum.
        normalize: False uses rows as they are, with the dot product in place of the cosine.
        reduction: "mean", "sum" or "none".
        check_finite: raise if an input holds NaN or infinity (waits for the device).
        process_group: must be None in this version: rows and keys of one process.
        backend: "auto", "reference", "torch", "cpu", "triton" or "cuda"; see `backends()`.

    Returns:
        0-d tensor, or (M,) for "none"; fp32, fp64 for fp64 input.

    Raises:
        ValueError, TypeError: an argument is out of its range; the message names it.
        BackendUnavailableError: the named back-end cannot run here.

    Reference: van den Oord et al. 2018, arXiv 1807.03748; Gao et al. 2021, arXiv 2104.08821.

    Example:
        >>> query, key = torch.eye(4), torch.eye(4)
        >>> round(info_nce(query, key, temperature=1.0).item(), 4)  # log(1 + 3 / e)
        0.7437
    """
    _check_pair(query, key)
    labels = _labels(labels, query, key, symmetric)
    scale, scale_value = _scale(temperature, query)
    # Defaults are not checked: a small batch is worth a few calls.
    if hard_negatives is not None:
        _check_hard_negatives(hard_negatives, query)
    if query_ids is not None or key_ids is not None:
        query_ids, key_ids = _ids(query_ids, key_ids, query, key)
    if hardness != 0:
        _check_range("hardness", hardness, 0, math.inf)
    if label_smoothing != 0:
        _check_range("label_smoothing", label_smoothing, 0, 1)
    if hard_negative_weight != 1:
        _check_range("hard_negative_weight", hard_negative_weight, 0, math.inf, open_below=True)
    if false_negative_margin is not None and math.isnan(false_negative_margin):
        raise ValueError("false_negative_margin: expected a number or None, got nan.")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}.")
    if process_group is not None:
        raise ValueError("process_group: this version computes the loss of one process; pass None.")
    if check_finite:
        _check_finite(query=query, key=key, hard_negatives=hard_negatives)
    terms = Terms(
        blocks=(Block(0, 1, key.shape[0], hardness=float(hardness)),),
        symmetric=symmetric,
        normalize=normalize,
        margin=math.inf if false_negative_margin is None else float(false_negative_margin),
        label_smoothing=float(label_smoothing),
        hard_negative_weight=float(hard_negative_weight),
    )
    row_weight, uniform = _row_weight(weight, query, reduction)
    call = Call(
        labels=labels,
        terms=terms,
        backend=choose(backend, query.device),
        needs=_needs([query, key], hard_negatives, scale),
        rowwise=reduction == "none",
        scale_value=scale_value,
        query_ids=query_ids,
        key_ids=key_ids,
        weight=row_weight,
        uniform_weight=uniform,
    )
    return _evaluate([query, key], hard_negatives, scale, call)


class InfoNCELoss(nn.Module):
    """`info_nce` as a module.

    Args:
        temperature: > 0.
        learnable: train the temperature, as parameter `log_temperature` so that it stays positive.
        options: the keyword arguments of `info_nce` that are not tensors, with its defaults.

    Raises:
        TypeError: an option that `info_nce` does not have, or that belongs to the call.
        ValueError: temperature is not positive.

    Example:
        >>> loss = InfoNCELoss(temperature=1.0, learnable=True)
        >>> loss(torch.eye(4), torch.eye(4)).backward()
        >>> loss.log_temperature.grad is not None
        True
    """

    OPTIONS = (
        *("symmetric", "false_negative_margin", "hardness", "hard_negative_weight"),
        *("label_smoothing", "normalize", "reduction", "check_finite", "process_group", "backend"),
    )

    def __init__(self, temperature: float = 0.05, learnable: bool = False, **options: Any) -> None:
        super().__init__()
        if unknown := sorted(set(options) - set(self.OPTIONS)):
            raise TypeError(f"options: {unknown} unknown; expected some of {list(self.OPTIONS)}.")
        _check_range("temperature", temperature, 0, math.inf, open_below=True)
        self.learnable = learnable
        self.options = options
        self._temperature = float(temperature)
        if learnable:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use; a 0-d tensor with a gradient when it is learned."""
        return self.log_temperature.exp() if self.learnable else self._temperature

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        *,
        labels: Tensor | None = None,
        hard_negatives: Tensor | None = None,
        query_ids: Tensor | None = None,
        key_ids: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of one batch; see `info_nce`."""
        return info_nce(
            query,
            key,
            labels=labels,
            hard_negatives=hard_negatives,
            temperature=self.temperature,
            query_ids=query_ids,
            key_ids=key_ids,
            weight=weight,
            **self.options,
        )

    def extra_repr(self) -> str:
        """Shown by print(module)."""
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"temperature={float(self.temperature):g}, learnable={self.learnable}{options}"


def block_softmax(
    tensors: list[Tensor],
    blocks: tuple[Block, ...],
    *,
    scale: float,
    normalize: bool,
    backend: str = "auto",
) -> Tensor:
    """Mean cross-entropy of one softmax per row over the columns of several blocks.

    Row i is the i-th sample; it owns the columns i, i + period, ... of each block. The tensors
    (rows, D) come from a drop-in loss, which has checked them.
    """
    rows, device = blocks[0].period, tensors[0].device
    call = Call(
        labels=_arange(rows, device),
        terms=Terms(blocks=blocks, normalize=normalize),
        backend=choose(backend, device),
        needs=_needs(tensors, None, None),
        scale_value=scale,
        uniform_weight=1 / rows,
    )
    return _evaluate(tensors, None, None, call)


def _needs(tensors: list[Tensor], hard: Tensor | None, scale: Tensor | None) -> tuple[bool, ...]:
    grad = torch.is_grad_enabled()
    needs = [grad and x.requires_grad for x in (*tensors, *([] if hard is None else [hard]))]
    if grad and scale is not None and scale.requires_grad:
        needs[0] = True  # the scale's gradient is read off the queries'
    return tuple(needs)


def _evaluate(
    tensors: list[Tensor], hard: Tensor | None, scale: Tensor | None, call: Call
) -> Tensor:
    if call.backend != "reference":
        return autograd.contrast(tensors, hard, scale, call)
    once = autograd.differentiable_once
    tensors = [once(x) for x in tensors]
    hard = None if hard is None else once(hard)
    multiplier = call.scale_value if scale is None else once(scale)
    ids, terms = (call.query_ids, call.key_ids), call.terms
    losses = reference.losses(tensors, hard, multiplier, call.labels, *ids, terms)
    if terms.symmetric:
        other = reference.losses(tensors[::-1], None, multiplier, call.labels, *ids[::-1], terms)
        losses = (losses + other) / 2
    losses = losses * (call.uniform_weight if call.weight is None else call.weight)
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    return (losses if call.rowwise else losses.sum()).to(wide)


def _check_pair(query: Tensor, key: Tensor) -> None:
    for name, x in (("query", query), ("key", key)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}.")
        if x.dtype not in FLOATS:
            raise TypeError(f"{name}: expected fp64, fp32, bf16 or fp16, got {x.dtype}.")
        if x.ndim != 2 or 0 in x.shape:  # noqa: PLR2004
            raise ValueError(f"{name}: expected shape (rows >= 1, D >= 1), got {tuple(x.shape)}.")
    _check_like("key", key, query)


def _check_like(name: str, x: Tensor, query: Tensor) -> None:
    if x.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"{name}: width {x.shape[-1]} of shape {tuple(x.shape)} differs from query's, which "
            f"has shape {tuple(query.shape)}."
        )
    if x.dtype != query.dtype:
        raise TypeError(f"{name}: has dtype {x.dtype}, expected query's, {query.dtype}.")
    if x.device != query.device:
        raise ValueError(f"{name}: is on {x.device}, expected query's device, {query.device}.")


def _labels(labels: Tensor | None, query: Tensor, key: Tensor, symmetric: bool) -> Tensor:
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
        return _arange(rows, query.device)
    _check_integers("labels", labels, query, rows, "query")
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
    return labels.to(torch.int64).contiguous()


@functools.lru_cache(maxsize=8)
def _kept_arange(rows: int, device: torch.device) -> Tensor:
    return torch.arange(rows, device=device)


def _arange(rows: int, device: torch.device) -> Tensor:
    """0 ... rows - 1; in eager mode on a CPU that of the last call, for small batches."""
    keep = device.type == "cpu" and not torch.compiler.is_compiling()
    keep = keep and not torch.is_inference_mode_enabled()
    return _kept_arange(rows, device) if keep else torch.arange(rows, device=device)


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


def _ids(
    query_ids: Tensor | None, key_ids: Tensor | None, query: Tensor, key: Tensor
) -> tuple[Tensor, Tensor]:
    if query_ids is None or key_ids is None:
        missing = "query_ids" if query_ids is None else "key_ids"
        raise ValueError(f"{missing}: expected beside the other ids, got None.")
    _check_integers("query_ids", query_ids, query, query.shape[0], "query")
    _check_integers("key_ids", key_ids, query, key.shape[0], "key")
    return query_ids.to(torch.int64).contiguous(), key_ids.to(torch.int64).contiguous()


def _check_hard_negatives(hard: Tensor, query: Tensor) -> None:
    if not isinstance(hard, Tensor):
        raise TypeError(f"hard_negatives: expected a tensor, got {type(hard).__name__}.")
    if hard.ndim != 3 or hard.shape[0] != query.shape[0] or hard.shape[1] == 0:  # noqa: PLR2004
        raise ValueError(
            f"hard_negatives: expected shape ({query.shape[0]}, K >= 1, {query.shape[1]}), got "
            f"{tuple(hard.shape)}."
        )
    _check_like("hard_negatives", hard, query)


def _check_range(
    name: str, value: float, low: float, high: float, *, open_below: bool = False
) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}.")
    if not (low < value if open_below else low <= value) or value > high or value == math.inf:
        kind = f"> {low}" if open_below else f">= {low}"
        bound = "" if math.isinf(high) else f" and <= {high}"
        raise ValueError(f"{name}: expected a finite number {kind}{bound}, got {value}.")


def _scale(temperature: float | Tensor, query: Tensor) -> tuple[Tensor | None, float]:
    """1 / temperature as a tensor on the device, or as a number."""
    if not isinstance(temperature, Tensor):
        _check_range("temperature", temperature, 0, math.inf, open_below=True)
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
    elif not temperature > 0:
        raise ValueError(f"temperature: expected > 0, got {temperature.item()}.")
    return temperature.double().reciprocal(), 1.0  # in fp64, as 1 / a number is


def _row_weight(
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


def _check_finite(**tensors: Tensor | None) -> None:
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
