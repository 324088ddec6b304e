"""Information gain of words over a corpus."""

from simcse_fast.information.gain import information_gain
from simcse_fast.information.table import InformationTable

__all__ = ["InformationTable", "information_gain"]
