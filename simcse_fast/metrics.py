"""Alignment and uniformity of embeddings on the sphere, as metrics and as losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from simcse_fast import autograd_metrics
from simcse_fast.autograd import differentiable_once
from simcse_fast.backend import choose
from simcse_fast.kernels.alignment import reference as alignment_reference
from simcse_fast.kernels.uniformity import reference as uniformity_reference
from simcse_fast.losses.arguments import check_range, check_rows, check_same_kind

PAIR = 2  # rows that make one


def alignment(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    *,
    alpha: float = 2,
    normalize: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Mean distance of positive pairs, to a power.

    alignment(x, y) = mean_i |x_i - y_i|^alpha

    Differentiable once. Needs memory for the gradients that are wanted and some rows (all of them
    once more where they are of a half type, or not contiguous).

    Args:
        x: (N, D) embeddings, N >= 1: fp64, fp32, bf16 or fp16, on any device.
        y: (N, D) embeddings of the same sentences' positives, like x.
        alpha: power of the distance, > 0; where it is below 1, pairs that coincide still get
            gradient 0.
        normalize: divide rows by their length first, as SimCSE does; a zero row stays zero.
        backend: as of `info_nce`.

    Returns:
        0-d tensor, fp32 (fp64 for fp64 input): 0 when all pairs coincide, lower is better.

    Raises:
        ValueError: x or y is not (N >= 1, D), they differ in shape or device, or alpha <= 0.
        TypeError: they are no floating-point tensors of one type.

    Reference: Wang and Isola 2020, arXiv 2005.10242, eq. 1.

    Example:
        >>> alignment(torch.eye(4), torch.eye(4).roll(1, 0)).item()  # right angles
        2.0
    """
    check_rows("x", x, least=1)
    check_rows("y", y, least=1)
    check_same_kind("y", y, "x", x)
    if len(x) != len(y):
        raise ValueError(
            f"y: expected as many rows as x, got shapes {tuple(y.shape)} and {tuple(x.shape)}."
        )
    check_range("alpha", alpha, 0, float("inf"), open_below=True)
    chosen = choose(backend, x.device)
    _check_mode(x, y)
    if chosen == "reference":
        pair = differentiable_once(x), differentiable_once(y)
        return _wide(alignment_reference.alignment(*pair, alpha, normalize))
    needs = [torch.is_grad_enabled() and z.requires_grad for z in (x, y)]
    value: Tensor = autograd_metrics.alignment(x, y, float(alpha), normalize, needs, chosen)[0]
    return value


def uniformity(
    x: Tensor,  # (N, D)
    *,
    t: float = 2,
    normalize: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Log of the mean Gaussian potential over all unordered pairs of rows.

    uniformity(x) = log mean_{i<j} exp(-t |x_i - x_j|^2)

    Differentiable once. Each pair is computed once, in tiles (on a CPU of 4 MiB, in fp64 of 8)
    beside two copies of x: never N x N numbers. Where rows lie so far apart that all potentials
    vanish a second pass is made, and where rows are so long, or t so large, that products in their
    type would lose the distances of close ones, in fp64. A row that is not finite gives NaN.

    Args:
        x: (N, D) embeddings, N >= 2: fp64, fp32, bf16 or fp16, on any device.
        t: inverse temperature of the potential, > 0.
        normalize: divide rows by their length first, as SimCSE does; a zero row stays zero.
        backend: as of `info_nce`.

    Returns:
        0-d tensor, fp32 (fp64 for fp64 input): 0 when all rows coincide, lower is more uniform.

    Raises:
        ValueError: x is not (N >= 2, D), or t <= 0.
        TypeError: x is no floating-point tensor.

    Reference: Wang and Isola 2020, arXiv 2005.10242, eq. 2.

    Example:
        >>> uniformity(torch.eye(4)).item()  # six pairs at squared distance 2
        -4.0
    """
    check_rows("x", x, least=PAIR, why="; uniformity is a mean over pairs of rows")
    check_range("t", t, 0, float("inf"), open_below=True)
    chosen = choose(backend, x.device)
    _check_mode(x)
    if chosen == "reference":
        return _wide(uniformity_reference.uniformity(differentiable_once(x), t, normalize))
    needed = torch.is_grad_enabled() and x.requires_grad
    value: Tensor = autograd_metrics.uniformity(x, float(t), normalize, needed, chosen)[0]
    return value


def _check_mode(*tensors: Tensor) -> None:
    """Forward-mode derivatives would come out as zero."""
    if torch.compiler.is_compiling():
        return
    unpack: Any = forward_ad.unpack_dual
    if any(unpack(x).tangent is not None for x in tensors):
        raise NotImplementedError(
            "alignment and uniformity have no forward-mode derivatives; the files reference.py in "
            "simcse_fast/kernels have."
        )


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


class _Metric(nn.Module):
    """A metric with its options, as a module."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def extra_repr(self) -> str:
        """Shown by print(module)."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class Alignment(_Metric):
    """`alignment` as a module.

    Args:
        alpha: power of the distance, > 0.
        normalize: divide rows by their length first.
        backend: as of `info_nce`.

    Example:
        >>> Alignment(alpha=1)(torch.eye(2), -torch.eye(2)).item()
        2.0
    """

    def __init__(self, alpha: float = 2, normalize: bool = True, backend: str = "auto") -> None:
        check_range("alpha", alpha, 0, float("inf"), open_below=True)
        super().__init__(alpha=alpha, normalize=normalize, backend=backend)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(N, D), (N, D) -> 0-d."""
        return alignment(x, y, **self.options)


class Uniformity(_Metric):
    """`uniformity` as a module.

    Args:
        t: inverse temperature of the potential, > 0.
        normalize: divide rows by their length first.
        backend: as of `info_nce`.

    Example:
        >>> Uniformity()(torch.eye(4)).item()
        -4.0
    """

    def __init__(self, t: float = 2, normalize: bool = True, backend: str = "auto") -> None:
        check_range("t", t, 0, float("inf"), open_below=True)
        super().__init__(t=t, normalize=normalize, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> 0-d."""
        return uniformity(x, **self.options)
