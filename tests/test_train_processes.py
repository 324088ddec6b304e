"""Training under torchrun: two processes come to what one comes to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra train")

from safetensors.torch import load_file
from train_models import save_bert, save_static
from train_ranks import RUNS, main

from simcse_fast.training.trainer import HEAD


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, and what the two processes wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    save_bert(folder / "bert", dropout=0.0)  # dropout is another on every process
    save_bert(folder / "masked", dropout=0.0)
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
def base(tmp_path_factory):
    """The folder of one process."""
    return tmp_path_factory.mktemp("alone")


@pytest.fixture(scope="module")
def alone(folder, base):
    """What one process comes to."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in RUNS:
        (base / name).symlink_to(folder / name)
    told = main(base)
    torch.set_num_threads(threads)
    return told


@pytest.mark.parametrize("name", list(RUNS))
def test_two_processes_come_to_the_losses_of_one(folder, alone, name):
    first, second = (
        json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8"))[name]
        for rank in range(2)
    )
    assert first == second
    for losses in ("losses", "mlm_losses"):
        assert first[losses] == pytest.approx(alone[name][losses], rel=1e-4)
    assert len(first["mlm_losses"]) == (5 if name == "masked" else 0)
    assert first["weights"] == first["resumed"]
    for figure in ("duplicates", "real", "sentences"):
        assert first[figure] == alone[name][figure]
    assert first["padded"] >= first["real"]


def test_what_only_training_sees_is_the_same_too(folder, base, alone):
    assert "masked" in alone
    stored = [load_file(one / "out-masked" / "checkpoint-5" / HEAD) for one in (folder, base)]
    assert {name.partition(".")[0] for name in stored[0]} == {"MaskedHead", "TrainingHead"}
    for name, value in stored[0].items():
        # A gradient of one process alone would be a tenth of these five steps off, 5e-4.
        torch.testing.assert_close(value, stored[1][name], rtol=0, atol=5e-5)
