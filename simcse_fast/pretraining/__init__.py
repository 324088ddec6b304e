"""Pre-training small encoders from nothing: a vocabulary, and a masked language model."""

from simcse_fast.pretraining.history import Evaluation, History
from simcse_fast.pretraining.pretrain import Pretrained, pretrain_mlm

__all__ = ["Evaluation", "History", "Pretrained", "pretrain_mlm"]
