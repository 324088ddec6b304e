"""Exact, fused contrastive losses for sentence encoders, and tools that show what they teach."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simcse_fast.ablations import Ablation, ablate
    from simcse_fast.attribution import (
        Attributions,
        integrated_gradients,
        shapley_values,
        token_similarity,
    )
    from simcse_fast.attribution.batch import attribute_file
    from simcse_fast.backend import backends, set_workspace_limit
    from simcse_fast.errors import BackendUnavailableError
    from simcse_fast.evaluation import Evaluation, evaluate
    from simcse_fast.gradient_cache import GradientCache
    from simcse_fast.information import InformationTable, information_gain
    from simcse_fast.losses.info_nce import InfoNCELoss, info_nce
    from simcse_fast.metrics import Alignment, Uniformity, alignment, uniformity
    from simcse_fast.pretraining import Pretrained, pretrain_mlm
    from simcse_fast.sparsity import Sparsified, sparsify
    from simcse_fast.studies import Study, study
    from simcse_fast.training import train

__version__ = "0.1.0"

_HOME = {
    "Ablation": "ablations",
    "Alignment": "metrics",
    "Attributions": "attribution",
    "BackendUnavailableError": "errors",
    "Evaluation": "evaluation",
    "GradientCache": "gradient_cache",
    "InfoNCELoss": "losses.info_nce",
    "InformationTable": "information",
    "Pretrained": "pretraining",
    "Sparsified": "sparsity",
    "Study": "studies",
    "Uniformity": "metrics",
    "ablate": "ablations",
    "alignment": "metrics",
    "attribute_file": "attribution.batch",
    "backends": "backend",
    "evaluate": "evaluation",
    "info_nce": "losses.info_nce",
    "information_gain": "information",
    "integrated_gradients": "attribution",
    "pretrain_mlm": "pretraining",
    "set_workspace_limit": "backend",
    "shapley_values": "attribution",
    "sparsify": "sparsity",
    "study": "studies",
    "token_similarity": "attribution",
    "train": "training",
    "uniformity": "metrics",
}

__all__ = [
    "Ablation",
    "Alignment",
    "Attributions",
    "BackendUnavailableError",
    "Evaluation",
    "GradientCache",
    "InfoNCELoss",
    "InformationTable",
    "Pretrained",
    "Sparsified",
    "Study",
    "Uniformity",
    "ablate",
    "alignment",
    "attribute_file",
    "backends",
    "evaluate",
    "info_nce",
    "information_gain",
    "integrated_gradients",
    "pretrain_mlm",
    "set_workspace_limit",
    "shapley_values",
    "sparsify",
    "study",
    "token_similarity",
    "train",
    "uniformity",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that the package itself imports at once."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
