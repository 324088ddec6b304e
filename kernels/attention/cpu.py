"""Softmax attention of short sequences in one native call (csrc/cpu), float32 on the CPU."""

import ctypes
import math

import torch
from torch import Tensor

from simcse_fast.kernels import native

LONGEST, DEEPEST = 128, 128  # SF_ATTENTION_LENGTH, SF_ATTENTION_DEPTH
VECTOR = 16  # numbers: of a head a multiple of it, of a key's weights rounded up to one
LOG2E = math.log2(math.e)


def takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether forward and backward are made for them."""
    one = query.dim() == 4 and query.shape == key.shape == value.shape and query.numel() > 0  # noqa: PLR2004
    if not one or query.shape[2] > LONGEST or query.shape[3] > DEEPEST or query.shape[3] % VECTOR:
        return False
    return all(
        x.dtype == torch.float32 and x.device.type == "cpu" and x.stride(3) == 1
        for x in (query, key, value)
    )


def bias_of(mask: Tensor) -> Tensor:
    """(B, 1, S, S) mask, bool or added to logits -> (B, S of keys, padded S), in units of log2."""
    length = mask.shape[-1]
    bias = torch.zeros(len(mask), length, _padded(length))
    of_keys = mask[:, 0].transpose(1, 2)
    if mask.dtype == torch.bool:
        bias[..., :length].masked_fill_(~of_keys, -math.inf)
    else:
        bias[..., :length] = LOG2E * of_keys
    return bias


def forward(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, *, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """(B, H, S, D) each -> (B, H, S, D), and the weights (B, H, S of keys, padded S) if kept."""
    batch, heads, length, _ = query.shape
    weights = query.new_empty(batch, heads, length, _padded(length)) if keep else None
    out = _heads_like(query)
    problem = _problem(query, key, value, out, weights, bias, scale)
    native.load().sf_attention_forward(ctypes.byref(problem))
    return out, weights


def backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, weights: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, (B, H, S, D) each."""
    if gradient.stride(3) != 1:
        gradient = gradient.contiguous()
    found = _heads_like(query), _heads_like(query), _heads_like(query)
    problem = _problem(query, key, value, gradient, weights, None, scale)
    problem.query_gradient, problem.key_gradient, problem.value_gradient = map(_at, found)
    native.load().sf_attention_backward(ctypes.byref(problem))
    return found


def _padded(length: int) -> int:
    """sf_attention_stride."""
    return -(-length // VECTOR) * VECTOR


def _heads_like(x: Tensor) -> Tensor:
    """(B, H, S, D) in the memory of a (B, S, H * D), as projections before and behind have it."""
    batch, heads, length, depth = x.shape
    return x.new_empty(batch, length, heads, depth).transpose(1, 2)


def _at(x: Tensor) -> native.Heads:
    return native.Heads(x.data_ptr(), *x.stride()[:3])


def _problem(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    weights: Tensor | None,
    bias: Tensor | None,
    scale: float,
) -> native.Attention:
    return native.Attention(
        *query.shape,
        *(scale, None if bias is None else bias.data_ptr()),
        None if weights is None else weights.data_ptr(),
        *map(_at, (query, key, value, out)),
        threads=torch.get_num_threads(),
    )
