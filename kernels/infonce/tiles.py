"""Tiles of the Triton kernels: a table by device and shape, never searched at run time.

`python -m benchmarks.tune_gpu` times the candidates on the device at hand. Whatever stands here was
compiled ahead of time without spilled registers (tests/test_triton_compiled.py).
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """Rows and columns of a tile, depth of one step, warps, and steps loaded ahead."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    descriptors: bool = False  # loads and stores by the copy engine of Hopper and later
    halves: bool = False  # stored in halves, which takes half the shared memory
    resident: int = 1  # programs that share a multiprocessor, each one's epilogue under another
    flat: bool = False  # the next tile's loads start under the epilogue of this one


HOPPER, BLACKWELL = 90, (100, 103)  # compute capabilities
GROUP = 8  # rows of tiles that walk over the columns together

# Products, largest first: the first that gives every multiprocessor a tile is taken. Columns are a
# multiple of 64, so that tiles cover the padding of a panel. "plain": sums of rows; "columns": of
# both; "gradients": of logits; "full": with whatever else keeps numbers in registers (label
# smoothing, a margin in both directions, each tile's largest logit as its offset).
_SMALL = Tile(64, 64, 64, 4, 3)
_MIDDLE = Tile(128, 128, 64, 8, 3)
_AMPERE = (Tile(128, 256, 64, 8, 3), _MIDDLE, _SMALL)
_LARGE = Tile(128, 256, 64, 8, 3, descriptors=True)
_HALF = Tile(128, 128, 64, 8, 3, descriptors=True, halves=True)
# One's epilogue under another's product; measured on an H200, benchmarks/results/tiles-nvidia-h200.
_SHARED = Tile(128, 128, 64, 4, 3, True, True, resident=2, flat=True)
_EACH = Tile(128, 128, 64, 4, 3, True, True, resident=1 << 20)  # a program for each tile
_SINGLE = (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 3))
PRODUCTS: dict[tuple[int, int, str], tuple[Tile, ...]] = {
    # compute capability, bytes of a number, kind
    **{(80, 2, kind): _AMPERE for kind in ("plain", "columns", "gradients")},
    (90, 2, "plain"): (_LARGE, _HALF, _SMALL),
    (90, 2, "columns"): (_SHARED, _HALF, _SMALL),
    (90, 2, "gradients"): (_EACH, _HALF, _SMALL),
    **{
        (capability, 2, kind): (_HALF, _SMALL)
        for capability in BLACKWELL
        for kind in ("plain", "columns", "gradients")
    },
}
OTHERWISE: dict[tuple[int, str], tuple[Tile, ...]] = {
    **{(2, kind): (_MIDDLE, _SMALL) for kind in ("plain", "columns", "gradients")},
    (4, "columns"): _SINGLE,  # of uniformity; the loss in fp32 takes torch's products
    (2, "full"): (Tile(128, 64, 64, 8, 3), Tile(32, 64, 64, 4, 3)),
}

# csrc/cuda: steps of 32 numbers by which one consumer of a block is ahead of the other, at most 7.
LEAD = 5

# The kernels shaped like attention, by padded width: pairs for the queries' kernel and the keys'.
# Rows deeper than a step are multiplied in steps. The last pair is for few rows.
_FEW = (Tile(16, 64, 128, 4, 2), Tile(64, 16, 128, 4, 2))
_FEW_WIDE = (Tile(16, 32, 128, 8, 2), Tile(32, 16, 128, 8, 2))
ATTENTION: dict[int, tuple[tuple[Tile, Tile], ...]] = {
    64: ((Tile(64, 64, 64, 4, 2), Tile(64, 64, 64, 4, 2)), _FEW),
    128: ((Tile(64, 32, 128, 4, 2), Tile(64, 64, 128, 4, 2)), _FEW),
    256: ((Tile(32, 32, 256, 4, 2), Tile(64, 32, 256, 4, 2)), _FEW),
    512: (_FEW_WIDE,),
    1024: (_FEW_WIDE,),
}
ATTENTION_HOPPER: dict[int, tuple[tuple[Tile, Tile], ...]] = ATTENTION | {
    64: ((Tile(64, 128, 64, 4, 3), Tile(128, 64, 64, 4, 3)), _FEW),
    128: ((Tile(64, 128, 128, 4, 3), Tile(128, 64, 128, 4, 2)), _FEW),
    256: ((Tile(64, 32, 256, 8, 2), Tile(64, 64, 256, 8, 2)), *ATTENTION[256]),
}
ATTENTION_BLACKWELL: dict[int, tuple[tuple[Tile, Tile], ...]] = ATTENTION_HOPPER | {
    64: ((Tile(128, 64, 64, 8, 2), Tile(64, 128, 64, 8, 2)), *ATTENTION[64]),
    128: ((Tile(128, 64, 128, 8, 2), Tile(64, 128, 128, 8, 2)), *ATTENTION[128]),
}
# Similarities up to which launches, of which these kernels need fewer, cost more than products; by
# padded width, for sixteen bits. A symmetric loss takes them twice.
EVERY = 1 << 62
PANELS_ABOVE: dict[int, tuple[int, int]] = {  # in one direction, and symmetric
    64: (EVERY, EVERY),
    128: (EVERY, 1 << 26),
    256: (1 << 26, 1 << 24),
    **dict.fromkeys((512, 1024), (1 << 22, 1 << 22)),
}
INTERPRETED = Tile(32, 64, 32, 4, 1), (Tile(16, 32, 64, 4, 1), Tile(32, 16, 64, 4, 1))


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a device; in the interpreter, some."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def capability(device: torch.device) -> int | None:
    """90 for compute capability 9.0; None in the interpreter."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def product_tile(unit: Tensor, kind: str, rows: int, columns: int) -> Tile:
    """For rows x columns similarities of unit rows; kinds are those of PRODUCTS."""
    size, device = unit.element_size(), capability(unit.device)
    if device is None:
        return INTERPRETED[0]
    tiles = PRODUCTS.get((device, size, kind), OTHERWISE[size, kind])
    for tile in tiles:
        if -(-rows // tile.rows) * -(-columns // tile.columns) >= processors(unit.device):
            return tile
    return tiles[-1]


def attention_table(device: int) -> dict[int, tuple[tuple[Tile, Tile], ...]]:
    """By padded width, for a compute capability."""
    if device in BLACKWELL:
        return ATTENTION_BLACKWELL
    return ATTENTION_HOPPER if device == HOPPER else ATTENTION


def attention_tiles(
    unit: Tensor, rows: int, columns: int, symmetric: bool
) -> tuple[Tile, Tile] | None:
    """For the queries' and the keys' kernel; None where panels are quicker."""
    device = capability(unit.device)
    if device is None:
        return INTERPRETED[1]
    width = max(64, 1 << (unit.shape[1] - 1).bit_length())
    if rows * columns > PANELS_ABOVE.get(width, (0, 0))[symmetric]:
        return None
    pairs = attention_table(device)[width]
    for queries, keys in pairs:
        programs = min(rows // queries.rows, columns // keys.columns)
        if 4 * programs >= 3 * processors(unit.device):
            return queries, keys
    return pairs[-1]
