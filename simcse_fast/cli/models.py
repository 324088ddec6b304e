"""Models by name or folder, for commands that only read them."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any


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
