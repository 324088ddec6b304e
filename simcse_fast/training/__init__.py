"""Training sentence encoders: SimCSE, unsupervised and supervised, with batches of any size."""

from simcse_fast.training.history import History
from simcse_fast.training.train import TrainingResult, train

__all__ = ["History", "TrainingResult", "train"]
