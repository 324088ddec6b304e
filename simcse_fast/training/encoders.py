"""The model to train: loaded, given its pooling, and a head that only training sees."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import (
    Normalize,
    Pooling,
    StaticEmbedding,
    WeightedLayerPooling,
)
from sentence_transformers.util import is_sentence_transformer_model

from simcse_fast.errors import InputError
from simcse_fast.training.options import POOLINGS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Where modules of transformers keep the probability that they pass on to attention.
DROPOUTS = ("attention_dropout", "dropout", "dropout_p", "dropout_prob")
OF_TWO_LAYERS = {"avg_top2", "avg_first_last"}


class OnlyWhileTraining(torch.nn.Module):
    """What stands at the end of a model while it is trained, and is in no result."""


class TrainingHead(Dense, OnlyWhileTraining):  # type: ignore[misc]
    """SimCSE's Linear + Tanh over the pooled state, passed by outside of training."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Transform the embedding while training, leave it as it is otherwise."""
        if self.training:
            features = super().forward(features)
        return features


@dataclass(frozen=True)
class Encoder:
    """A model, and what training has to know about it."""

    model: SentenceTransformer
    static: bool
    name: str
    plain: bool = False  # a transformer that came without a pooling

    def longest(self, max_length: int | None) -> int | None:
        """Tokens of a text at most: as asked for, and as the model can.

        Raises:
            InputError: the model has fewer positions.
        """
        if self.static:
            return max_length
        positions = getattr(self.model[0].config, "max_position_embeddings", None)
        if max_length is not None and positions is not None and max_length > positions:
            raise InputError(
                f"max_length: {self.name} has {positions} positions, got {max_length}; expected "
                "no more"
            )
        limits = [length for length in (max_length, self.model.max_seq_length) if length]
        return min(limits, default=None)

    def padding(self) -> tuple[int, str]:
        """The id that fills rows up, and the side it goes to."""
        if self.static:
            return 0, "right"
        tokenizer = self.model.tokenizer
        return tokenizer.pad_token_id or 0, tokenizer.padding_side


def load_encoder(
    model: SentenceTransformer | str | Path,
    *,
    pooling: str | None,
    supervised: bool,
    device: str | None,
) -> Encoder:
    """The model as it is trained; a plain transformer gets a pooling.

    Args:
        model: a SentenceTransformer, or the name or folder of one or of a plain transformer.
        pooling: one of POOLINGS; None keeps what a SentenceTransformer has, "cls" for others.
        supervised: keeps the head of "cls" in the result.
        device: where to load it.

    Raises:
        InputError: it cannot be loaded, or cannot have this pooling.
        TypeError: it is neither a model nor a name.
    """
    if isinstance(model, SentenceTransformer):
        name, loaded, plain = type(model[0]).__name__, model, False
        if device is not None:
            loaded.to(device)
    elif isinstance(model, str | os.PathLike):
        name = os.fspath(model)
        loaded, plain = load(name, device)
    else:
        raise TypeError(
            f"model: expected a SentenceTransformer, a name or a folder; got {type(model).__name__}"
        )
    check_pooling(loaded, pooling)
    if isinstance(loaded[0], StaticEmbedding):
        return Encoder(loaded, static=True, name=name)
    if not isinstance(loaded[0], Transformer):
        raise InputError(
            f"model: expected a Transformer or a StaticEmbedding first, {name} has "
            f"{type(loaded[0]).__name__}"
        )
    if pooling is not None or plain:
        set_pooling(loaded, pooling or "cls", supervised)
    return Encoder(loaded, static=False, name=name, plain=plain)


def load(name: str, device: str | None) -> tuple[SentenceTransformer, bool]:
    """A model by name or folder, and whether it was a plain transformer."""
    try:
        plain = not is_sentence_transformer_model(name)
        # Weights that a folder lacks are drawn, a masked language model's pooler for one: the same
        # each time, since a model is known by its weights.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = SentenceTransformer(name, device=device)
    except Exception as error:  # whatever transformers, safetensors or the hub's client raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"model: {name} cannot be loaded ({reason})") from error
    return model, plain


def check_pooling(model: SentenceTransformer, pooling: str | None) -> None:
    """Refuse what no training of the model can have."""
    if pooling is None:
        return
    if pooling not in POOLINGS:
        raise InputError(f"pooling: expected one of {', '.join(POOLINGS)}; got {pooling!r}")
    if isinstance(model[0], StaticEmbedding):
        raise InputError(f"pooling: a static model has none to choose, got {pooling!r}")
    if pooling in OF_TWO_LAYERS and isinstance(model[0], Transformer):
        layers = model[0].config.num_hidden_layers
        if layers < 2:  # noqa: PLR2004 - the mean of two
            raise InputError(f"pooling: {pooling} needs two layers, the model has {layers}")


def set_pooling(model: SentenceTransformer, pooling: str, supervised: bool) -> None:
    """Replace all that follows the transformer; a Normalize at the end stays."""
    kinds = (Pooling, WeightedLayerPooling, Normalize)
    others = [type(module).__name__ for module in list(model)[1:] if not isinstance(module, kinds)]
    if others:
        raise InputError(
            f"pooling: got {pooling!r} for a model that ends in {', '.join(others)}; leave it out "
            "to keep what the model has"
        )
    ends = [module for module in model if isinstance(module, Normalize)]
    transformer = model[0]
    width = transformer.get_embedding_dimension()
    tail: list[torch.nn.Module] = []
    if pooling in OF_TWO_LAYERS:
        transformer.model.config.output_hidden_states = True
        tail.append(layer_mean(transformer.config.num_hidden_layers, width, pooling))
    tail.append(Pooling(width, "cls" if pooling.startswith("cls") else "mean"))
    if pooling == "cls":
        head = Dense if supervised else TrainingHead
        tail.append(head(width, width))
    while len(model) > 1:
        model.pop(-1)
    for module in (*tail, *ends):
        model.append(module.to(model.device))


def layer_mean(layers: int, width: int, pooling: str) -> torch.nn.Module:
    """The mean of the last two layers, or of the first and the last, with weights that stay."""
    start = layers - 1 if pooling == "avg_top2" else 1  # layer 0 are the word embeddings
    weights = torch.zeros(layers + 1 - start)
    weights[0] = weights[-1] = 1
    kept = torch.nn.Parameter(weights, requires_grad=False)
    module: torch.nn.Module = WeightedLayerPooling(width, layers, start, layer_weights=kept)
    return module


@contextmanager
def with_dropout(encoder: Encoder, probability: float | None) -> Iterator[None]:
    """Another probability of dropout within, in all layers; None changes nothing.

    The configuration stays as it is, so that a model that is saved within keeps its own.

    Raises:
        InputError: the model has no dropout to set.
    """
    if probability is None:
        yield
        return
    places = dropouts(encoder)
    if not places:
        raise InputError(f"dropout: {encoder.name} has no dropout to set, got {probability:g}")
    before = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, float(probability))
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


def dropouts(encoder: Encoder) -> list[tuple[torch.nn.Module, str]]:
    """Where a transformer has probabilities of dropout: modules and their attributes."""
    modules = () if encoder.static else encoder.model[0].modules()
    return [
        (module, name)
        for module in modules
        for name in (("p",) if isinstance(module, torch.nn.Dropout) else DROPOUTS)
        if isinstance(getattr(module, name, None), float)
    ]


def dropout_of(encoder: Encoder) -> float | None:
    """The probability of dropout, where all layers have one."""
    found = {getattr(module, name) for module, name in dropouts(encoder)}
    return found.pop() if len(found) == 1 else None


def heads_of(model: SentenceTransformer) -> list[torch.nn.Module]:
    """What only training sees."""
    return [module for module in model if isinstance(module, OnlyWhileTraining)]


def head_parameters(model: SentenceTransformer) -> dict[str, torch.nn.Parameter]:
    """The parameters that only training sees, those aside that are the encoder's as well."""
    heads = heads_of(model)
    lasting = {id(p) for module in model if module not in heads for p in module.parameters()}
    return {
        f"{type(head).__name__}.{name}": parameter
        for head in heads
        for name, parameter in head.named_parameters()
        if id(parameter) not in lasting
    }


def drop_heads(model: SentenceTransformer) -> None:
    """Take off what only training sees."""
    for head in heads_of(model):
        model.pop(list(model).index(head))


@contextmanager
def without_heads(model: SentenceTransformer) -> Iterator[SentenceTransformer]:
    """The model as others will use it; the heads are back afterwards."""
    modules = list(model)
    drop_heads(model)
    try:
        yield model
    finally:
        for place, module in enumerate(modules):
            if isinstance(module, OnlyWhileTraining):
                model.insert(place, module)
