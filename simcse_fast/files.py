"""Files that are whole or not there."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike


@contextmanager
def written_whole(path: str | PathLike[str]) -> Iterator[Path]:
    """Another name to write to, which becomes the file's when the block ends well.

    Raises:
        OSError: the path is a folder or a device.
    """
    path = Path(path).resolve()  # a link stays, and what it leads to is replaced
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "no regular file", str(path))
    unfinished = path.with_name(f".unfinished-{path.name}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
