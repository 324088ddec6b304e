"""Training under torchrun: two processes come to what one comes to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra train")

from train_models import save_bert, save_static
from train_ranks import RUNS, main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, and what the two processes wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    save_bert(folder / "bert", dropout=0.0)  # dropout is another on every process
    save_static(folder / "static")
    script = Path(__file__).with_name("train_ranks.py")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(  # noqa: S603
        [sys.executable, *launch, script, folder],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    return folder


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """What one process comes to."""
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("alone")
    for name in RUNS:
        (base / name).symlink_to(folder / name)
    told = main(base)
    torch.set_num_threads(2)
    return told


@pytest.mark.parametrize("name", list(RUNS))
def test_two_processes_come_to_the_losses_of_one(folder, alone, name):
    first, second = (
        json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8"))[name]
        for rank in range(2)
    )
    assert first == second
    assert first["losses"] == pytest.approx(alone[name]["losses"], rel=1e-4)
    assert first["weights"] == first["resumed"]
    for figure in ("duplicates", "real", "sentences"):
        assert first[figure] == alone[name][figure]
    assert first["padded"] >= first["real"]
