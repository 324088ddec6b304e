"""Attention of short sentences on a CPU, by the native kernel instead of torch's.

At the lengths of sentences torch's fused attention takes a sixth of an encoder's time on a CPU,
though its products are a hundredth of the operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from simcse_fast.backend import attention_kernel


class ShortAttention(TorchFunctionMode):
    """While it is entered, `scaled_dot_product_attention` takes the native kernel where it can.

    Example:
        >>> x = torch.randn(2, 4, 10, 32)  # sentences, heads, tokens, numbers of a head
        >>> with ShortAttention():
        ...     ours = torch.nn.functional.scaled_dot_product_attention(x, x, x)
        >>> theirs = torch.nn.functional.scaled_dot_product_attention(x, x, x)
        >>> torch.testing.assert_close(ours, theirs)
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernel = attention_kernel()
        self.mask: Tensor | None = None
        self.bias: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Any function of torch."""
        given = kwargs or {}
        known = func is scaled_dot_product_attention and self.kernel is not None
        if known and not torch.compiler.is_compiling():
            found = self._attend(*args, **given)
            if found is not None:
                return found
        return func(*args, **given)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor | None:
        """None: not a case of the kernel."""
        if dropout_p or is_causal or enable_gqa or not self.kernel.takes(query, key, value):
            return None
        if torch.is_autocast_enabled("cpu") or not self._masks(attn_mask, query):
            return None
        scale = query.shape[3] ** -0.5 if scale is None else scale
        bias = None if attn_mask is None else self.bias
        out: Tensor = _Attention.apply(query, key, value, bias, scale, self.kernel)  # type: ignore[no-untyped-call]
        return out

    def _masks(self, mask: Tensor | None, query: Tensor) -> bool:
        """Whether the mask is one of the kernel's; all layers have the same, looked at once."""
        if mask is None or mask is self.mask:
            return True
        batch, _, length, _ = query.shape
        if mask.shape != (batch, 1, length, length) or mask.requires_grad:
            return False
        self.mask, self.bias = mask, self.kernel.bias_of(mask)
        return True


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,  # (B, H, S, D), as key and value
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        scale: float,
        kernel: Any,
    ) -> Tensor:
        keep = any(ctx.needs_input_grad)
        out, weights = kernel.forward(query, key, value, bias, scale, keep=keep)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale, ctx.kernel = scale, kernel
        found: Tensor = out
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.kernel.backward(gradient, *ctx.saved_tensors, ctx.scale)
        return *found, None, None, None
