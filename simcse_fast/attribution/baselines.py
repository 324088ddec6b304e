"""Where the path of a token begins: one word embedding that says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from simcse_fast.attribution.encoder import Encoder

BASELINES = ("pad", "mask", "zero", "mean")


def read_baseline(baseline: Any, encoder: Encoder) -> Tensor:
    """The word embedding that every token starts from, (H,).

    Args:
        baseline: the embedding of the tokenizer's "pad" or "mask" token, "zero", the "mean" of the
            table, or (H,) numbers.
        encoder: whose word embeddings are meant.

    Raises:
        TypeError: it is neither a name nor numbers.
        ValueError: no such name, another shape, NaN or infinite numbers.
    """
    if isinstance(baseline, str):
        return _named(baseline, encoder)
    try:
        given = torch.as_tensor(baseline)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"baseline: expected one of {', '.join(BASELINES)} or a tensor ({encoder.width},), got "
            f"{type(baseline).__name__}."
        ) from error
    if tuple(given.shape) != (encoder.width,):
        raise ValueError(
            f"baseline: expected one word embedding of shape ({encoder.width},), got "
            f"{tuple(given.shape)}."
        )
    if not bool(given.isfinite().all()):
        raise ValueError("baseline: expected finite numbers, found NaN or infinite ones.")
    return given.detach().to(encoder.device, encoder.dtype)


def _named(name: str, encoder: Encoder) -> Tensor:
    if name == "zero":
        return torch.zeros(encoder.width, dtype=encoder.dtype, device=encoder.device)
    if name == "mean":
        weight: Tensor = encoder.table.weight.detach()  # type: ignore[operator]
        return weight.mean(0)
    if name in {"pad", "mask"}:
        try:
            number = encoder.id_of(name)
        except ValueError as error:
            raise ValueError(f"baseline: {error}") from error
        return encoder.words(torch.tensor([number]))[0]
    raise ValueError(f"baseline: expected one of {', '.join(BASELINES)}, got {name!r}.")
