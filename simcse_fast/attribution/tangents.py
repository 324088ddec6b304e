"""Forward mode by hand: how last states move when the word embedding of one token moves.

One tangent a token and node passes through the layers beside the states, where reverse mode needs
a backward pass for every dimension of the embedding. The Jacobians of softmax and of LayerNorm
without its weight are symmetric, so torch's fused backward kernels compute their tangents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from simcse_fast.attribution.families import Layer, Stack


def states_and_tangents(
    stack: Stack,
    words: Tensor,  # (K, S, H) word embeddings at K nodes
    ways: Tensor,  # (T, H) how the word embedding of a token moves
    places: Tensor,  # (T,) int64 which token that is
) -> tuple[Tensor, Tensor]:
    """Last states (K, S, H), and how they move along each way (K, T, S, H)."""
    tokens = words.shape[1]
    bias = stack.bias(tokens)
    norm = _Norm.of(stack.norm, words + stack.position(tokens))
    # At first only the token itself moves: the first layer projects one row a tangent.
    own = norm.at(places).tangent(ways.expand(len(words), -1, -1))  # (K, T, H)
    first = [_placed(own @ part.weight.T, places, tokens) for part in _projections(stack.layers[0])]
    states, tangents = norm.states, _placed(own, places, tokens)
    for layer in stack.layers:
        ways_of = first or [tangents @ part.weight.T for part in _projections(layer)]
        states, tangents = _through(layer, stack.heads, bias, states, tangents, ways_of)
        first = []
    return states, tangents


def _projections(layer: Layer) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return layer.query, layer.key, layer.value


def _placed(own: Tensor, places: Tensor, tokens: int) -> Tensor:
    """(K, T, H) to (K, T, S, H): each at the token that it belongs to, zeros elsewhere."""
    placed = own.new_zeros(*own.shape[:2], tokens, own.shape[2])
    placed[:, torch.arange(len(places), device=places.device), places] = own
    return placed


def _through(
    layer: Layer,
    heads: int,
    bias: Tensor | None,
    states: Tensor,  # (K, S, H)
    tangents: Tensor,  # (K, T, S, H), used up
    projected: list[Tensor],  # (K, T, S, H) tangents of query, key and value, used up
) -> tuple[Tensor, Tensor]:
    """One layer further."""
    own = [part(states) for part in _projections(layer)]
    seen, seen_tangents = _attention(own, projected, heads, bias)
    norm = _Norm.of(layer.first_norm, states + layer.out(seen))
    tangents = norm.tangent(tangents.add_(seen_tangents @ layer.out.weight.T))
    hidden, slope = _activated(layer, layer.up(norm.states))
    moved = (tangents @ layer.up.weight.T).mul_(slope[:, None])
    tangents = tangents.add_(moved @ layer.down.weight.T)
    norm = _Norm.of(layer.second_norm, norm.states + layer.down(hidden))
    return norm.states, norm.tangent(tangents)


def _attention(
    projected: list[Tensor],  # query, key, value, (K, S, H) each
    tangents: list[Tensor],  # theirs, (K, T, S, H), used up
    heads: int,
    bias: Tensor | None,  # (heads, S, S)
) -> tuple[Tensor, Tensor]:
    """What each token gathers, (K, S, H), and its tangents, (K, T, S, H)."""
    query, key, value = (_by_head(part, heads) for part in projected)  # (K, heads, S, d)
    value_way, key_way, query_way = (_by_head(tangents.pop(), heads) for _ in range(3))
    scale = query.shape[-1] ** -0.5
    query = query * scale
    similar = query @ key.mT
    # Asked for by name: autocast would have another type for it.
    similar = similar if bias is None else similar + bias
    weights = torch.softmax(similar, dim=-1, dtype=query.dtype)
    way = query_way @ (key.mT * scale)[:, None]  # (K, T, heads, S, S)
    del query_way
    way += query[:, None] @ key_way.mT
    del key_way
    # The Jacobian of softmax is symmetric: its backward pass is its tangent.
    way = torch._softmax_backward_data(  # noqa: SLF001 - the fused kernel has no public name
        way, weights[:, None].expand_as(way), -1, way.dtype
    )
    gathered = way @ value[:, None]
    gathered += weights[:, None] @ value_way
    return _joined(weights @ value), _joined(gathered)


def _by_head(projected: Tensor, heads: int) -> Tensor:
    """(..., S, H) -> (..., heads, S, d)."""
    return torch.unflatten(projected, -1, (heads, -1)).transpose(-3, -2)


def _joined(gathered: Tensor) -> Tensor:
    """(..., heads, S, d) -> (..., S, H)."""
    return gathered.transpose(-3, -2).flatten(-2)


def _activated(layer: Layer, given: Tensor) -> tuple[Tensor, Tensor]:
    """The activation of what is given, and its slope there."""
    with torch.enable_grad():
        given = given.detach().requires_grad_()
        out = layer.activation(given)
        (slope,) = torch.autograd.grad(out.sum(), given)
    return out.detach(), slope


@dataclass(frozen=True)
class _Norm:
    """A LayerNorm at some states."""

    norm: nn.LayerNorm
    given: Tensor  # (K, S, H)
    states: Tensor  # (K, S, H) what it makes of them
    mean: Tensor  # (K, S, 1)
    rstd: Tensor  # (K, S, 1)

    @classmethod
    def of(cls, norm: nn.LayerNorm, given: Tensor) -> _Norm:
        """At these states."""
        shape = list(norm.normalized_shape)
        return cls(
            norm, given, *torch.native_layer_norm(given, shape, norm.weight, norm.bias, norm.eps)
        )

    def at(self, places: Tensor) -> _Norm:
        """At some of the tokens only."""
        parts = (x[:, places] for x in (self.given, self.states, self.mean, self.rstd))
        return _Norm(self.norm, *parts)

    def tangent(self, way: Tensor) -> Tensor:
        """How the result moves when the states move, (K, ..., S, H) -> the same."""
        shape = (len(self.given), *[1] * (way.ndim - self.given.ndim), *self.given.shape[1:])
        given = self.given.view(shape).expand_as(way)
        mean, rstd = (
            x.view(*shape[:-1], 1).expand(*way.shape[:-1], 1).contiguous()
            for x in (self.mean, self.rstd)
        )
        # Without its weight the Jacobian is symmetric: the backward pass is the tangent.
        moved: Tensor = torch.ops.aten.native_layer_norm_backward(
            way.contiguous(),
            given.contiguous(),
            list(self.norm.normalized_shape),
            mean,
            rstd,
            None,
            None,
            [True, False, False],
        )[0]
        return moved.mul_(self.norm.weight)
