"""Products of unit rows whose epilogue is the softmax: the Triton part of the plan in fused.py.

Each kernel walks the tiles of one panel of similarities, (C, N), that exist only in registers. What
leaves them: exponentials or gradients of the logits in the type of the rows, and sums of each row
and column over one tile, which fused.py adds in order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from simcse_fast.kernels.infonce import tiles as table
from simcse_fast.kernels.infonce.similarities import Similarities
from simcse_fast.kernels.infonce.triton_epilogue import (
    gradient_of,
    holds,
    negatives,
    sums_of,
    within_margin,
)
from simcse_fast.kernels.infonce.triton_math import FUSED, POSITIVE
from simcse_fast.kernels.infonce.triton_narrow import narrow

__all__ = ["gradients", "narrow", "sums"]  # the part of the plan: similarities.Products

SIZES = ("rows", "columns", "width", "total")  # change from batch to batch; not compiled in


@triton.jit
def tile_of(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Row and column of a tile; GROUP rows of tiles go together, so that keys are met in L2."""
    strip = GROUP * tiles_n
    first = tile // strip * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    return first + tile % strip % height, tile % strip // height


@triton.jit
def product(
    query,  # (rows, depth) pointer, or descriptor of tiles [BM, BK]
    key,  # (columns, depth) pointer, or descriptor of tiles [BN, BK]
    row,
    column,
    rows,
    columns,
    depth,  # a multiple of BK
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Similarities of a tile, [BM, BN] fp32; anything outside the matrix."""
    total = tl.zeros([BM, BN], dtype=tl.float32)
    if TMA:
        for k in range(0, depth, BK):
            a = query.load([row, k])  # [BM, BK]
            b = key.load([column, k])  # [BN, BK]
            total = tl.dot(a, b.T, total, input_precision=PRECISION)
    else:
        k = tl.arange(0, BK)
        i = tl.minimum(row + tl.arange(0, BM), rows - 1).to(tl.int64)
        j = tl.minimum(column + tl.arange(0, BN), columns - 1).to(tl.int64)
        a_at = query + i[:, None] * depth + k[None, :]
        b_at = key + j[:, None] * depth + k[None, :]
        for _ in range(0, depth, BK):
            total = tl.dot(tl.load(a_at), tl.load(b_at).T, total, input_precision=PRECISION)
            a_at += BK
            b_at += BK
    return total


@triton.jit
def put(
    panel,  # (rows, width) pointer, or descriptor of tiles [BM, BN], or [BM, BN / 2] where HALVES
    stride,
    row,
    column,
    rows,
    width,
    tile,  # [BM, BN]
    BM: tl.constexpr,
    BN: tl.constexpr,
    TMA: tl.constexpr,
    HALVES: tl.constexpr,
):
    """Write a tile into the panel, clipped; in halves it takes half the shared memory."""
    if TMA:
        if HALVES:
            left, right = tl.split(tl.permute(tl.reshape(tile, (BM, 2, BN // 2)), (0, 2, 1)))
            panel.store([row, column], left.to(panel.dtype))
            panel.store([row, column + BN // 2], right.to(panel.dtype))
        else:
            panel.store([row, column], tile.to(panel.dtype))
    else:
        i = (row + tl.arange(0, BM)).to(tl.int64)
        j = column + tl.arange(0, BN)
        inside = (i[:, None] < rows) & (j[None, :] < width)
        at = panel + i[:, None] * stride + j[None, :]
        tl.store(at, tile.to(panel.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def infonce_sums_kernel(
    query,  # (rows, depth) unit rows of the panel
    key,  # (columns, depth) unit rows of the segment
    panel,  # (rows, width) out where STORE: exponentials, 0 at the positive
    stride,
    row_sums,  # (planes, tiles of columns, rows) out
    column_sums,  # (planes, tiles of rows, columns) out where COLUMNS
    numbers,  # (2,) fp64: scale, offset
    labels,  # (rows,) each row's own column
    positive,  # (rows,) similarity with the positive, where MARGIN
    opposite,  # (columns,) the same of the columns, where MARGIN and COLUMNS
    query_ids,  # (rows,) where IDS
    key_ids,  # (columns,)
    flag,  # () where GUARD: runs only if it is set
    rows,
    columns,
    width,
    depth,
    hardness,
    own_hardness,
    margin,
    OWN: tl.constexpr,
    IDS: tl.constexpr,
    MARGIN: tl.constexpr,
    STORE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ONLINE: tl.constexpr,
    SMOOTHING: tl.constexpr,
    GUARD: tl.constexpr,
    TMA: tl.constexpr,
    HALVES: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    """Sums of exponentials of each row, and if wanted of each column, over each tile."""
    tiles_m, tiles_n = tl.cdiv(rows, BM), tl.cdiv(width, BN)  # the padding is written too
    tiles = tiles_m * tiles_n
    if GUARD:
        tiles *= tl.load(flag)
    offset = tl.load(numbers + 1).to(tl.float32)
    if ONLINE:
        offset = 0.0
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        i_m, i_n = tile_of(tile, tiles_m, tiles_n, GROUP)
        row, column = i_m * BM, i_n * BN
        s = product(
            query, key, row, column, rows, columns, depth, BM, BN, BK, TMA, "ieee"
        )  # [BM, BN]
        i = row + tl.arange(0, BM)
        label = tl.load(labels + i, mask=i < rows, other=-1).to(tl.int32)
        query_id = label
        if IDS:
            query_id = tl.load(query_ids + i, mask=i < rows, other=0)
        t = negatives(
            s, numbers, hardness, own_hardness, offset, column, columns, label, query_id, key_ids,
            OWN, IDS, BN, False,
        )  # fmt: skip
        by_row = t
        if MARGIN:
            by_row = within_margin(t, positive, margin, numbers, hardness, offset, row, rows, 1, BM)
        e = sums_of(by_row, row_sums, i_n, tiles_n, row, rows, 1, BM, ONLINE, SMOOTHING)
        if STORE:
            put(panel, stride, row, column, rows, width, e, BM, BN, TMA, HALVES)
        if COLUMNS:
            by_column = t
            if MARGIN:
                by_column = within_margin(
                    t, opposite, margin, numbers, hardness, offset, column, columns, 0, BN
                )
            if row + BM > rows:
                by_column = tl.where(i[:, None] < rows, by_column, float("-inf"))
            sums_of(by_column, column_sums, i_m, tiles_m, column, columns, 0, BN, ONLINE, SMOOTHING)


@triton.jit(do_not_specialize=SIZES)
def infonce_gradient_kernel(
    query,  # (rows, depth) unit rows of the panel
    key,  # (columns, depth) unit rows of the segment
    panel,  # (rows, width) out: gradients of the logits
    stride,
    row_state,  # (4, total) from the panel's first row on: see gradient_of
    total,
    column_state,  # (4, columns) where COLUMNS
    own,  # (rows,) gradient at the positive
    gain,  # () where GAIN: multiplies everything
    numbers,  # (2,) fp64: scale, offset
    labels,  # (rows,)
    positive,  # (rows,) where MARGIN
    opposite,  # (columns,) where MARGIN and COLUMNS
    query_ids,  # (rows,) where IDS
    key_ids,  # (columns,)
    flag,  # () where GUARD: runs only if it equals `expected`
    expected,
    rows,
    columns,
    width,
    depth,
    hardness,
    own_hardness,
    margin,
    OWN: tl.constexpr,
    IDS: tl.constexpr,
    MARGIN: tl.constexpr,
    GAIN: tl.constexpr,
    COLUMNS: tl.constexpr,
    ONLINE: tl.constexpr,
    SMOOTHING: tl.constexpr,
    GUARD: tl.constexpr,
    TMA: tl.constexpr,
    HALVES: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    """Gradients of the logits of rows, and if wanted of columns, whose softmaxes are known."""
    tiles_m, tiles_n = tl.cdiv(rows, BM), tl.cdiv(width, BN)  # the padding is written too
    tiles = tiles_m * tiles_n
    if GUARD:
        tiles *= (tl.load(flag) == expected).to(tl.int32)
    offset = tl.load(numbers + 1).to(tl.float32)
    if ONLINE:
        offset = 0.0
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        i_m, i_n = tile_of(tile, tiles_m, tiles_n, GROUP)
        row, column = i_m * BM, i_n * BN
        s = product(
            query, key, row, column, rows, columns, depth, BM, BN, BK, TMA, "ieee"
        )  # [BM, BN]
        i = row + tl.arange(0, BM)
        label = tl.load(labels + i, mask=i < rows, other=-1).to(tl.int32)
        query_id = label
        if IDS:
            query_id = tl.load(query_ids + i, mask=i < rows, other=0)
        t = negatives(
            s, numbers, hardness, own_hardness, offset, column, columns, label, query_id, key_ids,
            OWN, IDS, BN, False,
        )  # fmt: skip
        by_row = t
        if MARGIN:
            by_row = within_margin(t, positive, margin, numbers, hardness, offset, row, rows, 1, BM)
        g = gradient_of(by_row, row_state, total, row, rows, 1, BM, ONLINE, SMOOTHING)
        if COLUMNS:
            by_column = t
            if MARGIN:
                by_column = within_margin(
                    t, opposite, margin, numbers, hardness, offset, column, columns, 0, BN
                )
            g += gradient_of(
                by_column, column_state, columns, column, columns, 0, BN, ONLINE, SMOOTHING
            )
        if OWN == POSITIVE:
            if holds(label, column, BN):
                mine = tl.load(own + i, mask=i < rows, other=0.0)
                j = column + tl.arange(0, BN)
                g = tl.where(j[None, :] == label[:, None], mine[:, None], g)
        if GAIN:
            g *= tl.load(gain)
        put(panel, stride, row, column, rows, width, g, BM, BN, TMA, HALVES)


def sums(
    s: Similarities,
    panel: Tensor | None,  # (C, width) out: exponentials
    *,
    columns: bool,
    online: bool,
    smoothing: bool,
    flag: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """What each tile adds to its rows and, if asked, its columns: (planes, tiles, C or W)."""
    planes = 4 if smoothing else 2 if online else 1
    rows, width, space, _ = _sizes(s, panel)
    full = online or smoothing or (columns and s.positive is not None)
    kind = "full" if full else "columns" if columns else "plain"
    tile = table.product_tile(s.query, kind, rows, width)
    tiles = triton.cdiv(rows, tile.rows), triton.cdiv(space, tile.columns)
    by_row = s.query.new_empty(planes, tiles[1], rows, dtype=torch.float32)
    by_column = None
    if columns:
        by_column = s.query.new_empty(planes, tiles[0], width, dtype=torch.float32)
    query, key, into, flags = _operands(s, panel, tile)
    infonce_sums_kernel[_programs(s, tiles, tile)](
        *(query, key, into, 0 if panel is None else panel.stride(0)),
        *(by_row, by_row if by_column is None else by_column, *_epilogue(s)),
        *(s.numbers if flag is None else flag, *_sizes(s, panel)),
        *(s.segment.hardness, s.segment.own_hardness, s.margin),
        STORE=panel is not None,
        COLUMNS=columns,
        ONLINE=online,
        **{"SMOOTHING": smoothing, "GUARD": flag is not None, **flags},
    )
    return by_row, by_column


def gradients(
    s: Similarities,
    panel: Tensor,  # (C, width) out
    row_state: Tensor,  # (4, .) from the panel's first row on
    column_state: Tensor | None,  # (4, W)
    own: Tensor,  # (C,) gradient at the positive
    *,
    gain: Tensor | None,
    online: bool,
    smoothing: bool,
    flag: Tensor | None,
    expected: int,
) -> None:
    """Gradients of the logits, of rows and if given of columns, whose softmaxes are known."""
    rows, width, space, _ = _sizes(s, panel)
    full = online or smoothing or s.positive is not None
    tile = table.product_tile(s.query, "full" if full else "gradients", rows, width)
    tiles = triton.cdiv(rows, tile.rows), triton.cdiv(space, tile.columns)
    query, key, into, flags = _operands(s, panel, tile)
    infonce_gradient_kernel[_programs(s, tiles, tile)](
        *(query, key, into, panel.stride(0), row_state, row_state.stride(0)),
        *(row_state if column_state is None else column_state, own),
        *(own if gain is None else gain, *_epilogue(s), s.numbers if flag is None else flag),
        *(expected, *_sizes(s, panel), s.segment.hardness, s.segment.own_hardness, s.margin),
        GAIN=gain is not None,
        COLUMNS=column_state is not None,
        ONLINE=online,
        **{"SMOOTHING": smoothing, "GUARD": flag is not None, **flags},
    )


def _operands(
    s: Similarities, panel: Tensor | None, tile: table.Tile
) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Both factors and the panel as the kernel takes them, and its compile-time arguments."""
    aligned = panel is None or (panel.data_ptr() | panel.stride(0) * panel.element_size()) % 16 == 0
    descriptors = tile.descriptors and aligned
    query, key, into = s.query, s.key, s.query if panel is None else panel
    if descriptors:
        query = TensorDescriptor.from_tensor(query, [tile.rows, tile.depth])
        key = TensorDescriptor.from_tensor(key, [tile.columns, tile.depth])
        stored = tile.columns // 2 if tile.halves else tile.columns
        into = query if panel is None else TensorDescriptor.from_tensor(into, [tile.rows, stored])
    return query, key, into, {
        "OWN": int(s.segment.own), "IDS": s.key_ids is not None, "MARGIN": s.positive is not None,
        "TMA": descriptors, "HALVES": tile.halves,
        "BM": tile.rows, "BN": tile.columns, "BK": tile.depth, "GROUP": table.GROUP,
        "FLATTEN": tile.flat,
        "num_warps": tile.warps, "num_stages": tile.stages, **FUSED,
    }  # fmt: skip


def _epilogue(s: Similarities) -> tuple[Tensor, ...]:
    """Tensors that the epilogue reads; any tensor stands for one that it does not."""
    optional = s.positive, s.opposite, s.query_ids, s.key_ids
    return s.numbers, s.labels, *(s.labels if x is None else x for x in optional)


def _sizes(s: Similarities, panel: Tensor | None) -> tuple[int, int, int, int]:
    """Rows, columns, width of the panel, depth."""
    width = s.segment.width
    return len(s.labels), width, width if panel is None else panel.shape[1], s.query.shape[1]


def _programs(s: Similarities, tiles: tuple[int, int], tile: table.Tile) -> tuple[int]:
    return (min(tiles[0] * tiles[1], tile.resident * table.processors(s.query.device)),)
