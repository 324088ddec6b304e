"""P: what each token adds to every dimension of the embedding, by forward mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from simcse_fast.attribution.chunks import in_chunks, out_of_memory
from simcse_fast.attribution.families import stack_of
from simcse_fast.attribution.steps import integrate
from simcse_fast.attribution.tangents import states_and_tangents

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from simcse_fast.attribution.families import Stack
    from simcse_fast.attribution.path import Path
    from simcse_fast.attribution.steps import Integral, Steps


def vector_integrals(
    path: Path,
    changes: NDArray[np.float64],  # (B, D) of the embeddings from baseline to sentence
    steps: Steps,
    done: Callable[[int], object],
) -> list[Integral]:
    """P of each sentence, (S, D), with its errors; tokens that stay have rows of zeros."""
    # By hand only the last states are moved, which poolings over layers do not suffice.
    stack = None if path.encoder.hidden else stack_of(path.encoder.transformer)
    found = []
    for number, change in enumerate(changes):
        slopes = _Slopes(path, number, stack, len(change))
        (one,) = integrate(
            steps,
            "vector",
            [change],
            lambda looks, own=slopes: [own(looks[0][1])],  # type: ignore[misc]
            lambda _: None,
        )
        found.append(one)
        done(1)
    return found


class _Slopes:
    """What each token of a sentence adds to the slope of its embedding along the path."""

    def __init__(self, path: Path, number: int, stack: Stack | None, width: int) -> None:
        self.encoder, self.stack, self.budget = path.encoder, stack, path.budget
        self.width = width
        self.path = path
        moves = path.moves[number]
        self.words = self.encoder.words(torch.from_numpy(path.sentences[number].ids))  # (S, H)
        self.moves = torch.from_numpy(moves).to(self.words.device)
        self.places = torch.from_numpy(np.flatnonzero(moves)).to(self.words.device)
        self.ways = self.words[self.places] - path.baseline  # (T, H)

    def __call__(self, alpha: NDArray[np.float64]) -> NDArray[np.float64]:
        """At K places of the path, (K, S, D)."""
        tokens, ways = len(self.words), len(self.places)
        together = max(1, self.budget.tokens // tokens)  # tangents
        try:
            return self._in_groups(alpha, together)
        except (RuntimeError, MemoryError) as error:
            if min(together, ways) <= 1 or not out_of_memory(error):
                raise
        self.budget.halve(min(together, ways) * tokens)
        return self(alpha)

    def _in_groups(self, alpha: NDArray[np.float64], together: int) -> NDArray[np.float64]:
        """With so many tangents of a node in a pass at most."""
        tokens, ways = len(self.words), len(self.places)
        groups = np.array_split(np.arange(ways), -(-ways // together)) if ways else []
        wide = torch.promote_types(self.words.dtype, torch.float32)
        nodes = torch.from_numpy(alpha).to(self.words.device, wide)
        items = [(node, group) for group in range(len(groups)) for node in range(len(alpha))]
        found = np.zeros((len(alpha), tokens, self.width))

        def work(chunk: NDArray[np.int64]) -> None:
            for group in {items[item][1] for item in chunk}:
                here = [items[item][0] for item in chunk if items[item][1] == group]
                which = torch.from_numpy(groups[group]).to(self.places)
                slopes = self._at(nodes[here], which).cpu().double().numpy()
                found[np.ix_(here, self.places[which].cpu().numpy())] = slopes

        in_chunks([len(groups[group]) * tokens for _, group in items], self.budget, work)
        return found

    def _at(self, nodes: Tensor, which: Tensor) -> Tensor:
        """At some nodes, of some tokens that move: (k,), (t,) -> (k, t, D)."""
        row = torch.zeros(len(nodes), dtype=torch.int64, device=nodes.device)
        points = self.path.kernels.path_points(
            self.words[None], self.path.baseline, self.moves[None], row, nodes
        )
        if self.stack is None:
            return torch.stack([self._by_jvp(point, which) for point in points])
        with torch.no_grad():
            states, tangents = states_and_tangents(
                self.stack, points, self.ways[which], self.places[which]
            )
            return self._pooled(states, tangents)

    def _pooled(self, states: Tensor, tangents: Tensor) -> Tensor:
        """The tangents behind the pooling and whatever follows it, (k, t, S, H) -> (k, t, D)."""
        rows = tangents.flatten(0, 1)
        mask = torch.ones(rows.shape[:2], dtype=torch.int64, device=rows.device)
        if self.encoder.pools_linearly:
            moved = self.encoder.pool(rows, mask)
            return torch.unflatten(moved, 0, tangents.shape[:2])
        with forward_ad.dual_level():
            given = states[:, None].expand_as(tangents).flatten(0, 1)
            dual = forward_ad.make_dual(given, rows)  # type: ignore[no-untyped-call]
            pooled = self.encoder.pool(dual, mask)
            moved = forward_ad.unpack_dual(pooled).tangent  # type: ignore[no-untyped-call]
        return torch.unflatten(moved, 0, tangents.shape[:2])

    def _by_jvp(self, point: Tensor, which: Tensor) -> Tensor:
        """For encoders whose layers are not known: (S, H), (t,) -> (t, D)."""
        mask = torch.ones(1, len(point), dtype=torch.int64, device=point.device)

        def embedding(words: Tensor) -> Tensor:
            return self.encoder(words[None], mask, forward_mode=True)[0]

        def slope(place: Tensor, way: Tensor) -> Tensor:
            moved = torch.zeros_like(point).index_copy(0, place[None], way[None])
            out: Tensor = jvp(embedding, (point,), (moved,))[1]
            return out

        # Of the fused kernels of attention none has a forward derivative.
        with sdpa_kernel(SDPBackend.MATH):
            found: Tensor = vmap(slope)(self.places[which], self.ways[which])
        return found
