"""What evaluation returns: a score for each task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from simcse_fast.evaluation.tasks import GROUPS, SPACE
from simcse_fast.files import for_json

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False, eq=False)
class Evaluation(Mapping[str, float]):
    """Scores by task, in the order of the papers' tables.

    Attributes:
        scores: Spearman's correlation or accuracy x 100; alignment and uniformity as they are.
        details: of each task "all" (the score), "measure" (what that is), "count" (pairs, sentences
            or rows) and "notes"; for STS besides "mean" and "subsets" (by source), and "dropped"
            (pairs without gold); for transfer "C" (inverse strengths of the penalty),
            "largest_class" (its share x 100), "folds" and their "deviation", and "f1".
        skipped: tasks of a group that had no data, and what was missing.
        seconds: that encoding and everything else took.

    Example:
        >>> result = Evaluation(
        ...     {"STS13": 80.6, "STS-B": 82.0},
        ...     {"STS13": {"all": 80.6, "mean": 73.2}, "STS-B": {"all": 82.0, "mean": 82.5}},
        ... )
        >>> result["STS-B"], result.details["STS13"]["mean"]
        (82.0, 73.2)
        >>> result.averages["sts"]
        81.3
        >>> result
        | model | STS13 | STS-B | Avg. (2 of 7) |
        |:------|------:|------:|--------------:|
        | model | 80.60 | 82.00 |         81.30 |
    """

    scores: dict[str, float]
    details: dict[str, dict[str, Any]]
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, task: str) -> float:
        return self.scores[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        from simcse_fast.evaluation.table import table  # noqa: PLC0415 - it imports this

        return table({"model": self})

    @property
    def averages(self) -> dict[str, float]:
        """Means of "sts" and "transfer", over the tasks of the group that are here."""
        found = {}
        for group, tasks in GROUPS.items():
            scores = [self.scores[task.name] for task in tasks if task.name in self.scores]
            if scores and group != SPACE:
                found[group] = math.fsum(scores) / len(scores)
        return found

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each task: task, score, measure, count, mean (of sub-sets) and notes."""
        import pandas as pd  # noqa: PLC0415 - optional

        rows = []
        for task, score in self.scores.items():
            about = self.details.get(task, {})
            row = {name: about.get(name) for name in ("measure", "count", "mean")}
            rows.append(
                {"task": task, "score": score, **row, "notes": "; ".join(about.get("notes", []))}
            )
        return pd.DataFrame(rows, columns=["task", "score", "measure", "count", "mean", "notes"])

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON; a score that does not exist is null."""
        told = {
            "scores": self.scores,
            "averages": self.averages,
            "details": self.details,
            "skipped": self.skipped,
            "seconds": self.seconds,
        }
        found: dict[str, Any] = for_json(told)
        return found

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Evaluation:
        """What `to_dict` was made of."""
        scores = {task: math.nan if one is None else one for task, one in told["scores"].items()}
        return cls(scores, told["details"], told["skipped"], told["seconds"])
