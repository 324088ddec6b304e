"""Folders that are whole or not there: written aside, synced, sealed by a marker, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MARKER = "complete.json"
UNFINISHED = ".unfinished-"


class UnwritableError(OSError):
    """A folder could not be written: full, read-only, or no folder. The message is one sentence."""


@contextmanager
def made(folder: Path, argument: str) -> Iterator[None]:
    """A folder that is there within; if the block fails, it goes again, unless it holds something.

    Raises:
        UnwritableError: it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UnwritableError(f"{argument}: {folder} cannot be written ({reason})") from error
        yield
    except BaseException:
        with suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


@contextmanager
def writing(target: Path, note: dict[str, Any] | None = None) -> Iterator[Path]:
    """A folder beside `target` to write into; it becomes `target` when the block ends well.

    Args:
        target: replaced, if it is there, only once all of its successor is on the disk.
        note: kept in the marker with the sizes and hashes of all files; None writes no marker.

    Raises:
        UnwritableError: something could not be written; nothing but what was there before is left.
    """
    staging = target.with_name(UNFINISHED + target.name)
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        seal(staging, note)
        publish(staging, target)
    except UnwritableError:
        raise
    except Exception as error:
        if not is_failed_write(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UnwritableError(
            f"{target}: cannot be written ({reason}); what was there before is whole"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def is_failed_write(error: Exception) -> bool:
    """Whether the disk refused; torch and safetensors hide the system's error in their own."""
    kinds = {"SafetensorError"}
    told = str(error)
    return (
        isinstance(error, OSError)
        or type(error).__name__ in kinds
        or (isinstance(error, RuntimeError) and ("write" in told or "PytorchStreamWriter" in told))
    )


def seal(folder: Path, note: dict[str, Any] | None) -> None:
    """Force all files to the disk, and then write the marker that says so."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sync(path)
        if note is not None:
            files[path.relative_to(folder).as_posix()] = [path.stat().st_size, digest(path)]
    if note is not None:
        marker = folder / MARKER
        marker.write_text(json.dumps({"files": files, "note": note}, indent=1), encoding="utf-8")
        sync(marker)
    sync(folder)


def publish(staging: Path, target: Path) -> None:
    """Rename, with what stood there before moved out of the way."""
    before = target.with_name(UNFINISHED + target.name + ".before")
    shutil.rmtree(before, ignore_errors=True)
    if target.exists():
        target.rename(before)
    staging.rename(target)
    sync(target.parent)
    shutil.rmtree(before, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def note_of(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The note of a sealed folder; None and the reason where it is not whole."""
    try:
        content = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        files, note = dict(content["files"]), dict(content["note"])
    except FileNotFoundError:
        return None, f"{MARKER} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return None, f"{MARKER} cannot be read"
    for name, (size, expected) in files.items():
        with suppress(OSError):
            if (folder / name).stat().st_size == size and digest(folder / name) == expected:
                continue
        return None, f"{name} is missing or not as it was written"
    return note, ""
