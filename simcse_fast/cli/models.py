"""Models by name or folder, for commands that only read them."""

from __future__ import annotations

import hashlib
import logging
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection


def load_model(name: str, device: str | None, pooling: str | None) -> Any:
    """A SentenceTransformer; for a pooling, a plain transformer and its tokenizer.

    Raises:
        InputError: it cannot be loaded.
    """
    import_module("transformers").utils.logging.disable_progress_bar()
    encoders = import_module("simcse_fast.training.encoders")
    logging.disable(logging.WARNING)  # what they say before they fail; the error says it again
    try:
        model, is_plain = encoders.load(name, device)
    finally:
        logging.disable(logging.NOTSET)
    return (model[0].model, model.tokenizer) if is_plain and pooling else model


def weights_of(name: str, others: Collection[Path] = ()) -> str | None:
    """What tells a folder's weights from those of another training; None for a name of the hub.

    A hash of its files' names, sizes and times, without `others`, which are no part of the model.
    """
    folder = Path(name)
    if not folder.is_dir():
        return None
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.resolve() not in others:
            about = path.stat()
            told = path.relative_to(folder).as_posix(), about.st_size, about.st_mtime_ns
            found.update(repr(told).encode())
    return found.hexdigest()
