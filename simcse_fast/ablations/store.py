"""The runs of an ablation in a folder: a file each, whole or not there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simcse_fast.errors import InputError
from simcse_fast.files import written_whole
from simcse_fast.locks import alone
from simcse_fast.training.sealed import UnwritableError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

SETTINGS = "settings.json"
# Settings that are known by a hash, which would tell a person nothing.
HASHED = ("model", "sentences", "triplets", "development", "test")


@dataclass(frozen=True)
class Store:
    """What an ablation writes; several processes may work at one.

    Args:
        folder: of all of it.
    """

    folder: Path

    def begin(self, settings: dict[str, Any]) -> None:
        """Take the folder for these settings.

        Raises:
            InputError: it holds runs of other settings.
            UnwritableError: it cannot be written.
        """
        path = self.folder / SETTINGS
        then = read(path)
        if then is None:
            if any(self.folder.glob("runs/*.json")):
                raise InputError(f"output: {path} cannot be read; name another folder")
            write(path, settings)
            return
        for name in {**settings, **then}:
            if settings.get(name) != then.get(name):
                told = f"{name} {then.get(name)!r}, now it is {settings.get(name)!r}"
                told = f"another {name}" if name in HASHED else told
                raise InputError(
                    f"output: the runs in {self.folder} are of {told}; give the same, or name "
                    "another folder"
                )

    def run(self, name: str) -> dict[str, Any] | None:
        """What a run came to; None where it has to be made."""
        return read(self.folder / "runs" / f"{name}.json")

    def keep(self, name: str, run: dict[str, Any]) -> None:
        """Write what a run came to."""
        write(self.folder / "runs" / f"{name}.json", run)

    def alone(self, name: str, *, wait: bool = True) -> AbstractContextManager[bool]:
        """Whether no other process is within under this name."""
        return alone(self.folder / "runs" / f"{name}.lock", wait=wait)

    def model(self, name: str) -> Path:
        """The folder of a run's model, if it is kept."""
        return self.folder / "models" / name


def read(path: Path) -> dict[str, Any] | None:
    """A JSON object, if there is a whole one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write(path: Path, content: dict[str, Any]) -> None:
    """A JSON object, whole or not at all."""
    try:
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnwritableError(f"output: {path} cannot be written ({reason})") from error
