"""InfoNCE written out, in double precision. The oracle of the tests; never optimised."""

import torch
from torch import Tensor
from torch.nn import functional as F

from simcse_fast.kernels.infonce.terms import Own, Terms


def unit_rows(x: Tensor) -> Tensor:
    """Rows divided by their length; a zero row stays zero and gets gradient zero."""
    zero = (x == 0).all(-1, keepdim=True)
    return F.normalize(x.masked_fill(zero, 1), dim=-1).masked_fill(zero, 0)


def losses(tensors, hard, scale, labels, query_ids, key_ids, terms: Terms) -> Tensor:  # type: ignore[no-untyped-def]
    """Cross-entropy of each row's remaining logits: tensors (rows, D), hard (M, K, D) -> (M,)."""
    tensors = [x.double() for x in tensors]
    unit = unit_rows if terms.normalize else torch.Tensor.contiguous
    units, i, logits = (
        [unit(x) for x in tensors],
        torch.arange(len(labels), device=labels.device),
        [],
    )
    for number, block in enumerate(terms.blocks):
        cosine = units[block.anchor][: len(labels)] @ units[block.key].T  # (M, N)
        own = torch.zeros_like(cosine, dtype=torch.bool)
        for first in range(0, cosine.shape[1], block.period):
            own[i, labels + first] = True
        hardness = torch.where(own, cosine.new_tensor(block.own_hardness), block.hardness)
        out = own & (block.own == Own.LEFT_OUT)
        if number == 0:
            out |= cosine > cosine[i, labels][:, None] + terms.margin
            out |= False if query_ids is None else query_ids[:, None] == key_ids
            hardness[i, labels], out[i, labels] = 0, False
        logits.append((scale * cosine + hardness * cosine.detach()).masked_fill(out, -torch.inf))
    if hard is not None:
        cosine = (units[0][:, None] * unit(hard.double())).sum(-1)  # (M, K)
        both = scale * cosine + terms.blocks[0].hardness * cosine.detach()
        logits.append(both + both.new_tensor(terms.hard_negative_weight).log())
    log_p = torch.cat(logits, 1).log_softmax(1)
    mean = log_p.masked_fill(log_p == -torch.inf, 0).sum(1) / (log_p > -torch.inf).sum(1)
    return -(1 - terms.label_smoothing) * log_p[i, labels] - terms.label_smoothing * mean
