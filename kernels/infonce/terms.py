"""What travels beside the tensors: which products form the logits, and what changes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class Own(IntEnum):
    """What becomes of the columns that belong to the row's own sample."""

    POSITIVE = 0  # the first one is the positive, later ones are kept
    KEPT = 1  # they stay in the denominator, under the block's own_hardness
    LEFT_OUT = 2  # they leave it


@dataclass(frozen=True)
class Block:
    """Columns of the row softmax: similarities of one tensor's first M rows with another's rows.

    The row's own columns are labels[i], labels[i] + period, labels[i] + 2 period, ...
    """

    anchor: int  # index of the tensor whose rows stand left
    key: int  # index of the tensor whose rows are the columns
    period: int  # divides the number of columns; equals it when a row owns one column
    own: Own = Own.POSITIVE
    hardness: float = 0.0  # added to a negative's logit, per unit of similarity
    own_hardness: float = 0.0  # the same for own columns other than the positive


@dataclass(frozen=True)
class Terms:
    """What changes a row's cross-entropy besides the similarities. Read by every back-end."""

    blocks: tuple[Block, ...]  # the first holds the positive
    symmetric: bool = False  # the mean with the softmax of each column; one block, M == N
    normalize: bool = True
    margin: float = float("inf")  # columns above similarity(positive) + margin are left out
    label_smoothing: float = 0.0
    hard_negative_weight: float = 1.0


@dataclass(frozen=True)
class Segment:
    """Columns [begin, begin + width) of a panel, in which each row owns one column."""

    begin: int
    width: int
    own: Own
    hardness: float
    own_hardness: float


@dataclass(frozen=True)
class Job:
    """The whole problem, as the parts of the plan see it beside a panel of similarities."""

    terms: Terms
    segments: tuple[Segment, ...]
    scale: Tensor | float  # 1 / temperature
    labels: Tensor  # (M,)
    query_ids: Tensor | None  # (M,)
    key_ids: Tensor | None  # (N,)
    weight: Tensor | None  # (M,) of each row's loss in the result
    uniform_weight: float  # the same, where weight is None


@dataclass(frozen=True)
class Softmax:
    """What remains of the softmax of each row (or column): all that its gradient needs."""

    loss: Tensor  # (M,) cross-entropy, not weighted
    offset: Tensor  # (M,) the largest logit, in the part's own unit
    inverse_sum: Tensor  # (M,) 1 / sum of exponentials above the offset
    miss: Tensor  # (M,) 1 - p(positive)
    smoothing: Tensor  # (M,) label_smoothing / number of remaining logits


def kept_type(dtype: torch.dtype) -> torch.dtype:
    """Type in which a GPU's gradients of inputs of a type wait for the upstream one.

    bf16 has fp32's range; in fp16 a gradient must wait for the loss scale that saves its digits.
    """
    return dtype if dtype == torch.bfloat16 else torch.promote_types(dtype, torch.float32)


def segments_of(terms: Terms, tensors: Sequence[Tensor]) -> tuple[Segment, ...]:
    """The blocks side by side, cut where a row owns a column."""
    segments: list[Segment] = []
    begin = 0
    for block in terms.blocks:
        for first in range(0, tensors[block.key].shape[0], block.period):
            positive = block.own == Own.POSITIVE and first == 0
            own = block.own if positive or block.own == Own.LEFT_OUT else Own.KEPT
            own_hardness = 0.0 if positive else block.own_hardness
            segments.append(Segment(begin + first, block.period, own, block.hardness, own_hardness))
        begin += tensors[block.key].shape[0]
    return tuple(segments)
