"""Triton kernels of a path integral: the points of all nodes in one pass, and what they gather.

Both are bound by memory. A program takes one row of `sentence` and a few tokens, whose embeddings
it holds whole; rows are the first axis of the grid, so that programs that run side by side read the
same words where the nodes of a sentence follow each other, once from memory and then from cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 4096  # embeddings up to here are held whole, wider ones go by in several blocks
NUMBERS = 2048  # of a tile of 128 threads: twice as many spill where rows are not aligned
TOKENS = 16  # the most of a tile: narrower embeddings leave threads without work


def _block(width: int) -> dict[str, int]:
    columns = min(WIDEST, triton.next_power_of_2(max(1, width)))
    tokens = max(1, min(TOKENS, NUMBERS // columns))
    return {"BT": tokens, "BD": columns, "num_warps": 8 if columns > NUMBERS else 4}


def _whole(x: Tensor) -> Tensor:
    """Embeddings whose numbers lie side by side; copied where they do not."""
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit(do_not_specialize=["tokens"])
def path_points_kernel(
    words,  # (N, S, H)
    sentence_stride,
    token_stride,
    baseline,  # (H,)
    moves,  # (N, S) bytes
    sentence,  # (R,) row of `words`
    alpha,  # (R,) place on the path
    out,  # (R, S, H) out
    tokens,  # S
    width,  # H
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Embeddings b + alpha (w - b) where a token moves, w where it stays."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1).to(tl.int64) * BT + tl.arange(0, BT)
    there = t < tokens
    n = tl.load(sentence + row)
    place = tl.load(alpha + row)
    moving = tl.load(moves + n * tokens + t, mask=there, other=0) != 0  # [BT]
    for d in range(0, width, BD):
        j = d + tl.arange(0, BD)
        inside = there[:, None] & (j[None, :] < width)
        at = words + n * sentence_stride + t[:, None] * token_stride + j[None, :]
        w = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(baseline + j[None, :], mask=j[None, :] < width, other=0.0).to(tl.float32)
        point = tl.where(moving[:, None], b + place * (w - b), w)  # [BT, BD]
        to = out + row * tokens * width + t[:, None] * width + j[None, :]
        tl.store(to, point.to(out.dtype.element_ty), mask=inside)


def path_points(
    words: Tensor,  # (N, S, H), any strides
    baseline: Tensor,  # (H,)
    moves: Tensor,  # (N, S) bool or uint8
    sentence: Tensor,  # (R,) int64
    alpha: Tensor,  # (R,) fp32
) -> Tensor:
    """Embeddings (R, S, H) at the places `alpha` of the paths of `sentence`, as the words' type."""
    words, moves, (_, tokens, width) = _whole(words), moves.contiguous(), words.shape
    block = _block(width)
    out = words.new_empty(len(sentence), tokens, width)
    if out.numel():
        path_points_kernel[(len(sentence), triton.cdiv(tokens, block["BT"]))](
            *(words, *words.stride()[:2], baseline.contiguous(), moves.view(torch.uint8)),
            *(sentence.contiguous(), alpha.contiguous(), out, tokens, width),
            **block,
        )
    return out


@triton.jit(do_not_specialize=["tokens"])
def path_contributions_kernel(
    gradient,  # (R, S, H)
    gradient_row_stride,
    gradient_token_stride,
    words,  # (N, S, H)
    sentence_stride,
    token_stride,
    baseline,  # (H,)
    moves,  # (N, S) bytes
    sentence,  # (R,) row of `words`
    out,  # (R, S) fp32 out
    tokens,  # S
    width,  # H
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """<gradient, w - b> where a token moves, 0 where it stays."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1).to(tl.int64) * BT + tl.arange(0, BT)
    n = tl.load(sentence + row)
    # A token that stays is not read at all: padding costs nothing, and may hold anything.
    moving = tl.load(moves + n * tokens + t, mask=t < tokens, other=0) != 0  # [BT]
    total = tl.zeros([BT], dtype=tl.float32)
    for d in range(0, width, BD):
        j = d + tl.arange(0, BD)
        inside = moving[:, None] & (j[None, :] < width)
        g_at = gradient + row * gradient_row_stride + t[:, None] * gradient_token_stride
        g = tl.load(g_at + j[None, :], mask=inside, other=0.0)
        w_at = words + n * sentence_stride + t[:, None] * token_stride
        w = tl.load(w_at + j[None, :], mask=inside, other=0.0)
        b = tl.load(baseline + j[None, :], mask=j[None, :] < width, other=0.0)
        total += tl.sum(g.to(tl.float32) * (w.to(tl.float32) - b.to(tl.float32)), 1)
    # A baseline that is not finite would make 0 * (0 - b) of what was not read.
    tl.store(out + row * tokens + t, tl.where(moving, total, 0.0), mask=t < tokens)


def path_contributions(
    gradient: Tensor,  # (R, S, H), any strides
    words: Tensor,  # (N, S, H), any strides
    baseline: Tensor,  # (H,)
    moves: Tensor,  # (N, S) bool or uint8
    sentence: Tensor,  # (R,) int64
) -> Tensor:
    """Each token's <gradient, w - b>, (R, S) fp32; 0 where it stays, whatever its gradient is."""
    gradient, words, moves = _whole(gradient), _whole(words), moves.contiguous()
    (rows, tokens, width), block = gradient.shape, _block(gradient.shape[2])
    out = gradient.new_empty(rows, tokens, dtype=torch.float32)
    if out.numel():
        path_contributions_kernel[(rows, triton.cdiv(tokens, block["BT"]))](
            *(gradient, *gradient.stride()[:2], words, *words.stride()[:2], baseline.contiguous()),
            *(moves.view(torch.uint8), sentence.contiguous(), out, tokens, width),
            **block,
        )
    return out
