"""Run by tests: an ablation that kills itself after some of its runs, as `kill -9` does."""

import os
import signal
import sys
from pathlib import Path

import torch

from simcse_fast import ablate
from simcse_fast.ablations import run


def main(folder: Path, runs: int) -> None:
    """Die as the run after so many has been trained, before it is kept."""
    original, made = run.one_run, []

    def wrapped(*arguments):
        found = original(*arguments)
        made.append(1)
        if len(made) > runs:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    run.one_run = wrapped
    ablate(
        folder / "static",
        folder / "text.txt",
        development=folder / "pairs.tsv",
        output=folder / "killed",
        vary=["temperature"],
        seeds=2,
        steps=2,
        batch_size=16,
        device="cpu",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
