"""The encoder families whose layers are known well enough to be differentiated by hand.

BERT, RoBERTa (XLM-R, CamemBERT), MPNet and DistilBERT are one machine under four sets of names:
layers of attention and a feed-forward part, a residual and a LayerNorm behind each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

BERT = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "first_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "second_norm": "output.LayerNorm",
    "activation": "intermediate.intermediate_act_fn",
}
MPNET = BERT | {
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "out": "attention.attn.o",
    "first_norm": "attention.LayerNorm",
}
DISTILBERT = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "out": "attention.out_lin",
    "first_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "second_norm": "output_layer_norm",
    "activation": "ffn.activation",
}
# Where the layers are, and in a layer its parts.
FAMILIES = {
    "BertModel": ("encoder.layer", BERT),
    "RobertaModel": ("encoder.layer", BERT),
    "XLMRobertaModel": ("encoder.layer", BERT),
    "CamembertModel": ("encoder.layer", BERT),
    "MPNetModel": ("encoder.layer", MPNET),
    "DistilBertModel": ("transformer.layer", DISTILBERT),
}

_LOOKING = Lock()  # our own hook is none of the model's


@dataclass(frozen=True)
class Layer:
    """y = first_norm(x + out(attention(x))), second_norm(y + down(activation(up(y))))."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear
    first_norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear
    second_norm: nn.LayerNorm
    activation: Callable[[Tensor], Tensor]

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """All matrices."""
        return self.query, self.key, self.value, self.out, self.up, self.down


@dataclass(frozen=True)
class Stack:
    """A whole encoder between word embeddings and last states."""

    layers: list[Layer]
    heads: int
    norm: nn.LayerNorm  # of the embeddings
    position: Callable[[int], Tensor]  # tokens -> (S, H) what is added to word embeddings
    bias: Callable[[int], Tensor | None]  # tokens -> (heads, S, S) what is added to similarities


def stack_of(transformer: Any) -> Stack | None:
    """The layers of a model of a known family, exactly as transformers builds it; or None."""
    known = FAMILIES.get(type(transformer).__name__)
    theirs = type(transformer).__module__.startswith("transformers.models.")
    config = transformer.config
    absolute = getattr(config, "position_embedding_type", "absolute") in {None, "absolute"}
    if known is None or not theirs or not absolute or getattr(config, "is_decoder", False):
        return None
    where, parts = known
    layers = [
        Layer(**{part: attrgetter(path)(module) for part, path in parts.items()})
        for module in attrgetter(where)(transformer)
    ]
    norms = [layer.first_norm for layer in layers] + [layer.second_norm for layer in layers]
    norms.append(transformer.embeddings.LayerNorm)
    linears = [part for layer in layers for part in layer.linears]
    # Adapters, quantised layers and hooks do more.
    plain = {type(part) for part in linears} == {nn.Linear}
    plain = plain and {type(part) for part in norms} == {nn.LayerNorm}
    with _LOOKING:
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in transformer.modules())  # noqa: SLF001 - torch has no public way to ask
    if not plain or hooked:
        return None
    return Stack(
        layers,
        config.num_attention_heads,
        transformer.embeddings.LayerNorm,
        partial(_position, transformer.embeddings),
        partial(_bias, transformer),
    )


def _position(embeddings: Any, tokens: int) -> Tensor:
    """What reaches the LayerNorm where all word embeddings are zero."""
    weight = embeddings.word_embeddings.weight
    zero = torch.zeros(1, tokens, weight.shape[1], dtype=weight.dtype, device=weight.device)
    seen: list[Tensor] = []
    own = get_ident()

    def look(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        if get_ident() == own:  # other threads may be running the model
            seen.append(given[0])

    with _LOOKING:
        hook = embeddings.LayerNorm.register_forward_pre_hook(look)
        try:
            embeddings(input_ids=None, inputs_embeds=zero)
        finally:
            hook.remove()
    return seen[0][0]


def _bias(transformer: Any, tokens: int) -> Tensor | None:
    encoder: Any = getattr(transformer, "encoder", None)
    if not hasattr(encoder, "compute_position_bias"):
        return None
    weight = transformer.embeddings.word_embeddings.weight
    found: Tensor = encoder.compute_position_bias(weight.new_empty(1, tokens, 1))[0]
    return found
