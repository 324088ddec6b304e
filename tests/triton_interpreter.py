"""Triton's interpreter, with its bfloat16 repaired, so that kernels run where no GPU is.

As it comes it multiplies the bits of bfloat16 numbers as integers, and rounds to them towards zero
instead of to nearest, as every device does.
"""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_Builder = interpreter.InterpreterBuilder
_dot, _cast = _Builder.create_dot, _Builder.cast_impl


def widened(x):
    """A bfloat16 operand in float32; any other as it is."""
    if x.dtype.scalar != tl.bfloat16:
        return x
    bits = x.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


def nearest(data):
    """The bits of the nearest bfloat16 numbers, ties to even."""
    data = np.ascontiguousarray(data, dtype=np.float32)
    bits = data.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(data), 0x7FC0, rounded).astype(np.uint16)


def create_dot(self, a, b, d, *precision):
    """The product, of bfloat16 numbers too."""
    return _dot(self, widened(a), widened(b), d, *precision)


def cast_impl(self, src, dst_type):
    """The conversion, to bfloat16 by rounding to nearest."""
    if dst_type.scalar != tl.bfloat16 or src.dtype.scalar == tl.bfloat16:
        return _cast(self, src, dst_type)
    return interpreter.TensorHandle(nearest(src.data), dst_type.scalar)


def repair():
    """Put both in place."""
    _Builder.create_dot, _Builder.cast_impl = create_dot, cast_impl
