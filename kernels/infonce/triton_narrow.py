"""The losses that need no panels, and the launches of the kernels in triton_attention.py.

A symmetric loss is both kernels twice, with the sides exchanged.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from simcse_fast.kernels.infonce import tiles as table
from simcse_fast.kernels.infonce.panels import Result
from simcse_fast.kernels.infonce.similarities import Problem, margin_of
from simcse_fast.kernels.infonce.terms import Own
from simcse_fast.kernels.infonce.tiles import Tile
from simcse_fast.kernels.infonce.triton_attention import (
    infonce_keys_kernel,
    infonce_queries_kernel,
)
from simcse_fast.kernels.infonce.triton_math import FUSED
from simcse_fast.kernels.infonce.triton_rows import Rows, kept
from simcse_fast.kernels.infonce.triton_softmax import gain_of


def narrow(problem: Problem, needs: Sequence[bool]) -> Result | None:
    """Losses and gradients without panels, where rows are narrow or the batch is small."""
    tiles = _tiles(problem)
    if tiles is None:
        return None
    job, block = problem.job, problem.job.terms.blocks[0]
    learned = isinstance(job.scale, Tensor) and needs[0]
    losses = problem.numbers.new_empty(2, len(job.labels), dtype=torch.float32)
    if not job.terms.symmetric:
        wanted = needs[block.anchor], needs[block.key]
        found = _direction(problem, tiles, losses[0], wanted, learned)
        gradients: list[Tensor | None] = [None] * len(problem.rows)
        gradients[block.anchor], gradients[block.key] = found.gradients
        return replace(found, gradients=gradients)
    both = any(needs), any(needs)
    one = _direction(problem, tiles, losses[0], both, learned, dtype=torch.float32)
    turned = replace(
        problem,
        job=replace(job, query_ids=job.key_ids, key_ids=job.query_ids),
        rows=problem.rows[::-1],
    )
    other = _direction(turned, tiles, losses[1], both, learned, more=one.gradients[::-1])
    gradients = [g if n else None for g, n in zip(other.gradients[::-1], needs, strict=True)]
    of_scale = None
    if one.of_scale is not None and other.of_scale is not None:
        of_scale = one.of_scale + other.of_scale
    return Result(losses.mean(0), gradients, of_scale)


def _direction(
    problem: Problem,
    tiles: tuple[Tile, Tile],
    losses: Tensor,  # (M,) out
    needs: tuple[bool, bool],  # gradients wanted, of queries and keys
    learned: bool,  # and that of the scale
    *,
    dtype: torch.dtype | None = None,  # of the gradients, where not that in which they are kept
    more: Sequence[Tensor | None] = (None, None),  # fp32: added to the queries' and to the keys'
) -> Result:
    """One of a loss's directions; the keys' kernel needs the softmaxes of the queries'."""
    job, block = problem.job, problem.job.terms.blocks[0]
    query, key = problem.rows[block.anchor], problem.rows[block.key]
    rows, columns = len(query.raw), len(key.raw)
    state = losses.new_empty(4, rows)
    along = state.new_empty(rows, dtype=torch.float64) if learned else None
    of_query = kept(query, dtype) if any(needs) else None
    of_key = kept(key, dtype) if needs[1] else None
    tensors, numbers, switches = _common(problem)

    def given(x: Tensor | None) -> Tensor:
        return losses if x is None else x  # any tensor stands for one that is not read

    infonce_queries_kernel[(triton.cdiv(rows, tiles[0].rows),)](
        *(query.unit, key.unit, *_raw(query), *tensors, given(job.weight), losses, state),
        *(given(more[0]), given(of_query), given(along), *numbers),
        WEIGHTED=job.weight is not None,
        GRADIENT=of_query is not None,
        SCALE=learned,
        MORE=more[0] is not None,
        **switches,
        **_shape(tiles[0], query),
    )
    if of_key is not None:
        gain = gain_of(state[3].abs()) if query.unit.dtype == torch.float16 else None
        infonce_keys_kernel[(triton.cdiv(columns, tiles[1].columns),)](
            *(query.unit, key.unit, *_raw(key), *tensors, state, given(gain)),
            *(given(more[1]), of_key, *numbers),
            GAIN=gain is not None,
            MORE=more[1] is not None,
            **switches,
            **_shape(tiles[1], query),
        )
    gradients = [of_query if needs[0] else None, of_key]
    return Result(losses, gradients, None if along is None else along.sum())


def _tiles(problem: Problem) -> tuple[Tile, Tile] | None:
    """For both kernels; None for a loss that they do not compute, or not as quickly as panels."""
    job, terms = problem.job, problem.job.terms
    one = len(job.segments) == 1 and job.segments[0].own == Own.POSITIVE
    if not one or terms.label_smoothing or problem.hard is not None:
        return None
    query, key = (problem.rows[i] for i in (terms.blocks[0].anchor, terms.blocks[0].key))
    return table.attention_tiles(query.unit, len(query.raw), len(key.raw), terms.symmetric)


def _common(problem: Problem) -> tuple[tuple[Tensor, ...], tuple[float, ...], dict[str, Any]]:
    """What both kernels take: tensors, numbers, and switches at compile time."""
    job, block = problem.job, problem.job.terms.blocks[0]
    query, key = problem.rows[block.anchor], problem.rows[block.key]
    ids = (job.labels if x is None else x for x in (job.query_ids, job.key_ids))
    margin = margin_of(job.terms)
    numbers = (
        *(len(query.raw), len(key.raw), query.raw.shape[1], query.unit.shape[1]),
        *(job.segments[0].hardness, 0.0 if margin is None else margin),
        job.uniform_weight if job.weight is None else 1.0,
    )
    switches = {
        "IDS": job.query_ids is not None,
        "MARGIN": margin is not None,
        # An offset known beforehand suffices, or each row's largest logit so far is the offset;
        # relative to that, exponentials fit fp16 as well.
        "ONLINE": problem.flag is not None or query.unit.dtype == torch.float16,
        "NORMALIZE": query.inverse is not None,
    }
    return (problem.numbers, job.labels, *ids), numbers, switches


def _raw(rows: Rows) -> tuple[Any, ...]:
    """The rows as they came, with their strides and inverse lengths."""
    return rows.raw, *rows.raw.stride(), rows.raw if rows.inverse is None else rows.inverse


def _shape(tile: Tile, rows: Rows) -> dict[str, int]:
    width = triton.next_power_of_2(rows.unit.shape[1])
    return {
        "BM": tile.rows, "BN": tile.columns, "BK": min(tile.depth, width), "BD": width,
        "num_warps": tile.warps, "num_stages": tile.stages, **FUSED,
    }  # fmt: skip
