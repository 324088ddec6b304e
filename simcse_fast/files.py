"""Files that are whole or not there, and what JSON can hold."""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def for_json(value: Any) -> Any:
    """Without numbers that JSON lacks: they become None."""
    if isinstance(value, Mapping):
        return {key: for_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
