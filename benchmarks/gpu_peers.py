"""The loss on a GPU as others compute it, and the bare products that none can do without.

A maker takes `symmetric` and returns loss(query, key) of raw embeddings (N, D). What a package
lacks, here or altogether, is an exception; its row in the result says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers import SCALE, textbook
from simcse_fast import info_nce

BIAS = -10.0  # of the sigmoid loss, where its training starts
Loss = Callable[[Tensor, Tensor], Tensor]


def unit(x: Tensor) -> Tensor:
    """Rows of length 1."""
    return F.normalize(x, dim=-1)


def indices(x: Tensor) -> Tensor:
    """Row i's positive is key i."""
    return torch.arange(len(x), device=x.device)


def textbook_symmetric(query: Tensor, key: Tensor) -> Tensor:
    """What users of CLIP write."""
    logits = unit(query) @ unit(key).T * SCALE
    labels = indices(query)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def sigmoid(query: Tensor, key: Tensor) -> Tensor:
    """SigLIP's loss, of the same products: what siglip-kernel computes."""
    logits = unit(query) @ unit(key).T * SCALE + BIAS
    signs = 2 * torch.eye(len(query), dtype=logits.dtype, device=query.device) - 1
    return -F.logsigmoid(signs * logits).sum() / len(query)


def eager(symmetric: bool) -> Loss:
    """The textbook loss as it is written."""
    return textbook_symmetric if symmetric else textbook


def both_ways(loss: Loss, symmetric: bool) -> Loss:
    """The mean of both directions, for packages that have one."""
    return (lambda q, k: (loss(q, k) + loss(k, q)) / 2) if symmetric else loss


def ours(backend: str) -> Callable[[bool], Loss]:
    """The loss of this package by one of its back-ends."""
    return lambda symmetric: (
        lambda q, k: info_nce(q, k, temperature=1 / SCALE, symmetric=symmetric, backend=backend)
    )


def memeff(symmetric: bool) -> Loss:
    """With its gradients as they are, not rescaled, and no false-negative filter."""
    module = importlib.import_module("memeff")
    if symmetric:
        return module.MemoryEfficientCLIPLoss(temperature=1 / SCALE, stable=False)  # type: ignore[no-any-return]
    return module.MemoryEfficientQwen3Loss(temperature=1 / SCALE, margin=2.0, stable=False)  # type: ignore[no-any-return]


def siglip_kernel(symmetric: bool) -> Loss:
    """The best kernel it chooses itself; scale and bias are learned, as in its users' models."""
    module = importlib.import_module("siglip_kernel")
    if symmetric:
        raise NotImplementedError("the sigmoid loss has one form; it stands among the row-only")

    def loss(query: Tensor, key: Tensor) -> Tensor:
        scale = torch.full((), SCALE, device=query.device).log_().requires_grad_()
        bias = torch.full((), BIAS, device=query.device, requires_grad=True)
        return module.fused_siglip_loss(unit(query), unit(key), scale, bias)  # type: ignore[no-any-return]

    return loss


def inf_cl(symmetric: bool) -> Loss:
    """Its kernel for one device."""
    flash = importlib.import_module("inf_cl").cal_flash_loss
    return both_ways(lambda q, k: flash(unit(q), unit(k), scale=SCALE).mean(), symmetric)


def cut_cross_entropy(symmetric: bool) -> Loss:
    """Without its filter, which would leave out most of this softmax's gradient."""
    linear = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return both_ways(
        lambda q, k: linear(unit(q) * SCALE, unit(k), indices(q), filter_eps=None), symmetric
    )


def liger_kernel(symmetric: bool) -> Loss:
    """Its fused linear cross-entropy, gradients accumulated in fp32."""
    module = importlib.import_module("liger_kernel.transformers.fused_linear_cross_entropy")
    linear = module.LigerFusedLinearCrossEntropyLoss(accum_dtype=torch.float32)
    return both_ways(lambda q, k: linear(unit(k), unit(q) * SCALE, indices(q)), symmetric)


LOSSES: dict[str, Callable[[bool], Loss]] = {
    "simcse_fast triton": ours("triton"),
    "simcse_fast cuda": ours("cuda"),
    "simcse_fast torch": ours("torch"),
    "eager": eager,
    "torch.compile": lambda symmetric: torch.compile(eager(symmetric), dynamic=False),
    "memeff": memeff,
    "siglip-kernel": siglip_kernel,
    "inf-cl": inf_cl,
    "cut-cross-entropy": cut_cross_entropy,
    "liger-kernel": liger_kernel,
}


def exact(name: str, symmetric: bool) -> Loss:
    """What a method's gradients are measured against, in fp64."""
    return sigmoid if name == "siglip-kernel" else eager(symmetric)


def accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to total, in the type of total."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:  # the rehearsal's, without a mixed product
        total += left @ right


@torch.compile
def exponentials(panel: Tensor) -> Tensor:
    """The pass that an epilogue would save: exp2 in place, and row sums in fp32."""
    e = torch.exp2(panel.float() * SCALE - SCALE)
    panel.copy_(e)
    return e.sum(1)


def products(
    query: Tensor,
    key: Tensor,
    *,
    rows: int,
    count: int,
    between: Callable[[Tensor], Any] = lambda panel: panel,
) -> Callable[[], None]:
    """The floor: `count` products per panel of `rows` rows, gradients accumulated in fp32.

    1: similarities; 3: and G K, G^T Q; 4: similarities formed twice, as the symmetric loss does
    when they fit no workspace. `between` is called on each panel of similarities.
    """
    q, k = unit(query.detach()), unit(key.detach())
    panel = q.new_empty(rows, len(k))
    of_query, of_key = (torch.zeros_like(x, dtype=torch.float32) for x in (q, k))

    def run() -> None:
        for begin in range(0, len(q), rows):
            mine = q[begin : begin + rows]
            part = panel[: len(mine)]
            for _ in range(2 if count == 4 else 1):
                torch.mm(mine, k.T, out=part)
            between(part)
            if count > 1:
                accumulate(of_query[begin : begin + rows], part, k)
                accumulate(of_key, part.T, mine)

    return run
