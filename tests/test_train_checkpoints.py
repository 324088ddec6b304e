"""Interruptions: whatever kills a run, resuming it ends where an uninterrupted one does."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra train")

from sentence_transformers import SentenceTransformer
from train_models import save_bert, save_static, scored_pairs, sentences, weights_hash, write_lines

from simcse_fast import cli, train
from simcse_fast.errors import InputError
from simcse_fast.training import checkpoints, sealed, trainer

SAME = ("weights", "last", "steps", "losses", "evaluations", "tokens")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    return save_static(tmp_path_factory.mktemp("model") / "static")


def runner(static, folder):
    """Trains the static model; options can be changed."""
    text = write_lines(folder / "text.txt", sentences(100))

    def trained(name="out", **options):
        given = {"unsupervised": text, "batch_size": 20, "steps": 8, "save_steps": 2}
        given |= {"device": "cpu", "output": folder / name}
        return train(str(static), **(given | options))

    return trained


@pytest.fixture
def run(static, tmp_path):
    """Trains in a folder of the test's own."""
    return runner(static, tmp_path)


@pytest.fixture(scope="module")
def finished(static, tmp_path_factory):
    """Trains in a folder where a run without interruption has ended; for tests that only read."""
    run = runner(static, tmp_path_factory.mktemp("finished"))
    return run, weights_hash(run().model)


@pytest.fixture
def whole(finished):
    """The weights that a run without interruption ends with."""
    return finished[1]


def stop_at(monkeypatch, step, what):
    """Call `what` as this step's loss is recorded."""
    record = trainer.SimCSETrainer.record

    def recorded(self, loss, inputs):
        record(self, loss, inputs)
        if len(self.run.history.losses) == step:
            what()

    monkeypatch.setattr(trainer.SimCSETrainer, "record", recorded)


class Stopped(Exception):  # noqa: N818 - it stands for a kill
    pass


def stopped():
    raise Stopped


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of `train_killed.py` after all its runs."""
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).with_name("train_killed.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, folder], check=True, env=environment)  # noqa: S603
    return folder


def test_killed_at_any_moment_and_resumed_is_uninterrupted(killed):
    statuses = json.loads((killed / "statuses.json").read_text(encoding="utf-8"))
    assert statuses.pop("whole") == 0
    assert len(statuses) == 12
    whole = json.loads((killed / "whole.json").read_text(encoding="utf-8"))
    for moment, (by, code) in statuses.items():
        assert (moment, by, code) == (moment, signal.SIGKILL, 0)
        resumed = json.loads((killed / f"{moment}.json").read_text(encoding="utf-8"))
        assert {name: resumed[name] for name in SAME} == {name: whole[name] for name in SAME}
        left = {path.name for path in (killed / moment).iterdir()}
        assert not [name for name in left if name.startswith(".unfinished")], (moment, left)


def test_torn_checkpoints_are_named_and_skipped(run, whole, tmp_path):
    run(keep_checkpoints=4)
    out = tmp_path / "out"
    (out / "checkpoint-8" / sealed.MARKER).unlink()
    weights = next((out / "checkpoint-6").rglob("model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit, the size as it was
    weights.write_bytes(content)
    (out / "checkpoint-4" / sealed.MARKER).write_text("{", encoding="utf-8")
    result = run(keep_checkpoints=4, resume=True)
    told = [note.partition("/out/")[2] for note in result.notes[:3]]
    assert told[0] == "checkpoint-8 is skipped: complete.json is missing"
    assert told[1].startswith("checkpoint-6 is skipped: ")
    assert told[1].endswith("model.safetensors is missing or not as it was written")
    assert told[2] == "checkpoint-4 is skipped: complete.json cannot be read"
    assert result.notes[3] == f"resumed from {out / 'checkpoint-2'}"
    assert weights_hash(result.model) == whole


def test_skipped_checkpoints_do_not_push_out_new_ones(run, whole, tmp_path, monkeypatch):
    run(keep_checkpoints=4)
    out = tmp_path / "out"
    for step in (6, 8):
        (out / f"checkpoint-{step}" / sealed.MARKER).unlink()
    stop_at(monkeypatch, 7, stopped)
    with pytest.raises(Stopped):
        run(resume=True, keep_checkpoints=1)
    monkeypatch.undo()
    result = run(resume=True)
    assert result.notes[0] == f"resumed from {out / 'checkpoint-6'}"
    assert weights_hash(result.model) == whole


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param({"temperature": 0.1}, "temperature 0.05, now it is 0.1", id="temperature"),
        pytest.param({"batch_size": 10}, "batch_size 20, now it is 10", id="batch"),
        pytest.param({"steps": 9}, "steps 8, now it is 9", id="steps"),
        pytest.param({"seed": 1}, "seed 0, now it is 1", id="seed"),
        pytest.param({"unsupervised": sentences(90)}, "with other texts or another", id="data"),
    ],
)
def test_checkpoint_of_other_options_is_refused(finished, change, named):
    run, _ = finished
    with pytest.raises(InputError, match=r"resume: .*checkpoint-8 was trained with") as refused:
        run(resume=True, **change)
    assert named in str(refused.value)


def test_what_decides_nothing_may_change(run, whole, monkeypatch):
    stop_at(monkeypatch, 5, stopped)
    with pytest.raises(Stopped):
        run()
    monkeypatch.undo()
    result = run(resume=True, save_steps=3, keep_checkpoints=5, memory_share=0.1)
    assert weights_hash(result.model) == whole


def test_resume_without_a_checkpoint_says_so_and_starts(run, tmp_path):
    result = run(resume=True)
    assert (
        result.notes[0] == f"no whole checkpoint in {tmp_path / 'out'}: starting from the beginning"
    )
    assert result.steps == 8


def test_earlier_run_is_not_overwritten(finished):
    run, before = finished
    with pytest.raises(
        InputError, match=r"output: .*/out holds an earlier run; resume it, or name"
    ):
        run(seed=1)
    assert weights_hash(run(resume=True).model) == before


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def torch_on_a_full_disk(*arguments, **options):
    raise RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0")


@pytest.mark.parametrize(
    ("place", "failure"),
    [
        pytest.param((trainer.SimCSETrainer, "_save"), full_disk, id="model"),
        pytest.param((torch, "save"), torch_on_a_full_disk, id="optimizer"),
        pytest.param((sealed, "sync"), full_disk, id="sync"),
    ],
)
def test_full_disk_is_one_sentence_and_the_last_checkpoint_resumes(
    run, whole, tmp_path, monkeypatch, place, failure
):
    stop_at(monkeypatch, 4, lambda: monkeypatch.setattr(*place, failure))
    with pytest.raises(OSError, match=r"checkpoint-4: cannot be written") as refused:
        run()
    assert "what was there before is whole" in str(refused.value)
    monkeypatch.undo()
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["cache", "checkpoint-2"]
    result = run(resume=True)
    assert result.notes[0].endswith("checkpoint-2")
    assert weights_hash(result.model) == whole


def test_a_real_full_disk(static, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = shutil.which("mount") and subprocess.run(  # noqa: S603
        ["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", str(small)],  # noqa: S607
        capture_output=True,
        check=False,
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        with pytest.raises(OSError, match=r"checkpoint-\d: cannot be written .*what was there"):
            train(
                str(static),
                unsupervised=sentences(60),
                output=small,
                cache=tmp_path / "cache",
                batch_size=20,
                steps=9,
                save_steps=1,
                keep_checkpoints=9,
                device="cpu",
            )
        assert not list(small.glob(".unfinished*"))
    finally:
        subprocess.run(["umount", str(small)], check=True)  # noqa: S603, S607


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_says_where(run, whole, tmp_path, monkeypatch, signal_number):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop_at(monkeypatch, 5, lambda: signal.raise_signal(signal_number))
    with pytest.raises(KeyboardInterrupt, match=r"checkpoint-5 is whole, resume goes on from it"):
        run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    monkeypatch.undo()
    result = run(resume=True)
    assert result.notes[0] == f"resumed from {tmp_path / 'out' / 'checkpoint-5'}"
    assert weights_hash(result.model) == whole


def test_model_of_a_stopped_run_can_be_trained_again(tmp_path, monkeypatch):
    model = SentenceTransformer(str(save_bert(tmp_path / "bert")), device="cpu")
    options = {"unsupervised": sentences(60), "batch_size": 20, "pooling": "cls", "device": "cpu"}
    stop_at(monkeypatch, 2, stopped)
    with pytest.raises(Stopped):
        train(model, output=tmp_path / "stopped", save_steps=1, **options)
    with pytest.raises(InputError, match="trained with a model with other weights; load it anew"):
        train(model, output=tmp_path / "stopped", resume=True, save_steps=1, **options)
    monkeypatch.undo()
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling"]
    assert train(model, output=tmp_path / "again", **options).steps == 3


@pytest.fixture
def _interruptible():
    """Shells start what runs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_second_signal_stops_at_once(run, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    stop_at(monkeypatch, 5, twice)
    with pytest.raises(KeyboardInterrupt, match=r"at once; resume goes on from .*checkpoint-4"):
        run()


def test_interrupted_command_exits_130(static, tmp_path, monkeypatch, capsys):
    text = write_lines(tmp_path / "text.txt", sentences(100))
    stop_at(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGINT))
    arguments = ["train", "--unsupervised", str(text), "--model", str(static), "--device", "cpu"]
    arguments += ["--output", str(tmp_path / "out"), "--batch-size", "20"]
    assert cli.main(arguments) == 130
    error = capsys.readouterr().err
    assert error.startswith("simcse-fast: train was interrupted; training was stopped; ")
    assert "checkpoint-2 is whole" in error
    monkeypatch.undo()
    assert cli.main([*arguments, "--resume"]) == 0
    assert "resumed from" in capsys.readouterr().out


def test_checkpoints_beyond_those_to_keep_are_removed(run, tmp_path):
    scored = write_lines(tmp_path / "scored.tsv", scored_pairs(40))
    result = run(keep_checkpoints=1, evaluate=scored, evaluation_steps=2, learning_rate=1e-12)
    kept = {path.name for path in (tmp_path / "out").glob("checkpoint-*")}
    assert result.history.best()[0] == 2  # the earliest of equals
    assert kept == {"checkpoint-2", "checkpoint-8"}


def test_without_its_best_a_checkpoint_is_not_whole(run, tmp_path):
    scored = write_lines(tmp_path / "scored.tsv", scored_pairs(40))
    options = {"evaluate": scored, "evaluation_steps": 2, "learning_rate": 1e-12}
    run(**options)
    shutil.rmtree(tmp_path / "out" / "checkpoint-2")
    kept = checkpoints.Checkpoints(tmp_path / "out", {}, 1)
    assert kept.newest() is None
    assert kept.told[0].endswith("checkpoint-2, the best until then, is not whole")


def test_resumed_transformer_keeps_its_head(tmp_path, monkeypatch):
    model = save_bert(tmp_path / "bert")
    options = {"unsupervised": sentences(60), "batch_size": 20, "device": "cpu", "epochs": 2}
    whole = train(str(model), output=tmp_path / "whole", **options)
    stop_at(monkeypatch, 4, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(str(model), output=tmp_path / "out", **options)
    monkeypatch.undo()
    assert (tmp_path / "out" / "checkpoint-4" / trainer.HEAD).exists()
    resumed = train(str(model), output=tmp_path / "out", resume=True, **options)
    assert weights_hash(resumed.model) == weights_hash(whole.model)
    assert resumed.history.losses == whole.history.losses
