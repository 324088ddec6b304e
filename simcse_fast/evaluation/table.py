"""Tables as the papers have them: a row a model, a column a task, the average last."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from simcse_fast.evaluation.tasks import GROUPS, OTHERS, SPACE, TASKS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from simcse_fast.evaluation.result import Evaluation

NOTHING = "\u2013"


def table(evaluations: Mapping[str, Evaluation]) -> str:
    """Scores of several models in Markdown, one table for each group of tasks.

    An average is over the tasks that all models have; its column says how many of the group's
    these are, where some are not there. Below the tables stands what was skipped, and why.

    Args:
        evaluations: by name of the model.

    Returns:
        Lines of text, without one at the end.

    Raises:
        ValueError: there is none.

    Example:
        >>> from simcse_fast.evaluation import Evaluation
        >>> scores = {"alignment": 0.2215, "uniformity": -2.5531}
        >>> print(table({"ours": Evaluation(scores, {})}))
        | model | alignment | uniformity |
        |:------|----------:|-----------:|
        | ours  |     0.222 |     -2.553 |
    """
    if not evaluations:
        raise ValueError("evaluations: expected one or more, got none.")
    shown = {name for one in evaluations.values() for name in one}
    blocks = []
    for group in GROUPS:
        tasks = [task for task in TASKS if task.kind == group and task.name in shown]
        if tasks:
            blocks.append(_markdown(_cells(group, [task.name for task in tasks], evaluations)))
    blocks += _notes(evaluations)
    return "\n\n".join(blocks)


def _cells(group: str, names: list[str], evaluations: Mapping[str, Evaluation]) -> list[list[str]]:
    """Header and rows."""
    places = 3 if group == SPACE else 2
    others = {task.name for task in OTHERS}
    averaged = [name for name in names if name not in others] if group != SPACE else []
    shared = [name for name in averaged if all(name in one for one in evaluations.values())]
    header = ["model", *names]
    if averaged:
        whole = len(shared) == len(GROUPS[group])
        header.append("Avg." if whole else f"Avg. ({len(shared)} of {len(GROUPS[group])})")
    rows = [header]
    for model, one in evaluations.items():
        row = [model, *(_number(one.get(name), places) for name in names)]
        if averaged:
            mean = math.fsum(one[name] for name in shared) / len(shared) if shared else None
            row.append(_number(mean, places))
        rows.append(row)
    return rows


def _number(value: float | None, places: int) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.{places}f}"


def _markdown(rows: list[list[str]]) -> str:
    """Names to the left, numbers to the right."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        lines.append(f"| {' | '.join(cells)} |")
    rules = [f":{'-' * (widths[0] + 1)}", *(f"{'-' * (width + 1)}:" for width in widths[1:])]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])


def _notes(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Below the tables, each sentence once."""
    skipped = dict.fromkeys(
        f"{task} was skipped: {reason}."
        for one in evaluations.values()
        for task, reason in one.skipped.items()
    )
    notes = dict.fromkeys(
        f"{task}{f' of {model}' if len(evaluations) > 1 else ''}: {note}."
        for model, one in evaluations.items()
        for task, about in one.details.items()
        for note in about.get("notes", [])
    )
    return ["\n".join([*skipped, *notes])] if skipped or notes else []
