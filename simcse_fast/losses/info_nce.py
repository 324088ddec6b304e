"""The public loss: arguments, defaults, and the choice of what runs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from simcse_fast import autograd
from simcse_fast.autograd import Call
from simcse_fast.backend import choose
from simcse_fast.distributed import ranks_of
from simcse_fast.kernels.infonce import reference
from simcse_fast.kernels.infonce.terms import Block, Terms
from simcse_fast.losses import arguments


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
        process_group: a `torch.distributed.ProcessGroup` or "world": the keys of all its ranks
            are the columns, rows and labels are this rank's; see docs/distributed.md.
        backend: "auto", "reference", "torch", "cpu", "triton" or "cuda"; see `backends()`.

    Returns:
        0-d tensor, or (M,) for "none"; fp32, fp64 for fp64 input.

    Raises:
        ValueError, TypeError: an argument is out of its range, or the ranks of a group do not fit
            together; the message names it.
        BackendUnavailableError: the named back-end cannot run here.
        RuntimeError: a rank of the group was lost or late.

    Reference: van den Oord et al. 2018, arXiv 1807.03748; Gao et al. 2021, arXiv 2104.08821.

    Example:
        >>> query, key = torch.eye(4), torch.eye(4)
        >>> round(info_nce(query, key, temperature=1.0).item(), 4)  # log(1 + 3 / e)
        0.7437
    """
    if process_group is not None:
        from simcse_fast.losses.across_ranks import over_ranks  # noqa: PLC0415  # it calls this one

        return over_ranks(
            ranks_of(process_group),
            query,
            key,
            labels=labels,
            hard_negatives=hard_negatives,
            temperature=temperature,
            symmetric=symmetric,
            query_ids=query_ids,
            key_ids=key_ids,
            weight=weight,
            reduction=reduction,
            check_finite=check_finite,
            false_negative_margin=false_negative_margin,
            hardness=hardness,
            hard_negative_weight=hard_negative_weight,
            label_smoothing=label_smoothing,
            normalize=normalize,
            backend=backend,
        )
    arguments.check_pair(query, key)
    counted = labels is None
    labels = arguments.labels_of(labels, query, key, symmetric)
    scale, scale_value = arguments.scale_of(temperature, query)
    if hard_negatives is not None:
        arguments.check_hard_negatives(hard_negatives, query)
    if query_ids is not None or key_ids is not None:
        query_ids, key_ids = arguments.ids_of(query_ids, key_ids, query, key)
    arguments.check_options(
        hardness=hardness,
        hard_negative_weight=hard_negative_weight,
        label_smoothing=label_smoothing,
        false_negative_margin=false_negative_margin,
        reduction=reduction,
    )
    if check_finite:
        arguments.check_finite(query=query, key=key, hard_negatives=hard_negatives)
    terms = Terms(
        blocks=(Block(0, 1, key.shape[0], hardness=float(hardness)),),
        symmetric=symmetric,
        normalize=normalize,
        margin=math.inf if false_negative_margin is None else float(false_negative_margin),
        label_smoothing=float(label_smoothing),
        hard_negative_weight=float(hard_negative_weight),
    )
    row_weight, uniform = arguments.row_weight_of(weight, query, reduction)
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
        counted=counted,
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
        ValueError, TypeError: the temperature or an option is out of its range.

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
        arguments.check_range("temperature", temperature, 0, math.inf, open_below=True)
        arguments.check_options(**options)
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
        temperature = f"{torch.as_tensor(self.temperature).item():g}"
        return f"temperature={temperature}, learnable={self.learnable}{options}"


def block_softmax(
    tensors: list[Tensor],
    blocks: tuple[Block, ...],
    *,
    scale: float,
    normalize: bool,
    labels: Tensor | None = None,  # (rows,)
    factor: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Mean cross-entropy of one softmax per row over the columns of several blocks.

    Row i owns the columns labels[i], labels[i] + period, ... of each block; without labels it is
    the i-th sample. With a factor, the sum times the factor. The tensors (rows, D) come from a
    drop-in loss, which has checked them.
    """
    own = arguments.arange(blocks[0].period, tensors[0]) if labels is None else labels
    call = Call(
        labels=own,
        terms=Terms(blocks=blocks, normalize=normalize),
        backend=choose(backend, tensors[0].device),
        needs=_needs(tensors, None, None),
        scale_value=scale,
        uniform_weight=1 / len(own) if factor is None else factor,
        counted=labels is None,
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
