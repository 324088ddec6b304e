"""Where the data of tasks are: in a folder of ours, in one of SentEval, or nowhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from simcse_fast.errors import InputError
from simcse_fast.evaluation import senteval, tsv
from simcse_fast.evaluation.tasks import TRANSFER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simcse_fast.evaluation.rows import Labelled, Pairs
    from simcse_fast.evaluation.tasks import Task

    Parts = dict[str, Pairs | Labelled]


def folder_of(data_dir: str | os.PathLike[str]) -> Path:
    """The folder, if it is one.

    Raises:
        TypeError: data_dir is no path.
        ValueError: there is no such folder.
    """
    if not isinstance(data_dir, str | os.PathLike):
        raise TypeError(f"data_dir: expected a path, got {type(data_dir).__name__}.")
    folder = Path(data_dir)
    if not folder.is_dir():
        raise InputError(
            f"data_dir: there is no folder {folder}; expected one with sts/*.tsv and "
            "transfer/*.tsv, or SentEval's data/downstream."
        )
    return folder


def read_tasks(
    folder: Path, chosen: Sequence[tuple[Task, bool]]
) -> tuple[dict[Task, Parts], dict[str, str]]:
    """The data of all tasks that are there, and why the others are not.

    Raises:
        ValueError: a task that was named is not there, or none is; a file is not as expected.
    """
    found: dict[Task, Parts] = {}
    skipped: dict[str, str] = {}
    for task, named in chosen:
        missing = missing_of(folder, task)
        if missing is None:
            found[task] = {part: read(folder, task, part) for part in task.parts}
        elif named:
            raise InputError(f"tasks: {task.name} cannot run: {missing}.")
        else:
            skipped[task.name] = missing
    if not found:
        raise InputError(
            f"data_dir: {folder} has the data of none of {', '.join(skipped)}; "
            f"{next(iter(skipped.values()))}."
        )
    return found, skipped


def missing_of(folder: Path, task: Task) -> str | None:
    """What a task has not in this folder; None where all is there."""
    for part in task.parts:
        own = tsv.file_of(folder, task, part)
        if own.exists():
            continue
        gone = [path for path in senteval.files_of(folder, task, part) if not path.exists()]
        if gone:
            other = gone[0].relative_to(folder).as_posix()
            return f"neither {own.relative_to(folder).as_posix()} nor {other} is in {folder}"
    return None


def read(folder: Path, task: Task, part: str) -> Pairs | Labelled:
    """A part in the layout that is there; a file of ours comes first."""
    layout = tsv if tsv.file_of(folder, task, part).exists() else senteval
    reader = layout.read_labelled if task.kind == TRANSFER else layout.read_pairs
    found: Pairs | Labelled = reader(folder, task, part)
    return found
