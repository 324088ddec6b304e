"""A folder of results that holds all of a run or none of it."""

from __future__ import annotations

import errno
import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from simcse_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

REPORT, RESULTS, MODEL = "report.html", "results.json", "model"


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A temporary folder in `output`; its entries move up when the block ends well.

    Raises:
        InputError: `output` cannot be written to, or holds a `model` of somebody else.
    """
    if (output / MODEL).exists() and not (output / RESULTS).exists():
        raise InputError(
            f"--output {output}: holds a {MODEL} that no earlier demo wrote; name another folder"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(prefix=".unfinished-", dir=output))
    except OSError as error:
        raise unwritable(output, error) from error
    try:
        yield folder
        (output / REPORT).unlink(missing_ok=True)
        # The report comes last: where there is one, all it speaks of is there.
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == REPORT):
            if (output / entry.name).is_dir():
                shutil.rmtree(output / entry.name)
            entry.replace(output / entry.name)
    except OSError as error:
        raise unwritable(output, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unwritable(output: Path, error: OSError) -> InputError:
    """One sentence on a folder that is read-only, full, or no folder."""
    reason = error.strerror or str(error)
    remedy = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "name another"
    return InputError(f"--output {output}: cannot write there ({reason}); {remedy}")
