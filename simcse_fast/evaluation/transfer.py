"""Transfer: logistic regression on frozen embeddings."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold, train_test_split

from simcse_fast.errors import InputError
from simcse_fast.evaluation.learning import STRENGTHS, Learner, Split
from simcse_fast.progress import bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from simcse_fast.evaluation.correlation import Embed
    from simcse_fast.evaluation.learning import Strings
    from simcse_fast.evaluation.rows import Labelled
    from simcse_fast.evaluation.tasks import Task

FOLDS = 10  # of a task without a test part
INNER = 5  # folds of a training part without a part to choose by
SHARE = 0.1  # of each fold's training part, to choose by
POSITIVE = "1"  # the class of MRPC whose F1 is told


def classify(
    task: Task, parts: dict[str, Labelled], embed: Embed, *, seed: int, progress: bool
) -> tuple[float, dict[str, Any]]:
    """Accuracy x 100 on rows that neither the weights nor their penalty have seen.

    Raises:
        ValueError: a class is too small to be divided, or only to be judged on.
    """
    check_classes(task, parts)
    x = np.concatenate([features(rows, embed) for rows in parts.values()])
    y = np.array([label for rows in parts.values() for label in rows.labels])
    splits = list(splits_of(parts, y, seed))
    fits = sum(len(STRENGTHS) * len(split.inner) + 1 for split in splits)
    with bar(fits, " fits", task.name, show=progress) as shown:
        learner = Learner(x, y, (lambda _: None) if shown is None else shown.update)
        ends = learner.run(splits)
    unfinished = learner.unfinished
    about = details_of(ends, [y[split.test] for split in splits], f1=task.name == "MRPC")
    about["notes"] = [f"{unfinished} of {fits} fits had not converged"] if unfinished else []
    return about["all"], about


def details_of(
    ends: list[tuple[float, Strings]], golds: list[Strings], *, f1: bool
) -> dict[str, Any]:
    """Accuracies of guesses, and what they are to be compared with."""
    strengths, guesses = zip(*ends, strict=True)
    pairs = list(zip(golds, guesses, strict=True))
    accuracies = [100 * float(np.mean(gold == guess)) for gold, guess in pairs]
    gold, guess = np.concatenate(golds), np.concatenate(guesses)
    about = {
        "measure": "accuracy x 100",
        "all": float(np.mean(accuracies)),
        "count": len(gold),
        "largest_class": 100 * max(Counter(gold.tolist()).values()) / len(gold),
        "C": list(strengths),
    }
    if len(accuracies) > 1:
        about |= {"folds": accuracies, "deviation": float(np.std(accuracies, ddof=1))}
    if f1:
        about["f1"] = 100 * float(f1_score(gold == POSITIVE, guess == POSITIVE))
    return about


def check_classes(task: Task, parts: dict[str, Labelled]) -> None:
    """Refuse classes that cannot be in every fold, or are in no training part."""
    train = parts.get("train") or parts[""]
    counts = Counter(train.labels)
    least = FOLDS if "" in parts else INNER if "dev" not in parts else 1
    for label, count in counts.items():
        if count < least:
            raise InputError(
                f"{task.name}: class {label!r} of {train.file} has {count} rows; expected {least} "
                "or more, one for each fold."
            )
    for rows in parts.values():
        if new := set(rows.labels) - set(counts):
            raise InputError(
                f"{task.name}: class {min(new)!r} of {rows.file} is not among those of "
                f"{train.file}, which are {', '.join(sorted(counts))}."
            )


def splits_of(parts: dict[str, Labelled], y: Strings, seed: int) -> Iterator[Split]:
    """Folds of a whole, or the one split that was published, as rows of all parts together."""
    if "" in parts:
        for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(y, y):
            held = train_test_split(train, test_size=SHARE, random_state=seed, stratify=y[train])
            yield Split([tuple(held)], train, test)
        return
    ends = pairwise(accumulate((len(rows.labels) for rows in parts.values()), initial=0))
    rows = {part: np.arange(*span) for part, span in zip(parts, ends, strict=True)}
    train = rows["train"]
    if "dev" in rows:
        inner = [(train, rows["dev"])]
    else:
        folds = StratifiedKFold(INNER, shuffle=True, random_state=seed)
        inner = [(train[a], train[b]) for a, b in folds.split(train, y[train])]
    yield Split(inner, train, rows["test"])


def features(rows: Labelled, embed: Embed) -> NDArray[np.float64]:
    """Embeddings; for pairs |u - v| beside u * v. The solver converges in fp64 only."""
    u, *others = (embed(column).astype(np.float64) for column in rows.columns)
    return np.hstack([np.abs(u - others[0]), u * others[0]]) if others else u
