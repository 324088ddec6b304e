"""SimCSE's ablations: the same training with one thing changed, over several seeds."""

from simcse_fast.ablations.ablate import ablate
from simcse_fast.ablations.result import Ablation

__all__ = ["Ablation", "ablate"]
