"""Studies: what contrastive training does to the weights of words."""

from simcse_fast.studies.result import Study
from simcse_fast.studies.study import study

__all__ = ["Study", "study"]
