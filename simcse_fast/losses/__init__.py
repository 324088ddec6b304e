"""Drop-in losses: change the import, keep the rest of the training code."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simcse_fast.losses.cached import (
        CachedMultipleNegativesRankingLoss,
        CachedMultipleNegativesSymmetricRankingLoss,
    )
    from simcse_fast.losses.lightly import NTXentLoss
    from simcse_fast.losses.open_clip import ClipLoss
    from simcse_fast.losses.sentence_transformers import (
        MultipleNegativesRankingLoss,
        MultipleNegativesSymmetricRankingLoss,
    )

_HOME = {
    "CachedMultipleNegativesRankingLoss": "cached",
    "CachedMultipleNegativesSymmetricRankingLoss": "cached",
    "ClipLoss": "open_clip",
    "MultipleNegativesRankingLoss": "sentence_transformers",
    "MultipleNegativesSymmetricRankingLoss": "sentence_transformers",
    "NTXentLoss": "lightly",
}

__all__ = [
    "CachedMultipleNegativesRankingLoss",
    "CachedMultipleNegativesSymmetricRankingLoss",
    "ClipLoss",
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
    "NTXentLoss",
]


def __getattr__(name: str) -> object:
    """Import a loss on first use, so that none needs the package of another."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
