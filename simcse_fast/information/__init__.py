"""Information gain of words over a corpus."""

from .gain import information_gain
from .table import InformationTable

__all__ = ["InformationTable", "information_gain"]
