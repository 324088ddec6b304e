"""Tiles of the Triton kernels as wide as on a GPU, and how many launches a loss takes.

For the interpreter: test_info_nce_gpu.py has the device's own tiles, at sizes that choose them.
"""

import pytest
import torch
from info_nce_cases import Counted, check_triton, random_case

from simcse_fast import backends, info_nce

if torch.cuda.is_available() or not backends()["triton"].available:
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

from simcse_fast.kernels.infonce import (
    tiles,
    triton_kernels,
    triton_narrow,
    triton_rows,
    triton_softmax,
)

HALF = 2  # bytes of a number
PRODUCT_TILES = sorted(
    {
        tile
        for (*_, size, _), group in (tiles.PRODUCTS | tiles.OTHERWISE).items()
        if size == HALF
        for tile in group
    },
    key=str,
)
ATTENTION_TILES = [
    (width, pair)
    for table in (tiles.ATTENTION_HOPPER, tiles.ATTENTION_BLACKWELL)
    for width, pairs in table.items()
    for pair in pairs
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("symmetric", [False, True], ids=["rows", "symmetric"])
@pytest.mark.parametrize("tile", PRODUCT_TILES, ids=str)
def test_tiles_of_the_table(tile, symmetric, dtype, monkeypatch):
    """As wide as on a GPU, descriptors included, round their edges."""
    assert tile.columns % triton_rows.PAD == 0
    monkeypatch.setattr(triton_kernels, "narrow", lambda *_: None)
    monkeypatch.setattr(tiles, "product_tile", lambda *_: tile)
    rows = tile.rows + 1
    check_triton(random_case(rows, width=70, dtype=dtype, symmetric=symmetric, hardness=1.0))


@pytest.mark.parametrize(("width", "pair"), ATTENTION_TILES, ids=str)
def test_attention_tiles_of_the_table(width, pair, monkeypatch):
    monkeypatch.setattr(tiles, "attention_tiles", lambda *_: pair)
    check_triton(random_case(130, 140, width=width - 5, dtype=torch.float16, hardness=1.0))


@pytest.mark.parametrize("panels", [False, True], ids=["attention", "panels"])
@pytest.mark.parametrize("options", [{}, {"symmetric": True}], ids=["rows", "symmetric"])
def test_launches(options, panels, monkeypatch):
    """How many kernels of ours a loss and its gradients take: what a small batch consists of."""
    count = []
    for module in (triton_rows, triton_softmax, triton_kernels, triton_narrow):
        for name, kernel in list(vars(module).items()):
            if name.startswith("infonce_"):
                monkeypatch.setattr(module, name, Counted(kernel, count))
    if panels:
        monkeypatch.setattr(triton_kernels, "narrow", lambda *_: None)
    case = random_case(40, width=33, dtype=torch.bfloat16, **options)
    pair = case.query.requires_grad_(), case.key.requires_grad_()
    info_nce(*pair, **options, backend="triton").backward()
    if panels:
        # Unit rows twice, pairs, sums, a softmax; gradients and another softmax where it is
        # symmetric; and back through the normalisation twice.
        assert len(count) == (9 if options else 7)
    else:  # unit rows twice; queries and keys, where it is symmetric twice
        assert len(count) == (6 if options else 4)
