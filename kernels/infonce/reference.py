"""InfoNCE written out. The oracle of the tests; never optimised."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from simcse_fast.kernels.infonce.terms import Own, Terms


def unit_rows(x: Tensor, normalize: bool) -> Tensor:
    """Rows divided by their length; a zero row stays zero and gets gradient zero."""
    zero = (x == 0).all(-1, keepdim=True)
    return F.normalize(x.masked_fill(zero, 1), dim=-1).masked_fill(zero, 0) if normalize else x


def row_losses(tensors, hard, scale, labels, query_ids, key_ids, terms: Terms) -> Tensor:  # type: ignore[no-untyped-def]
    """Row losses: cross-entropy of the remaining logits against each row's positive.

    tensors: (rows, D) each; hard (M, K, D) or None; scale 0-d; labels, query_ids (M,),
    key_ids (N,) or None -> (M,), in the dtype of the inputs.
    """
    units = [unit_rows(t, terms.normalize) for t in tensors]
    rows, columns = torch.arange(len(labels), device=labels.device), []
    for number, block in enumerate(terms.blocks):
        cosine = units[block.anchor][: len(labels)] @ units[block.key].T  # (M, N)
        own = torch.zeros_like(cosine, dtype=torch.bool)
        for first in range(0, cosine.shape[1], block.period):
            own[rows, labels + first] = True
        hardness = torch.where(own, block.own_hardness, block.hardness).to(cosine.dtype)
        out = own & (block.own == Own.LEFT_OUT)
        if number == 0:
            hardness[rows, labels] = 0
            out |= cosine > cosine[rows, labels][:, None] + terms.margin
            if query_ids is not None:
                out |= query_ids[:, None] == key_ids
            out[rows, labels] = False
        logits = scale * cosine + hardness * cosine.detach()
        columns.append(logits.masked_fill(out, -torch.inf))
    if hard is not None:
        units_hard = unit_rows(hard, terms.normalize)
        cosine = (units[terms.blocks[0].anchor][:, None] * units_hard).sum(-1)  # (M, K)
        logits = scale * cosine + terms.blocks[0].hardness * cosine.detach()
        columns.append(logits + math.log(terms.hard_negative_weight))
    log_p = torch.cat(columns, 1).log_softmax(1)
    remains = log_p > -torch.inf  # smoothing spreads over what is left
    mean = log_p.masked_fill(~remains, 0).sum(1) / remains.sum(1)
    return -(1 - terms.label_smoothing) * log_p[rows, labels] - terms.label_smoothing * mean


def losses(tensors, hard, scale, labels, query_ids, key_ids, terms: Terms) -> Tensor:  # type: ignore[no-untyped-def]
    """Row losses, or with terms.symmetric their mean with the losses of the columns."""
    wide = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    hard = None if hard is None else hard.to(wide[0].dtype)
    forward = row_losses(wide, hard, scale, labels, query_ids, key_ids, terms)
    if not terms.symmetric:
        return forward
    return (forward + row_losses(wide[::-1], None, scale, labels, key_ids, query_ids, terms)) / 2
