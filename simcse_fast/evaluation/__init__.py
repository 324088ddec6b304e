"""Evaluation of sentence encoders: STS, transfer, alignment and uniformity."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from simcse_fast.evaluation.result import Evaluation
from simcse_fast.evaluation.run import evaluate
from simcse_fast.evaluation.table import table

if TYPE_CHECKING:
    from simcse_fast.evaluation.evaluator import AlignmentUniformityEvaluator
    from simcse_fast.evaluation.plots import plot

# These need packages that evaluation itself does not.
_HOME = {"AlignmentUniformityEvaluator": "evaluator", "plot": "plots"}

__all__ = ["AlignmentUniformityEvaluator", "Evaluation", "evaluate", "plot", "table"]


def __getattr__(name: str) -> object:
    """Import on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
