"""Where the ids of a text are kept between runs, and how they are known to be of that text."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simcse_fast.information.corpus import Text
    from simcse_fast.information.numbering import Plan
    from simcse_fast.information.options import Options

LARGE = 256 << 20  # bytes of files from which on splitting again takes longer than is pleasant
FORMAT = 1  # to be raised when ids, their files or the rules of "words" change


def options_of(plan: Plan, column: str | None) -> dict[str, Any]:
    """What decides the ids besides the text."""
    identity = plan.encoder.identity if plan.encoder else "words"
    return {
        "format": FORMAT,
        "tokenizer": hashlib.sha256(str(identity).encode()).hexdigest(),
        "unicode": unicodedata.unidata_version,  # decides what a word is, and its lower case
        "splitter": version("sentencex") if plan.language else None,
        "presence": plan.presence,
        "language": plan.language,
        "column": column,
    }


def fingerprint_of(text: Text, plan: Plan, column: str | None) -> dict[str, Any]:
    """Files with sizes and times, and all that decides the ids; of JSON's types."""
    files = [(path.resolve(), path.stat()) for path in text.files]
    told = [
        [str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
        for path, found in files
    ]
    return {"files": told, **options_of(plan, column)}


def folder_for(text: Text, plan: Plan, options: Options) -> Path | None:
    """The folder for the ids of a text; None: they are not kept."""
    known = text.files and (plan.encoder is None or plan.encoder.identity is not None)
    if not known or options.cache is False:
        return None
    if options.cache == "auto" and options.memory_limit is None and (text.total or 0) < LARGE:
        return None
    names = [str(path.resolve()) for path in text.files]
    told = json.dumps([names, options_of(plan, options.column)])
    name = f"{text.files[0].name}.ids-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    beside = options.cache if isinstance(options.cache, Path) else text.files[0].parent
    return beside / name
