"""Compilations of every Triton kernel for GPUs that are not here, run behind the other tests.

They are minutes of work for one processor, and most tests leave one idle.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = Path(__file__).with_name("compile_kernels.py")
CAPABILITIES = (80, 90, 100)
LAST = 19  # niceness: whatever else there is to do comes first


class Compilations:
    """One process for each capability."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        self.processes = {}
        for capability in CAPABILITIES:
            output, errors = (self._file(capability, kind) for kind in ("jsonl", "err"))
            with output.open("w") as out, errors.open("w") as err:
                self.processes[capability] = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-W", "ignore", SCRIPT, str(capability)],
                    env=environment,
                    stdout=out,
                    stderr=err,
                )
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self.processes[capability].pid, LAST)

    def kernels(self) -> dict[int, list[dict[str, object]]]:
        """What each capability's kernels need, when all are done."""
        found = {}
        for capability, process in self.processes.items():
            process.wait()
            assert process.returncode == 0, self._file(capability, "err").read_text()[-3000:]
            lines = self._file(capability, "jsonl").read_text().splitlines()
            found[capability] = [json.loads(line) for line in lines]
        return found

    def stop(self) -> None:
        """End what still runs."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.folder.cleanup()

    def _file(self, capability: int, kind: str) -> Path:
        return Path(self.folder.name) / f"{capability}.{kind}"


def possible() -> bool:
    """Whether Triton is there."""
    return importlib.util.find_spec("triton") is not None
