"""Logistic regressions: their penalty chosen, their classes guessed, several at once."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]
    Strings = NDArray[np.str_]
    Rows = NDArray[np.int64]

# Inverse strengths of the L2 penalty, for rows of length 1, the strongest first.
STRENGTHS = (0.015625, 0.0625, 0.25, 1.0, 4.0, 16.0, 64.0)
MOST_STEPS = 1000  # of the solver


@dataclass(frozen=True)
class Split:
    """Rows to choose a strength by, to learn from, and to be judged on."""

    inner: list[tuple[Rows, Rows]]  # to learn from, and to judge a strength on
    train: Rows
    test: Rows


@dataclass
class Learner:
    """All splits of one set of features.

    One thread a fit and several fits at once: a fit is too small to be shared between threads.
    """

    x: Floats  # (N, D)
    y: Strings  # (N,)
    tick: Callable[[int], object]
    unfinished: int = 0  # fits that had not converged
    lock: Lock = field(default_factory=Lock)

    def run(self, splits: Sequence[Split]) -> list[tuple[float, Strings]]:
        """Of each split the strength that was chosen, and what is guessed of the test rows."""
        with (
            warnings.catch_warnings(),
            threadpool_limits(1),
            ThreadPoolExecutor(torch.get_num_threads()) as pool,
        ):
            warnings.simplefilter("ignore", ConvergenceWarning)  # they are counted
            try:
                paths = [
                    [pool.submit(self.scores, split, *rows) for rows in split.inner]
                    for split in splits
                ]
                ends = []
                for split, waiting in zip(splits, paths, strict=True):
                    scores = np.sum([one.result() for one in waiting], axis=0)
                    strength = STRENGTHS[int(np.argmax(scores))]
                    ends.append((strength, pool.submit(self.guess, split, strength)))
                return [(strength, end.result()) for strength, end in ends]
            except BaseException:  # Ctrl-C should not wait for what has not begun
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def scores(self, split: Split, train: Rows, dev: Rows) -> Floats:
        """Accuracy on rows that were held out, by strength."""
        length = self.length(split)
        model = LogisticRegression(max_iter=MOST_STEPS, warm_start=True)
        found = []
        for strength in STRENGTHS:
            self.fit(model.set_params(C=strength), train, length)
            found.append(model.score(self.x[dev] / length, self.y[dev]))
        return np.array(found)

    def guess(self, split: Split, strength: float) -> Strings:
        """Classes of the test rows."""
        length = self.length(split)
        model = LogisticRegression(C=strength, max_iter=MOST_STEPS)
        self.fit(model, split.train, length)
        found: Strings = model.predict(self.x[split.test] / length)
        return found

    def fit(self, model: Any, rows: Rows, length: float) -> None:
        """Learn from rows."""
        model.fit(self.x[rows] / length, self.y[rows])
        with self.lock:
            self.unfinished += int(max(model.n_iter_) >= MOST_STEPS)
            self.tick(1)

    def length(self, split: Split) -> float:
        """One number that all features are divided by.

        So a strength means the same for every model; the rows that are judged on have no say in it.
        """
        squares = np.sum(self.x[split.train] ** 2, axis=1)
        return float(np.sqrt(np.mean(squares))) or 1.0
