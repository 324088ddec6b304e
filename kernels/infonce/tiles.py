"""Tiles of the Triton products: measured or compiled ahead of time, never searched at run time."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """Rows and columns of a tile, the depth of one step, warps, stages, programs a processor."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    resident: int = 1  # programs that share a multiprocessor
    descriptors: bool = False  # loads and stores by the copy engine of Hopper and later
    flatten: bool = False  # loops over tiles and depth as one
    group: int = 8  # rows of tiles that walk over the columns together


INTERPRETED = Tile(32, 64, 32, 4, 1)


def tile_for(x: torch.Tensor, kind: str) -> Tile:
    return INTERPRETED
