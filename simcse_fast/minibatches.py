"""A large batch cut into mini-batches: rows of like length together, padding trimmed.

Columns of features hold tensors whose rows are samples, as tokenizers return them. Columns that
differ in nothing but their rows are pooled, so that one mini-batch may hold rows of several.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Features = Mapping[str, Any] | Tensor

# Of the whole batch, whatever their shape: sentence-transformers reads one value from it.
CONSTANTS = ("prompt_length",)
# Places where the samples of a flat list of tokens begin: of nn.EmbeddingBag, which takes a batch
# whole, and of attention without padding, which takes any of its samples.
BAG, FLAT = "offsets", "cu_seq_lens_q"
BARE = ""  # the name of a column that is one tensor
MATRIX = 2


@dataclass(frozen=True)
class Minibatch:
    """Some rows of a pool."""

    rows: Tensor  # (n,) int64 on the CPU, among all rows of the pool
    width: int  # tokens of the longest; shorter ones are padded to it

    @property
    def padded_tokens(self) -> int:
        """Tokens that the encoder computes, padding included."""
        return len(self.rows) * self.width


class Pool:
    """Columns of one kind, end to end.

    Args:
        columns: mappings of tensors with equal numbers of rows, or one tensor each.
    """

    def __init__(self, columns: Sequence[Features]) -> None:
        self.columns = [named(column) for column in columns]
        self.counts = [rows_of(column) for column in columns]
        self.widths = [width_of(column) for column in columns]
        parts = zip(self.columns, self.counts, self.widths, strict=True)
        self.lengths = torch.cat([_lengths(*part) for part in parts])

    def minibatches(
        self, tokens: int | None, rows: int | None, full: float = 1.0
    ) -> list[Minibatch]:
        """All rows, longest first, in mini-batches of at most so many padded tokens and rows.

        A row that is longer than `tokens` makes a mini-batch of its own. Each holds a little less
        than the one before, until one would hold less than the share `full`: its tensors fit where
        those of its predecessor were, also beside a graph that is kept, and the heap does not fill
        with holes. With a share of 1 each holds what it can.
        """
        if BAG in self.columns[0]:
            return [Minibatch(torch.arange(len(self.lengths)), int(self.lengths.max()))]
        order = self.lengths.argsort(descending=True, stable=True)
        lengths = self.lengths[order].tolist()
        most = rows or len(order)
        tokens = tokens or most * lengths[0]
        found, begin, room = [], 0, tokens
        while begin < len(order):
            if room // lengths[begin] * lengths[begin] < full * tokens:
                room = tokens
            fit = min(most, max(1, room // lengths[begin]))
            found.append(Minibatch(order[begin : begin + fit], lengths[begin]))
            begin += fit
            room = min(tokens, found[-1].padded_tokens - 1)
        return found

    def select(self, batch: Minibatch) -> Features:
        """The features of a mini-batch; what has no rows is that of the batch."""
        first = self.columns[0]
        if BAG in first:
            return dict(first)
        if FLAT in first:
            return _take_flat(first, batch.rows)
        taken = self._taken(batch)
        features: Features = taken.get(BARE, taken)
        return features

    def _taken(self, batch: Minibatch) -> dict[str, Any]:
        pieces, begin, positions = [], 0, []
        for column, count, width in zip(self.columns, self.counts, self.widths, strict=True):
            mine = ((batch.rows >= begin) & (batch.rows < begin + count)).nonzero()[:, 0]
            if len(mine):
                pieces.append(_take(column, batch.rows[mine] - begin, width, batch.width))
                positions.append(mine)
            begin += count
        if len(pieces) == 1:
            return pieces[0]
        back = torch.cat(positions).argsort()
        return _joined(pieces, back)


def pools(columns: Sequence[Features], kinds: Sequence[object]) -> list[list[int]]:
    """Numbers of the columns that may share a mini-batch: same kind, same features but for rows.

    Pools of one kind stand together, in the order in which the kinds appear: processes whose
    columns differ in what can be pooled still come to their towers in one order.

    Args:
        columns: all columns of a batch.
        kinds: one value a column; columns of different kinds are never pooled.
    """
    found: list[tuple[object, list[int]]] = []
    for number, (column, kind) in enumerate(zip(columns, kinds, strict=True)):
        for other, numbers in found:
            if other is kind and _alike(named(column), named(columns[numbers[0]])):
                numbers.append(number)
                break
        else:
            found.append((kind, [number]))
    kinds = [kind for kind, _ in found]
    places = [next(n for n, one in enumerate(kinds) if one is kind) for kind in kinds]
    return [found[n][1] for n in sorted(range(len(found)), key=places.__getitem__)]


def named(column: Features) -> Mapping[str, Any]:
    """A column by names; of what is no column, nothing."""
    if isinstance(column, Tensor):
        return {BARE: column}
    return column if hasattr(column, "items") else {}


def rows_of(column: Features) -> int:
    """Samples in a column.

    Raises:
        TypeError: the column is neither a tensor nor a mapping that holds one.
        ValueError: its tensors have different numbers of rows.
    """
    tensors = _tensors(column)
    if BAG in tensors:
        return len(tensors[BAG])
    if FLAT in tensors:
        return len(tensors[FLAT]) - 1
    counts = {name: len(x) for name, x in tensors.items() if name not in CONSTANTS and x.ndim}
    if not counts:
        raise TypeError(
            "columns: expected tensors, or mappings of names to tensors, one row a sample, got "
            f"{type(column).__name__}."
        )
    if len(set(counts.values())) > 1:
        raise ValueError(f"columns: the tensors of one column differ in rows: {counts}.")
    return next(iter(counts.values()))


def device_of(columns: Sequence[Features]) -> torch.device:
    """Where the tensors of a batch are."""
    return next(iter(_tensors(columns[0]).values())).device


def requires_grad(column: Features) -> bool:
    """Whether a tensor of a column waits for a gradient."""
    return any(x.requires_grad for x in _tensors(column).values())


def apart(
    pooled: Sequence[Tensor], groups: Sequence[Sequence[int]], counts: list[int]
) -> list[Tensor]:
    """The embeddings of each column, from those of each pool."""
    columns = [pooled[0]] * len(counts)
    for whole, numbers in zip(pooled, groups, strict=True):
        pieces = whole.split([counts[n] for n in numbers])  # type: ignore[no-untyped-call]
        for number, piece in zip(numbers, pieces, strict=True):
            columns[number] = piece
    return columns


def together(gradients: Sequence[Tensor | None], counts: Sequence[int]) -> Tensor | None:
    """The gradients of a pool's columns, end to end; None where no column has any."""
    like = next((x for x in gradients if x is not None), None)
    if like is None:
        return None
    pieces = zip(gradients, counts, strict=True)
    return torch.cat([like.new_zeros(n, like.shape[1]) if x is None else x for x, n in pieces])


def real_tokens(column: Features) -> int:
    """Tokens of a column without its padding."""
    column = named(column)
    mask = _mask(column)
    if mask is not None:
        return int((mask != 0).sum())
    ids = None if BAG in column else column.get("input_ids")
    return ids.numel() if isinstance(ids, Tensor) else rows_of(column)


def _tensors(column: Features) -> dict[str, Tensor]:
    return {name: x for name, x in named(column).items() if isinstance(x, Tensor)}


def width_of(column: Features) -> int:
    """Tokens of a padded row; 0 where rows are no sequences of tokens."""
    tensors = _tensors(column)
    for name in ("attention_mask", "input_ids"):
        if name in tensors and tensors[name].ndim == MATRIX:
            return tensors[name].shape[1]
    return 0


def _lengths(column: Mapping[str, Any], rows: int, width: int) -> Tensor:
    """(rows,) tokens up to the last that is not padding, at least one, on the CPU.

    Padding on the left stays: without it, positions that a model counts from the left would move.
    """
    if FLAT in column:
        flat: Tensor = column[FLAT]
        return flat.diff().clamp_min(1).to("cpu", torch.int64)
    mask = _mask(column)
    if mask is None:
        return torch.full((rows,), max(width, 1))
    places = torch.arange(1, width + 1, dtype=torch.int32, device=mask.device)
    return ((mask != 0) * places).amax(1).clamp_min(1).to("cpu", torch.int64)


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if set(one) != set(other) or BAG in one or FLAT in one:
        return False
    widths = width_of(one), width_of(other)
    if widths[0] != widths[1] and not (_padded_right(one) and _padded_right(other)):
        return False
    return all(_same(name, one[name], other[name], widths) for name in one)


def _padded_right(column: Mapping[str, Any]) -> bool:
    """Whether more padding on the right changes nothing: it is masked, and none is on the left."""
    mask = _mask(column)
    return mask is not None and bool((mask[:, 0] != 0).all())


def _mask(column: Mapping[str, Any]) -> Tensor | None:
    """(rows, width), not 0 at tokens."""
    mask = column.get("attention_mask")
    return mask if isinstance(mask, Tensor) and mask.ndim == MATRIX and mask.shape[1] else None


def _same(name: str, one: Any, other: Any, widths: tuple[int, int]) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if name in CONSTANTS or not one.ndim:
            return one.shape == other.shape and bool((one == other).all())
        return _kind(one, widths[0]) == _kind(other, widths[1])
    return type(one) is type(other) and bool(one == other)


def _kind(x: Tensor, width: int) -> tuple[object, ...]:
    """What two tensors must share so that their rows can stand in one."""
    tokens = _has_tokens(x, width)
    return x.dtype, x.device, x.ndim, tokens, x.shape[2:] if tokens else x.shape[1:]


def _has_tokens(x: Tensor, width: int) -> bool:
    return bool(width) and x.ndim >= MATRIX and x.shape[1] == width


def _take(column: Mapping[str, Any], rows: Tensor, width: int, wanted: int) -> dict[str, Any]:
    """These rows of a column; of tokens as many as wanted, with padding where there are fewer."""
    index: dict[torch.device, Tensor] = {}
    taken: dict[str, Any] = {}
    for name, x in column.items():
        if not isinstance(x, Tensor) or name in CONSTANTS or not x.ndim:
            taken[name] = x
            continue
        here = index.setdefault(x.device, rows.to(x.device))
        if not _has_tokens(x, width):
            taken[name] = x.index_select(0, here)
            continue
        piece = x[:, :wanted].index_select(0, here)
        missing = wanted - piece.shape[1]
        taken[name] = F.pad(piece, (0, 0) * (x.ndim - 2) + (0, missing)) if missing > 0 else piece
    return taken


def _take_flat(column: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """These samples of a flat list of tokens, end to end."""
    begins = column[FLAT].to("cpu", torch.int64)
    lengths = begins.diff()[rows]
    ends = F.pad(lengths.cumsum(0), (1, 0))
    places = torch.arange(int(ends[-1])) + (begins[rows] - ends[:-1]).repeat_interleave(lengths)
    taken: dict[str, Any] = {}
    for name, x in column.items():
        if name.startswith("cu_seq_lens"):
            taken[name] = ends.to(x.device, x.dtype)
        elif name.startswith("max_length"):
            taken[name] = int(lengths.max())
        elif name == "seq_idx":
            number = torch.arange(len(rows)).repeat_interleave(lengths)
            taken[name] = number.to(x.device, x.dtype).expand(*x.shape[:-1], -1)
        elif isinstance(x, Tensor) and x.ndim and x.shape[-1] == int(begins[-1]):
            taken[name] = x.index_select(-1, places.to(x.device))
        else:
            taken[name] = x
    return taken


def _joined(pieces: list[dict[str, Any]], order: Tensor) -> dict[str, Any]:
    joined = {}
    for name, x in pieces[0].items():
        if not isinstance(x, Tensor) or name in CONSTANTS or not x.ndim:
            joined[name] = x
        else:
            whole = torch.cat([piece[name] for piece in pieces])
            joined[name] = whole.index_select(0, order.to(x.device))
    return joined
