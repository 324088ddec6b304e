"""Run by tests: attributes a corpus in processes that kill themselves at given moments.

The libraries are loaded once; each run is a fork, and a killed one gets SIGKILL. A run waits for
the disk twelve times: for a file and then its folder, with the settings, four parts and the table.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from attribution_models import TEXTS, pair_of

from simcse_fast.attribution import parts
from simcse_fast.attribution.batch import Batch

ROWS = 2
PARTS = len(TEXTS) // ROWS


def at_call(owner, name, number, *, after=False):
    """Die as `kill -9` does, at this call of a function, before or after it has done its work."""
    original, calls = getattr(owner, name), []

    def wrapped(*arguments, **options):
        calls.append(1)
        if len(calls) == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **options)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapped)


def moments():
    """Where to die, and how many parts are finished by then."""
    for part in range(PARTS):
        yield f"computing-{part}", (Batch, "_attributed", part + 1), part
    for number in range(1, 2 * (PARTS + 2) + 1):
        # The second of a part's calls comes when it has its name.
        yield f"sync-{number}", (parts, "sync", number), min(max(number - 2, 0) // 2, PARTS)
    yield "clearing", (parts.TableParts, "_clear", 1), PARTS


def attributed(out, kill=None):
    """Status of a process that attributes the texts."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if kill is not None:
                at_call(*kill)
            run = Batch(pair_of(), TEXTS, out, rows_per_part=ROWS, steps=7)
            run.run(progress=False)
            out.with_suffix(".json").write_text(str(run.earlier), encoding="utf-8")
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(child, 0)[1]


def main(folder):
    """Once without interruption, and once with one for each moment."""
    pair_of()
    told = {"whole": [attributed(folder / "whole.parquet")]}
    whole = (folder / "whole.parquet").read_bytes()
    for name, kill, finished in moments():
        out = folder / f"{name}.parquet"
        statuses = [attributed(out, kill), attributed(out)]
        left = sorted(path.name for path in folder.iterdir() if f"{name}." in path.name)
        same = out.read_bytes() == whole
        earlier = int(out.with_suffix(".json").read_text(encoding="utf-8"))
        told[name] = [*statuses, finished * ROWS, earlier, same, left]
    (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork has no pool of threads
    main(Path(sys.argv[1]))
