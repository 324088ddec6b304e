"""The points of a path and what is gathered along it, written out. The oracle of the tests."""

import torch
from torch import Tensor


def path_points(
    words: Tensor, baseline: Tensor, moves: Tensor, sentence: Tensor, alpha: Tensor
) -> Tensor:
    """Embeddings b + alpha (w - b) where a token moves, w where it stays.

    words (N, S, H), baseline (H,), moves (N, S), sentence (R,), alpha (R,) -> (R, S, H), in the
    dtype of words; computed in fp32, or in fp64 where words are.
    """
    wide = torch.promote_types(words.dtype, torch.float32)
    end, start = words[sentence].to(wide), baseline.to(wide)  # (R, S, H), (H,)
    point = start + alpha.to(wide)[:, None, None] * (end - start)
    return torch.where(moves[sentence].bool()[:, :, None], point, end).to(words.dtype)


def path_contributions(
    gradient: Tensor, words: Tensor, baseline: Tensor, moves: Tensor, sentence: Tensor
) -> Tensor:
    """<gradient, w - b> of each token that moves; 0 where it stays, whatever its gradient is.

    gradient (R, S, H), words (N, S, H), baseline (H,), moves (N, S), sentence (R,) -> (R, S), in
    fp32, or in fp64 where words are.
    """
    wide = torch.promote_types(words.dtype, torch.float32)
    way = words[sentence].to(wide) - baseline.to(wide)  # (R, S, H)
    return (gradient.to(wide) * way).sum(-1).masked_fill(~moves[sentence].bool(), 0)
