"""SparseCSE: what contributes least to alignment and uniformity, found and removed."""

from simcse_fast.sparsity.layouts import Layout
from simcse_fast.sparsity.result import Sparsified
from simcse_fast.sparsity.run import sparsify

__all__ = ["Layout", "Sparsified", "sparsify"]
