"""Which checkpoints of a folder are whole, which one to go on from, which may go."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from simcse_fast.errors import InputError
from simcse_fast.training.sealed import UNFINISHED, note_of

if TYPE_CHECKING:
    from pathlib import Path

NAME = re.compile(r"checkpoint-(\d+)")
# Options that a checkpoint knows by a hash, and what to do where it differs.
HASHED = {
    "model": "a model with other weights; load it anew, as it was before training",
    "data": "other texts or another tokenizer; give the same",
    "evaluate": "other pairs to evaluate; give the same",
}


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are.
        options: all that decides what is learned; a checkpoint of other options is refused.
        keep: how many of the newest to keep, the best aside.
    """

    folder: Path
    options: dict[str, Any]
    keep: int
    told: list[str] = field(default_factory=list)  # what a person should know

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.folder / f"checkpoint-{step}"

    def steps(self) -> list[int]:
        """Steps with a folder, whole or not, the newest first."""
        if not self.folder.is_dir():
            return []
        found = (NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def note(self, step: int, best: int | None) -> dict[str, Any]:
        """What the marker of a checkpoint says."""
        return {"step": step, "best": best, "options": self.options}

    def newest(self) -> Path | None:
        """The newest whole checkpoint, whose best is whole too; others are told of and passed by.

        Raises:
            InputError: it is of other options.
        """
        for step in self.steps():
            note, reason = note_of(self.path(step))
            best = note.get("best") if note else None
            if best not in {None, step} and note_of(self.path(best))[0] is None:
                note, reason = None, f"checkpoint-{best}, the best until then, is not whole"
            if note is None:
                self.told.append(f"{self.path(step)} is skipped: {reason}")
                continue
            self.check(step, note["options"])
            return self.path(step)
        return None

    def check(self, step: int, options: dict[str, Any]) -> None:
        """Refuse what was trained with other options."""
        names = [*self.options, *(name for name in options if name not in self.options)]
        for name in names:
            then, now = options.get(name), self.options.get(name)
            if then != now:
                told = f"{name} {then!r}, now it is {now!r}; give the same options"
                told = HASHED[name] if then and now and name in HASHED else told
                raise InputError(
                    f"resume: {self.path(step)} was trained with {told}, or another output folder"
                )

    def refuse_others(self) -> None:
        """A new run does not mix with the checkpoints of an earlier one."""
        if self.steps() or (self.folder / "final").exists():
            raise InputError(
                f"output: {self.folder} holds an earlier run; resume it, or name another folder"
            )

    def whole(self) -> Path | None:
        """The newest folder that is whole, whatever it was trained with."""
        paths = (self.path(step) for step in self.steps())
        return next((path for path in paths if note_of(path)[0] is not None), None)

    def rotate(self, step: int, best: int | None) -> None:
        """After a save: remove the oldest beyond `keep`, and what an interrupted save left.

        Newer ones than this step's are those that a resumed run has passed by.
        """
        steps = self.steps()
        kept = [one for one in steps if one <= step][: self.keep]
        for one in steps:
            if one != best and one not in kept:
                shutil.rmtree(self.path(one), ignore_errors=True)
        for path in self.folder.glob(UNFINISHED + "checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)
