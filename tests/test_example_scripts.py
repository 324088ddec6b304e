"""The scripts in examples/, as a user starts them: on their own data, on a user's, on bad input."""

import argparse
import importlib
import os
import re
import subprocess
import sys

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

# Loopback only, on a port that is free.
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1")
# Of torch's own threads: those of a gloo group outlive it where DistributedDataParallel has held
# it, and may abort a process that ends (pytorch/pytorch#179291); once in 40 runs when it is busy.
ABORTED_AT_EXIT = "terminate called without an active exception"
NUMBER = r"(\d+\.\d+(?:e[-+]\d+)?)"


def start(repository, name, *options, launcher=()):
    """What the script came to; one thread each, as two spin where the processors are busy."""
    return subprocess.run(  # noqa: S603
        [sys.executable, *launcher, str(repository / "examples" / name), *map(str, options)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def numbers(done, pattern):
    """Where the pattern says NUMBER, in what a script printed."""
    assert done.returncode == 0, done.stderr
    found = re.search(pattern.replace("NUMBER", NUMBER), done.stdout)
    assert found, done.stdout
    return [float(number) for number in found.groups()]


def assert_learned(done, least):
    before, after = numbers(done, "held-out pairs: NUMBER before, NUMBER after")
    assert before < 0.2
    assert after > least


@pytest.mark.parametrize("name", ["sentence_transformers_training.py", "gradient_cache.py"])
def test_encoders_learn(repository, name):
    assert_learned(start(repository, name), least=0.9)


def test_training_on_the_users_pairs(repository, tmp_path):
    animals = "ant bee cat dog eel fox gnu hen".split()  # noqa: SIM905
    rows = [f"alfa {a} {b}\t{a[0]} {b[0]}" for a in animals for b in animals]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    options = ("--pairs", tmp_path / "pairs.tsv", "--batch-size", 16, "--epochs", 1)
    done = start(
        repository, "sentence_transformers_training.py", *options, "--output", tmp_path / "model"
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy on 6 held-out pairs" in done.stdout
    assert (tmp_path / "model" / "modules.json").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a\tb\nc\n", "line 2: expected 2 tab-separated texts, found 1.", id="no-tab"),
        pytest.param("a\tb\n", "expected 2 pairs or more, found 1.", id="one-pair"),
        pytest.param(None, "No such file or directory", id="no-file"),
    ],
)
def test_pairs_that_cannot_be_read(repository, tmp_path, monkeypatch, text, message):
    monkeypatch.syspath_prepend(repository / "examples")
    path = tmp_path / "pairs.tsv"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(message)):
        importlib.import_module("toy").read_pairs(str(path))


def test_a_script_names_the_file_that_it_cannot_read(repository, tmp_path):
    done = start(repository, "gradient_cache.py", "--pairs", tmp_path / "pairs.tsv")
    assert done.returncode == 2
    assert f"error: argument --pairs: {tmp_path / 'pairs.tsv'}: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("world", [pytest.param(0, id="alone"), 2])
def test_processes_have_the_gradient_of_one(repository, world):
    launcher = (*TORCHRUN, "--nproc-per-node", str(world)) if world else ()
    done = start(repository, "torchrun_info_nce.py", launcher=launcher)
    if done.returncode and ABORTED_AT_EXIT in done.stderr:
        done = start(repository, "torchrun_info_nce.py", launcher=launcher)
    ours, whole = numbers(done, "pairs: NUMBER of . processes, NUMBER of one")
    (difference,) = numbers(done, "gradients differ by NUMBER at most")
    assert ours == pytest.approx(whole, abs=2e-6)  # six decimals are printed
    assert ours > 1e-3  # far from zero, as the gradient is then
    assert difference < 1e-12


def test_clip_loss_is_the_formula(repository):
    done = start(repository, "open_clip_loss.py")
    assert_learned(done, least=0.8)
    assert numbers(done, "NUMBER apart")[0] < 1e-12


def test_clip_loss_refuses_unequal_features(repository, tmp_path):
    path = tmp_path / "features.pt"
    torch.save({"image": torch.ones(3, 4), "text": torch.ones(2, 4)}, path)
    done = start(repository, "open_clip_loss.py", "--features", path)
    assert done.returncode == 2
    assert done.stderr.endswith("features.pt: 3 images, 2 texts.\n")


def test_word_weights(repository, tmp_path):
    (tmp_path / "texts.txt").write_text("alfa bravo\nalfa bravo charlie\n", encoding="utf-8")
    done = start(
        repository,
        "word_weights.py",
        *("--sentences", tmp_path / "texts.txt", "--output", tmp_path / "pages"),
    )
    assert done.returncode == 0, done.stderr
    assert "integrated gradients of self, 5 words in 2 sentences" in done.stdout
    assert "Shapley values of self, 5 words in 2 sentences" in done.stdout
    assert "TokenSimilarity: 2 x 3 tokens" in done.stdout
    assert "charlie" in (tmp_path / "pages" / "weights.html").read_text(encoding="utf-8")
    assert (tmp_path / "pages" / "similarity.html").exists()
    bad = start(repository, "word_weights.py", "--sentences", tmp_path / "gone.txt")
    assert bad.returncode == 2
    assert "gone.txt" in bad.stderr
