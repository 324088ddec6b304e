"""Sums over tiles and panels, added in order: the same bits from run to run.

Planes of a sum: exponentials above an offset, largest logit (the offset, where sums are online),
sum of logits, number of logits. Only the first is there where only it is read.
"""

import torch
from torch import Tensor


def folded(parts: list[Tensor], online: bool) -> Tensor:
    """(planes, tiles, C) of several products -> (planes, C) fp64: what is so of all tiles."""
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    planes, _, count = whole.shape
    if planes == 1:  # then the sum is all that is read
        return whole.sum(1, dtype=torch.float64)
    out = torch.zeros(4, count, dtype=torch.float64, device=whole.device)
    if online:
        largest = whole[1].amax(0)
        out[1] = largest
        whole = torch.cat([(whole[0] * (whole[1] - largest).exp2())[None], whole[1:]])
    torch.sum(whole[0], 0, dtype=torch.float64, out=out[0])
    if planes == len(out):
        torch.sum(whole[2:], 1, dtype=torch.float64, out=out[2:])
    return out


def joined(one: Tensor, other: Tensor, online: bool) -> Tensor:
    """Sums (4, N) of two panels -> of both."""
    out = one + other
    if online:
        out[1] = torch.maximum(one[1], other[1])
        out[0] = one[0] * (one[1] - out[1]).exp2() + other[0] * (other[1] - out[1]).exp2()
    return out
