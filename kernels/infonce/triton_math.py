"""Arithmetic that the Triton kernels of the loss share.

Logits are kept in units of log2, less an offset: t = s log2(e) <q, k> - offset, so that an
exponential is one instruction.
"""

import numpy as np
import triton
import triton.language as tl
from torch import Tensor

# Of every launch: fused multiply-adds, which newer releases of Triton leave out unless asked for.
FUSED = {"enable_fp_fusion": True}
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-1e38)  # stands for the largest of no logits: exp2(-inf - LOWEST) is 0
# Sums below: the offset lay so far above the row that parts of it may have been flushed to 0.
FAINT = tl.constexpr(2.0**-70)
ROUNDING = tl.constexpr(2.0**-20)  # by which equal sums in different orders may differ, relatively
SHORTEST = tl.constexpr(1e-12)  # rows below are divided by it instead of their length, as in torch
POSITIVE, KEPT, LEFT_OUT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # as terms.Own


def scale_arguments(scale: Tensor | float, other: Tensor) -> tuple[Tensor, float, float]:
    """What `scale_of` takes; where the scale is a number, another tensor stands for its pointer."""
    if isinstance(scale, Tensor):
        return scale, 0.0, 0.0
    high = float(np.float32(scale))
    return other, high, scale - high


@triton.jit
def scale_of(scale, scale_high, scale_low, LEARNED: tl.constexpr):
    """The scale in fp64: on the device where LEARNED, elsewhere the sum of two floats."""
    if LEARNED:
        s = tl.load(scale).to(tl.float64)
    else:
        s = tl.full((), scale_high, tl.float64) + tl.full((), scale_low, tl.float64)
    return s


@triton.jit
def slope_of(numbers, hardness):
    """What a similarity is multiplied by, in fp64: (s + hardness) log2(e)."""
    return (tl.load(numbers) + hardness) * LOG2E


@triton.jit
def scaled(
    similarity,  # [BM, BN] fp32
    slope,  # fp64
    offset,  # fp32 scalar
):
    """Similarity * slope - offset, of which the product is not rounded before it cancels."""
    return tl.fma(similarity, slope.to(tl.float32), -offset)


@triton.jit
def log1p(x):
    """log(1 + x) in fp64 for x >= 0, with the digits of x that 1 + x drops."""
    above = 1 + x
    return tl.where(above == 1, x, tl.log(above) * (x / (above - 1)))


@triton.jit
def cross_entropy(
    negative,  # sum of the negatives' exponentials above the offset, fp64
    behind,  # the positive's logit less the offset, in log2, fp64
):
    """-log p(positive), 1 / Z and 1 - p(positive), without cancellation."""
    positive = tl.exp2(behind)
    total = positive + negative
    # Two forms: the first keeps the digits of a converged loss, the second cannot overflow.
    near = log1p(negative / positive)
    loss = tl.where(negative <= positive, near, tl.log(total) - LN2 * behind)
    return loss, 1 / total, negative / total
