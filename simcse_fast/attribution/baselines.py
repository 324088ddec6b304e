"""Where the path of a token begins: one word embedding that says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from simcse_fast.attribution.encoder import Encoder

VOCABULARY = 4096  # words that are looked up at a time
BASELINES = ("pad", "mask", "zero", "mean")


def read_baseline(baseline: Any, encoder: Encoder, name: str = "baseline") -> Tensor:
    """The word embedding that every token starts from, (H,).

    Args:
        baseline: the embedding of the tokenizer's "pad" or "mask" token, "zero", the "mean" of the
            table, or (H,) numbers.
        encoder: whose word embeddings are meant.
        name: of the argument, for errors.

    Raises:
        TypeError: it is neither a name nor numbers.
        ValueError: no such name, another shape, NaN or infinite numbers.
    """
    if isinstance(baseline, str):
        return _named(baseline, encoder, name)
    try:
        given = torch.as_tensor(baseline)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name}: expected one of {', '.join(BASELINES)} or a tensor ({encoder.width},), got "
            f"{type(baseline).__name__}."
        ) from error
    if tuple(given.shape) != (encoder.width,):
        raise ValueError(
            f"{name}: expected one word embedding of shape ({encoder.width},), got "
            f"{tuple(given.shape)}."
        )
    if not bool(given.isfinite().all()):
        raise ValueError(f"{name}: expected finite numbers, found NaN or infinite ones.")
    return given.detach().to(encoder.device, encoder.dtype)


def _named(baseline: str, encoder: Encoder, name: str) -> Tensor:
    if baseline == "zero":
        return torch.zeros(encoder.width, dtype=encoder.dtype, device=encoder.device)
    if baseline == "mean":
        count = len(encoder.table.weight)  # type: ignore[arg-type]
        # Some tables scale what they hold: looked up, as words are.
        some = torch.split(torch.arange(count), VOCABULARY)
        total = sum(encoder.words(ids).double().sum(0) for ids in some)
        return torch.as_tensor(total / count).to(encoder.dtype)
    if baseline in {"pad", "mask"}:
        try:
            number = encoder.id_of(baseline)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return encoder.words(torch.tensor([number]))[0]
    raise ValueError(f"{name}: expected one of {', '.join(BASELINES)}, got {baseline!r}.")
