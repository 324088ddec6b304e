"""Sentences to embeddings, by any model that encodes."""

from __future__ import annotations

import inspect
import math
from contextlib import contextmanager
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from simcse_fast.errors import InputError
from simcse_fast.progress import bar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

BATCH = 32  # sentences at once, as in sentence-transformers
BATCHES_A_CALL = 16  # of a model that cuts batches itself: enough not to wait, and the bar moves
SHOWN = 80  # letters of a sentence in a message


def encode(
    model: Any,
    sentences: Sequence[str],
    *,
    pooling: str | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Floats:
    """Embeddings of sentences, each distinct one computed once, longest first.

    Args:
        model: a SentenceTransformer, a pair (transformers model, tokenizer), or any object with
            `encode(list of str)`. It runs in evaluation mode, and afterwards is as it was.
        sentences: N >= 1 texts.
        pooling: of a pair, see `PairEncoder`; "mean" by default.
        batch_size: sentences at once; 32.
        progress: show a bar on a terminal.

    Returns:
        (N, D) fp32, in the order of the sentences.

    Raises:
        TypeError: model, sentences or batch_size are of another kind.
        ValueError: there are no sentences, batch_size < 1, or the embeddings are not finite rows
            of numbers.

    Example:
        >>> import numpy as np
        >>> class Lengths:
        ...     def encode(self, texts):
        ...         return np.array([[len(text), 1.0] for text in texts])
        >>> encode(Lengths(), ["a cat", "mice", "a cat"]).tolist()
        [[5.0, 1.0], [4.0, 1.0], [5.0, 1.0]]
    """
    check_sentences(sentences)
    model = encoder_of(model, pooling)
    batch_size = BATCH if batch_size is None else batch_size
    check_whole("batch_size", batch_size, 1)
    options, size = _options(model, batch_size)
    distinct = sorted(dict.fromkeys(sentences), key=len, reverse=True)
    parts: list[Floats] = []
    with evaluating(model), bar(len(distinct), " sentences", "encoding", show=progress) as shown:
        for start in range(0, len(distinct), size):
            texts = distinct[start : start + size]
            parts.append(_rows(model.encode(texts, **options), texts))
            if shown is not None:
                shown.update(len(texts))
    widths = {part.shape[1] for part in parts}
    if len(widths) > 1:
        raise InputError(f"model: expected embeddings of one width, got widths {sorted(widths)}.")
    places = {text: place for place, text in enumerate(distinct)}
    return np.concatenate(parts)[[places[text] for text in sentences]]


def encoder_of(model: Any, pooling: str | None) -> Any:
    """The model, or the wrapper of a pair.

    Raises:
        TypeError: it cannot encode.
        ValueError: it has a pooling of its own.
    """
    if isinstance(model, tuple) and len(model) == 2:  # noqa: PLR2004 - a pair
        from simcse_fast.pair_encoder import PairEncoder  # noqa: PLC0415 - it imports from here

        return PairEncoder(*model, pooling=pooling or "mean")
    if isinstance(model, str) or not callable(getattr(model, "encode", None)):
        raise TypeError(
            "model: expected a SentenceTransformer, a pair (transformers model, tokenizer) or an "
            f"object with encode(sentences), got {type(model).__name__}."
        )
    if pooling is not None:
        raise ValueError(
            f"pooling: belongs to a pair (transformers model, tokenizer), got {pooling!r} for a "
            f"{type(model).__name__}, which has its own; leave it out."
        )
    return model


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout and without graphs; afterwards each module is in the mode it was in."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def check_sentences(sentences: Sequence[str]) -> None:
    """Refuse what is no list of texts.

    Raises:
        TypeError: it is a single text, or one of them is none.
        ValueError: it is empty.
    """
    if isinstance(sentences, str):
        raise TypeError("sentences: expected a list of str, got a single str; put it in a list.")
    for row, text in enumerate(sentences):
        if not isinstance(text, str):
            raise TypeError(f"sentences: expected str, got {type(text).__name__} at row {row}.")
    if not len(sentences):
        raise ValueError("sentences: expected one or more, got none.")


def check_whole(name: str, value: Any, least: int, end: float = math.inf) -> None:
    """Refuse what is no whole number, or outside of [least, end).

    Raises:
        TypeError: it is no whole number.
        ValueError: it is too small, or too large.
    """
    limits = f">= {least}" if end == math.inf else f"in [{least}, {end})"
    told = f"{name}: expected a whole number {limits}, got {value!r}."
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(told)
    if not least <= int(value) < end:
        raise InputError(told)


def _options(model: Any, batch_size: int) -> tuple[dict[str, Any], int]:
    """What `encode` understands besides its texts, and how many of these it gets at once."""
    options = {"batch_size": batch_size, "show_progress_bar": False}
    known = inspect.signature(model.encode).parameters
    options = {name: value for name, value in options.items() if name in known}
    return options, batch_size * (BATCHES_A_CALL if "batch_size" in options else 1)


def _rows(embeddings: Any, texts: list[str]) -> Floats:
    """What a model gave, as finite numbers."""
    if isinstance(embeddings, list) and embeddings and isinstance(embeddings[0], torch.Tensor):
        embeddings = torch.stack(embeddings)
    if isinstance(embeddings, torch.Tensor):
        embeddings = embeddings.detach().float().cpu().numpy()
    found = np.asarray(embeddings, dtype=np.float32)
    if found.ndim != 2 or len(found) != len(texts) or not found.shape[1]:  # noqa: PLR2004 - a matrix
        raise InputError(
            f"model: expected embeddings of shape ({len(texts)}, D) for {len(texts)} sentences, "
            f"got {found.shape}."
        )
    check_finite(found, texts)
    return found


def check_finite(embeddings: Floats, texts: Sequence[str]) -> None:
    """Refuse embeddings (N, D) that hold NaN or infinity, and name the first sentence."""
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        text = texts[int(np.argmin(finite))]
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        raise InputError(
            f"model: {np.count_nonzero(~finite)} of {len(texts)} embeddings hold NaN or infinity; "
            f"first that of {shown!r}."
        )
