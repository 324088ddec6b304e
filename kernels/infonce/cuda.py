"""Products of unit rows whose epilogue is the softmax, in CUDA C++: a part of the plan in fused.py.

csrc/cuda has the kernel, for bf16 on Hopper and panels that fill the device. All else (fp16, few
tiles, label smoothing, offsets found tile by tile) is Triton's, whose part has the same functions.
"""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from simcse_fast.kernels import native
from simcse_fast.kernels.infonce import tiles as table
from simcse_fast.kernels.infonce import triton_kernels
from simcse_fast.kernels.infonce.similarities import Similarities
from simcse_fast.kernels.infonce.triton_narrow import narrow

__all__ = ["gradients", "narrow", "sums"]  # the part of the plan: similarities.Products

CLUSTER = 256, 256  # rows and columns of a cluster's tile: csrc/cuda/tile_maps.h
SUMMED = 64  # rows whose columns are summed together


def sums(
    s: Similarities,
    panel: Tensor | None,  # (C, width) out: exponentials
    *,
    columns: bool,
    online: bool,
    smoothing: bool,
    flag: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """What each tile adds to its rows and, if asked, its columns: (1, tiles, C or W)."""
    plain = not (online or smoothing) and flag is None and not (columns and panel is not None)
    if not plain or not _fits(s, panel):
        return triton_kernels.sums(
            s, panel, columns=columns, online=online, smoothing=smoothing, flag=flag
        )
    rows, width = len(s.labels), s.segment.width
    space = width if panel is None else panel.shape[1]
    by_row = s.numbers.new_empty(1, -(-space // CLUSTER[1]), rows, dtype=torch.float32)
    by_column = by_row.new_empty(1, -(-rows // SUMMED), width) if columns else None
    out = native.InfonceSums(by_row.data_ptr(), _pointer(by_column))
    _launch(native.load_cuda().sf_infonce_sums_cuda, _products(s, panel, None, 0), out)
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
    if online or smoothing or gain is not None or not _fits(s, panel):
        triton_kernels.gradients(
            *(s, panel, row_state, column_state, own),
            gain=gain,
            online=online,
            smoothing=smoothing,
            flag=flag,
            expected=expected,
        )
        return
    factor = None if column_state is None else column_state[1]
    state = native.InfonceGradients(row_state[1].data_ptr(), _pointer(factor), own.data_ptr())
    products = _products(s, panel, flag, expected)
    _launch(native.load_cuda().sf_infonce_gradients_cuda, products, state)


def _fits(s: Similarities, panel: Tensor | None) -> bool:
    """Whether the kernel takes it, and there is a tile for every cluster."""
    if s.query.dtype != torch.bfloat16 or s.labels.dtype != torch.int64:
        return False
    if panel is not None and (panel.data_ptr() % 16 or panel.stride(0) % 8):
        return False
    columns = s.segment.width if panel is None else panel.shape[1]
    tiles = -(-len(s.labels) // CLUSTER[0]) * -(-columns // CLUSTER[1])
    return 2 * tiles >= table.processors(s.query.device)


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _products(
    s: Similarities, panel: Tensor | None, flag: Tensor | None, expected: int
) -> native.InfonceProducts:
    device = s.query.device
    on_gpu = device.type == "cuda"  # elsewhere the kernel is emulated
    return native.InfonceProducts(
        query=s.query.data_ptr(),
        key=s.key.data_ptr(),
        rows=len(s.labels),
        columns=s.segment.width,
        depth=s.query.shape[1],
        panel=_pointer(panel),
        stride=0 if panel is None else panel.stride(0),
        width=s.segment.width if panel is None else panel.shape[1],
        numbers=s.numbers.data_ptr(),
        hardness=s.segment.hardness,
        own_hardness=s.segment.own_hardness,
        own=int(s.segment.own),
        labels=s.labels.data_ptr(),
        query_ids=_pointer(s.query_ids),
        key_ids=_pointer(s.key_ids),
        positive=_pointer(s.positive),
        opposite=_pointer(s.opposite),
        margin=s.margin,
        flag=_pointer(flag),
        expected=expected,
        lead=table.LEAD,
        device=torch.cuda.current_device() if on_gpu else 0,
        stream=torch.cuda.current_stream(device).cuda_stream if on_gpu else None,
    )


def _launch(
    function: Callable[..., int], products: ctypes.Structure, out: ctypes.Structure
) -> None:
    function(ctypes.byref(products), ctypes.byref(out))
