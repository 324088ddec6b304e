"""Texts and folders of the tests that keep ids on disk."""

import subprocess
import sys
from pathlib import Path

import numpy as np

KILLED = Path(__file__).with_name("information_killed.py")


def zipf_lines(sentences, seed=0):
    rng = np.random.default_rng(seed)
    return [
        " ".join(f"w{word}" for word in rng.zipf(1.3, rng.integers(1, 20)) % 500)
        for _ in range(sentences)
    ]


def zipf_file(folder):
    path = folder / "text.txt"
    path.write_text("\n".join(zipf_lines(300)))
    return path


def folders(path):
    return sorted(found for found in path.parent.iterdir() if found.is_dir())


def run_killed(path, point, how):
    command = [sys.executable, str(KILLED), str(path), "40", point, how]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
