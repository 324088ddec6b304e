"""The tasks: their names, what they read, and how large they are where they were published."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simcse_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

STS, TRANSFER, SPACE = "sts", "transfer", "space"


@dataclass(frozen=True)
class Task:
    """One score.

    Attributes:
        name: as in the papers.
        kind: STS, TRANSFER or SPACE (alignment and uniformity).
        data: the set it reads.
        parts: of that set; "" where it is not divided.
        pairs: how many the published test part has; None where that is not checked.
    """

    name: str
    kind: str
    data: str
    parts: tuple[str, ...] = ("",)
    pairs: int | None = None


SPLIT = ("train", "test")
# The order of the papers' tables.
GROUPS = {
    STS: (
        Task("STS12", STS, "sts12", pairs=3108),
        Task("STS13", STS, "sts13", pairs=1500),
        Task("STS14", STS, "sts14", pairs=3750),
        Task("STS15", STS, "sts15", pairs=3000),
        Task("STS16", STS, "sts16", pairs=1186),
        Task("STS-B", STS, "stsb", ("test",), pairs=1379),
        Task("SICK-R", STS, "sickr", ("test",), pairs=4927),
    ),
    TRANSFER: (
        Task("MR", TRANSFER, "mr"),
        Task("CR", TRANSFER, "cr"),
        Task("SUBJ", TRANSFER, "subj"),
        Task("MPQA", TRANSFER, "mpqa"),
        Task("SST2", TRANSFER, "sst2", ("train", "dev", "test")),
        Task("TREC", TRANSFER, "trec", SPLIT),
        Task("MRPC", TRANSFER, "mrpc", SPLIT),
    ),
    SPACE: (
        Task("alignment", SPACE, "stsb", ("dev",)),
        Task("uniformity", SPACE, "stsb", ("dev",)),
    ),
}
# Not in a group: other parts, to choose a model by.
OTHERS = (
    Task("STS-B dev", STS, "stsb", ("dev",), pairs=1500),
    Task("STS-B train", STS, "stsb", ("train",), pairs=5749),
    Task("SICK-R dev", STS, "sickr", ("dev",), pairs=500),
    Task("SICK-R train", STS, "sickr", ("train",), pairs=4500),
    Task("alignment test", SPACE, "stsb", ("test",)),
    Task("uniformity test", SPACE, "stsb", ("test",)),
)
TASKS = tuple(task for group in GROUPS.values() for task in group) + OTHERS
ALIASES = {"stsbenchmark": "STS-B", "sickrelatedness": "SICK-R", "sst": "SST2"}
ALL = "all"
CHOICES = (STS, TRANSFER, ALL, *(task.name for task in TASKS))


def _key(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


BY_KEY = {_key(task.name): task for task in TASKS}
BY_KEY |= {alias: BY_KEY[_key(name)] for alias, name in ALIASES.items()}


def choose(names: str | Sequence[str]) -> list[tuple[Task, bool]]:
    """The tasks of names and groups, in the order of the tables, each with whether it was named.

    What was named must be there; of a group, what is not there is left out.

    Raises:
        TypeError: names are no texts, or not several.
        ValueError: no such task.
    """
    expected = f"tasks: expected one or more of {', '.join(CHOICES)}"
    if not isinstance(names, Iterable):
        raise TypeError(f"{expected}; got {names!r}.")
    given = [names] if isinstance(names, str) else list(names)
    if not given:
        raise InputError(f"{expected}; got none.")
    named: dict[str, bool] = {}
    for name in given:
        if not isinstance(name, str):
            raise TypeError(f"{expected}; got {name!r}.")
        key = _key(name)
        if key in (STS, TRANSFER, ALL):
            groups = GROUPS.values() if key == ALL else [GROUPS[key]]
            for group in groups:
                for task in group:
                    named.setdefault(task.name, False)
        elif key in BY_KEY:
            named[BY_KEY[key].name] = True
        else:
            raise InputError(f"{expected}; got {name!r}.")
    return [(task, named[task.name]) for task in TASKS if task.name in named]
