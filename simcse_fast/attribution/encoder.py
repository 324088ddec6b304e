"""A sentence encoder taken apart: tokens, word embeddings in, sentence embeddings out."""

from __future__ import annotations

import inspect
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import (
    CNN,
    LSTM,
    Normalize,
    Pooling,
    WordWeights,
)
from torch import Tensor, nn

from simcse_fast.attribution.short_attention import ShortAttention
from simcse_fast.errors import InputError
from simcse_fast.pair_encoder import longest_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Models that are at work: in how many calls, and what makes them as they were.
_HELD: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()
_LOCK = Lock()
ALONE = (CNN, LSTM, WordWeights)  # behind a transformer they ask for more than its states


class Encoder:
    """What attribution needs of a SentenceTransformer, or of a transformer with its tokenizer.

    Args:
        transformer: takes `inputs_embeds` and `attention_mask`.
        tokenizer: of transformers.
        tail: pooling and what follows it, a final Normalize aside; from features to features.
        normalizes: whether embeddings are divided by their length at the end.
        longest: tokens of a text at most, special ones included; None: no limit.
        prompt: stands before every text, as the model has it by default.
    """

    def __init__(
        self,
        transformer: nn.Module,
        tokenizer: Any,
        tail: Sequence[nn.Module],
        *,
        normalizes: bool = False,
        longest: int | None = None,
        prompt: str = "",
    ) -> None:
        self.transformer, self.tokenizer, self.tail = transformer, tokenizer, list(tail)
        self.normalizes, self.longest, self.prompt = normalizes, longest, prompt
        self.table: nn.Module = transformer.get_input_embeddings()  # type: ignore[operator]
        parameter = next(self.table.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.width: int = parameter.shape[-1]
        self.prompt_length = _length_of(prompt, tokenizer) if prompt else 0
        self.hidden = bool(getattr(transformer.config, "output_hidden_states", False))

    def words(self, ids: Tensor) -> Tensor:
        """Word embeddings of token ids, (...,) -> (..., H)."""
        with torch.no_grad():
            found: Tensor = self.table(ids.to(self.device))
        return found

    def __call__(
        self, words: Tensor, mask: Tensor, *, prompted: bool = True, forward_mode: bool = False
    ) -> Tensor:
        """Sentence embeddings before a final Normalize.

        Args:
            words: (R, S, H) word embeddings, padded on the right.
            mask: (R, S) int64, 1 at tokens.
            prompted: whether the rows begin with the prompt, which some poolings leave out.
            forward_mode: whether torch.func runs through it, which our own attention cannot.

        Returns:
            (R, D).
        """
        # Without padding no mask is needed, and attention takes its fastest path.
        given = None if bool(mask.all()) else mask
        with nullcontext() if forward_mode else ShortAttention():
            out = self.transformer(inputs_embeds=words, attention_mask=given, return_dict=True)
        if getattr(out, "last_hidden_state", None) is None:
            raise InputError(
                f"model: {type(self.transformer).__name__} returns no last_hidden_state but "
                f"{type(out).__name__}; expected an encoder without a head, as its base_model is."
            )
        hidden = out.hidden_states if self.hidden else None
        return self.pool(out.last_hidden_state, mask, hidden, prompted=prompted)

    def pool(
        self, states: Tensor, mask: Tensor, hidden: Any = None, *, prompted: bool = True
    ) -> Tensor:
        """(R, S, H) last states -> (R, D) embeddings before a final Normalize."""
        features = {"token_embeddings": states, "attention_mask": mask}
        if self.prompt:
            length = self.prompt_length if prompted else 0
            features["prompt_length"] = length  # type: ignore[assignment]
        if hidden is not None:
            features["all_layer_embeddings"] = hidden
        for module in self.tail:
            features = module(features)
        return features["sentence_embedding"]

    @property
    def pools_linearly(self) -> bool:
        """Whether an embedding is a fixed sum of states: no maximum, no layer behind."""
        kinds = [isinstance(m, Pooling) and "max" not in m.pooling_mode for m in self.tail]
        return kinds == [True]

    def finish(self, embeddings: Tensor) -> Tensor:
        """The embeddings as the model returns them."""
        return nn.functional.normalize(embeddings, dim=-1) if self.normalizes else embeddings

    def id_of(self, name: str) -> int:
        """The id of the tokenizer's "pad" or "mask" token.

        Raises:
            ValueError: it has none.
        """
        found: int | None = getattr(self.tokenizer, f"{name}_token_id")
        if found is None:
            raise ValueError(
                f"{name!r} needs a tokenizer with a {name} token, which "
                f"{type(self.tokenizer).__name__} of this model has not."
            )
        return found

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Without dropout, gradients of parameters and inference mode; afterwards all is as it was.

        Of several threads in one model the first freezes it and the last restores it.
        """
        with _LOCK:
            if self.transformer not in _HELD:
                _HELD[self.transformer] = [0, self._freeze()]
            _HELD[self.transformer][0] += 1
        try:
            with torch.inference_mode(mode=False):  # whose tensors have no gradients
                yield
        finally:
            with _LOCK:
                held = _HELD[self.transformer]
                held[0] -= 1
                if not held[0]:
                    del _HELD[self.transformer]
                    held[1]()

    def _freeze(self) -> Callable[[], None]:
        """Returns what undoes it."""
        modules = [m for top in (self.transformer, *self.tail) for m in top.modules()]
        training = [(m, m.training) for m in modules]
        learning = {p: p.requires_grad for m in modules for p in m.parameters(recurse=False)}

        def restore() -> None:
            for module, was in training:
                module.training = was
            for parameter, did in learning.items():
                parameter.requires_grad_(did)

        for module in modules:
            module.training = False
        for parameter in learning:
            parameter.requires_grad_(False)
        return restore


def open_encoder(model: Any, pooling: str | None) -> Encoder:
    """The encoder that the caller means.

    Args:
        model: a SentenceTransformer, or a pair of a transformers model and its tokenizer.
        pooling: of the pair: cls, mean, max, ... as sentence-transformers names them.

    Raises:
        TypeError: it is neither.
        ValueError: it cannot be given word embeddings, or its pooling is unknown.
    """
    if isinstance(model, SentenceTransformer):
        if pooling is not None:
            raise ValueError(
                f"pooling: a SentenceTransformer has its own, got {pooling!r}; leave it out."
            )
        return _of_sentence_transformer(model)
    pair = isinstance(model, tuple) and len(model) == 2  # noqa: PLR2004
    if pair and isinstance(model[0], nn.Module) and model[1] is not None:
        return _of_pair(model[0], model[1], pooling or "mean")
    got = f"({', '.join(type(m).__name__ for m in model)})" if pair else type(model).__name__
    raise TypeError(
        "model: expected a SentenceTransformer or a pair (transformers model, tokenizer), got "
        f"{got}."
    )


def _of_sentence_transformer(model: SentenceTransformer) -> Encoder:
    modules = list(model)
    if not modules or not isinstance(modules[0], Transformer):
        first = type(modules[0]).__name__ if modules else "nothing"
        raise InputError(
            f"model: expected a SentenceTransformer that begins with a Transformer, got {first}"
            + (
                "; its word weights are the lengths of its word vectors."
                if first == "StaticEmbedding"
                else "."
            )
        )
    if wrong := [type(m).__name__ for m in modules[1:] if isinstance(m, ALONE)]:
        raise InputError(
            f"model: has a {wrong[0]} behind its Transformer; expected only poolings and layers "
            "over states, such as Pooling, Dense and Normalize."
        )
    ends = len(modules) > 1 and isinstance(modules[-1], Normalize)
    name = model.default_prompt_name
    transformer = modules[0].model
    _check_takes_embeddings(transformer)
    return Encoder(
        transformer,
        model.tokenizer,
        modules[1:-1] if ends else modules[1:],
        normalizes=ends,
        longest=longest_text(model.tokenizer, transformer, model.max_seq_length),
        prompt=model.prompts[name] if name else "",
    )


def _of_pair(transformer: nn.Module, tokenizer: Any, pooling: str) -> Encoder:
    _check_takes_embeddings(transformer)
    config = transformer.config
    width = config.get_text_config().hidden_size  # type: ignore[operator, union-attr]
    try:
        pool = Pooling(width, pooling_mode=pooling)
    except ValueError as error:
        raise ValueError(f"pooling: {error}") from error
    longest = longest_text(tokenizer, transformer, None)
    return Encoder(transformer, tokenizer, [pool], longest=longest)


def _check_takes_embeddings(transformer: nn.Module) -> None:
    if "inputs_embeds" not in inspect.signature(transformer.forward).parameters:
        raise InputError(
            f"model: {type(transformer).__name__} takes no inputs_embeds, along which the path of "
            "Integrated Gradients runs; expected an encoder whose forward does, as BERT's."
        )


def _length_of(prompt: str, tokenizer: Any) -> int:
    """Tokens of a prompt without the special one behind it, as sentence-transformers counts."""
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - (bool(ids) and ids[-1] in tokenizer.all_special_ids)
