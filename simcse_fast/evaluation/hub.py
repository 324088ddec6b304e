"""SentEval's data from the hub, unpacked once."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path

from simcse_fast.errors import InputError

REPOSITORY, FILE = "princeton-nlp/datasets-for-simcse", "senteval.tar"
END = 1024  # zeros at the end of every archive
REMEDY = "give data_dir, a folder with sts/*.tsv and transfer/*.tsv or SentEval's data/downstream"


def downloaded() -> Path:
    """The folder of SentEval's data, from an earlier call or from the hub.

    Raises:
        ValueError: it can be neither downloaded nor unpacked.
    """
    import huggingface_hub  # noqa: PLC0415 - only where nothing is at hand

    place = "simcse_fast", "evaluation"
    try:
        folder = huggingface_hub.cached_assets_path(*place, subfolder="senteval") / "data"
    except OSError as error:
        raise InputError(
            f"data_dir: the hub's cache cannot be used ({error}); {REMEDY}."
        ) from error
    if folder.is_dir():
        return inner(folder)
    try:
        archive = huggingface_hub.hf_hub_download(REPOSITORY, FILE, repo_type="dataset")
    except Exception as error:  # the hub's client raises whatever its transport does
        raise InputError(
            f"data_dir: {FILE} of {REPOSITORY} cannot be downloaded ({type(error).__name__}); "
            f"{REMEDY}."
        ) from error
    unpack(Path(archive), folder)
    return inner(folder)


def inner(folder: Path) -> Path:
    """Where in the archive SentEval's folders are."""
    found = next(folder.rglob("STSBenchmark"), None)
    return folder if found is None else found.parents[1]


def unpack(archive: Path, folder: Path) -> None:
    """All of it under the folder's name, or nothing.

    Raises:
        ValueError: it is no archive, or holds what would leave the folder; the disk is full.
    """
    try:
        check_whole(archive)
        with (
            tempfile.TemporaryDirectory(
                prefix=".unfinished-", dir=folder.parent, ignore_cleanup_errors=True
            ) as unfinished,
            tarfile.open(archive) as opened,
        ):
            opened.extractall(unfinished, filter="data")
            if not folder.is_dir():  # another process may have been faster
                Path(unfinished).rename(folder)
    except (OSError, tarfile.TarError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"data_dir: {archive} cannot be unpacked ({reason}); {REMEDY}.") from error


def check_whole(archive: Path) -> None:
    """Refuse an archive that is cut, of which tarfile would unpack what is left.

    Raises:
        OSError: it does not end as archives do.
    """
    with archive.open("rb") as file:
        file.seek(-END, os.SEEK_END)
        if any(file.read()):
            raise OSError("it is cut short")
