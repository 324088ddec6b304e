"""Whatever stops a corpus from being attributed: no finished part is lost, none is mixed up."""

import copy
import fcntl
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import types
import warnings
from inspect import signature
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra explain")

from attribution_files import (
    CORPUS,
    FULL,
    Stopped,
    attributed,
    full_disk,
    left_in,
    stop_in_part,
    stopped_after,
)
from attribution_models import TEXTS, pair_of, tokenizer_of, transformer_of

from simcse_fast.attribution import batch, integrated_gradients, parts
from simcse_fast.attribution.batch import attribute_file
from simcse_fast.attribution.fingerprints import described
from simcse_fast.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.parquet"


@pytest.fixture
def calls(monkeypatch):
    """The texts of each call of Integrated Gradients."""
    made = []

    def counted(model, sentences, **options):
        made.append(list(sentences))
        return integrated_gradients(model, sentences, **options)

    counted.__signature__ = signature(integrated_gradients)
    monkeypatch.setitem(batch.METHODS, "integrated_gradients", counted)
    return made


def wanted_over_another(out):
    """The table that is to come; in its place stands one of other settings."""
    wanted = attributed(out)
    attributed(out, steps=7)
    return wanted


@pytest.mark.parametrize("part", [0, 1, 3])
def test_an_error_loses_no_finished_part(out, monkeypatch, calls, part):
    with pytest.warns(UserWarning, match="2 of 12 sentences are longer"):
        wanted = attributed(out, CORPUS)
    out.unlink()
    calls.clear()
    stop_in_part(monkeypatch, part, Stopped())
    with pytest.raises(Stopped):
        attributed(out, CORPUS)
    assert left_in(out.parent) == (["out.parquet.parts"] if part else [])
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="2 of 12 sentences are longer"):  # earlier parts' as well
        assert attributed(out, CORPUS).equals(wanted)
    assert calls == [CORPUS[row : row + 3] for row in range(0, 3 * part, 3)]  # of the stopped run


def test_ctrl_c_says_how_far_it_is(out, monkeypatch):
    wanted = wanted_over_another(out)
    before = out.read_bytes()
    stop_in_part(monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(
        KeyboardInterrupt, match=r"^6 of 8 sentences are done; the same command goes on from there$"
    ):
        attributed(out)
    assert out.read_bytes() == before
    monkeypatch.undo()
    run = batch.Batch(pair_of(), TEXTS, out, rows_per_part=3)
    run.run(progress=False)
    assert (run.earlier, run.done, run.total) == (6, 8, 8)
    assert pq.read_table(out).equals(wanted)


def test_killed_at_any_moment_and_run_again_is_uninterrupted(tmp_path):
    script = Path(__file__).with_name("attribution_killed.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, tmp_path], check=True, env=environment)  # noqa: S603
    told = json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))
    assert told.pop("whole") == [0]
    assert len(told) == 17
    for moment, (killed, code, finished, kept, same, left) in told.items():
        assert (moment, killed, code) == (moment, signal.SIGKILL, 0)
        assert (moment, kept, same) == (moment, finished, True)
        assert left == [f"{moment}.json", f"{moment}.parquet"]


def truncated(path):
    path.write_bytes(path.read_bytes()[:-20])


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[100] ^= 1  # one bit of the data, the size as it was
    path.write_bytes(content)


def shortened(path):
    pq.write_table(pq.read_table(path)[:2], path)


@pytest.mark.parametrize("tear", [truncated, emptied, flipped, shortened, Path.unlink])
def test_torn_parts_are_made_again(out, monkeypatch, calls, tear):
    wanted = wanted_over_another(out)
    first, _ = stopped_after(out, 2, monkeypatch)
    tear(first)
    calls.clear()
    assert attributed(out).equals(wanted)
    assert calls == [TEXTS[0:3], TEXTS[6:8]]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param({"target": "norm"}, "target 'self', now it is 'norm'", id="target"),
        pytest.param({"steps": 7}, "steps 'auto', now it is 7", id="steps"),
        pytest.param({"unit": "token"}, "unit 'word', now it is 'token'", id="unit"),
        pytest.param({"baseline": np.ones(32)}, "baseline 'pad', now it is '(32,)", id="tensor"),
        pytest.param({"rows_per_part": 4}, "rows_per_part 3, now it is 4", id="parts"),
        pytest.param({"pooling": "cls"}, "pooling None, now it is 'cls'", id="pooling"),
        pytest.param({"method": "shapley"}, "now it is", id="method"),
        pytest.param({"corpus": TEXTS[:7]}, "made with other sentences", id="fewer"),
        pytest.param({"corpus": [*TEXTS[:7], "a cat"]}, "made with other sentences", id="one"),
    ],
)
def test_parts_of_other_settings_are_refused(out, monkeypatch, change, named):
    stopped_after(out, 1, monkeypatch)
    with pytest.raises(InputError, match=r"^out: .*out.parquet.parts holds parts made") as refused:
        attributed(out, **change)
    assert named in str(refused.value)
    assert "delete the folder or pass resume=False (--restart)" in str(refused.value)
    assert "\n" not in str(refused.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = attributed(out.with_name("other.parquet"), **change)
    assert attributed(out, resume=False, **change).equals(wanted)
    assert left_in(out.parent) == ["other.parquet", "out.parquet"]


def with_shorter_texts():
    """The same model and vocabulary, but texts are cut earlier."""
    tokenizer = copy.deepcopy(tokenizer_of("bert"))
    tokenizer.model_max_length = 20
    return transformer_of("bert"), tokenizer


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: pair_of("bert", torch.float32), id="dtype"),
        pytest.param(lambda: pair_of("mpnet"), id="weights"),
        pytest.param(with_shorter_texts, id="length"),
    ],
)
def test_parts_of_another_model_are_refused(out, monkeypatch, other):
    stopped_after(out, 1, monkeypatch)
    with pytest.raises(InputError, match="parts made with another model or tokenizer"):
        attribute_file(other(), TEXTS, out, rows_per_part=3, progress=False)


def test_what_decides_nothing_may_change(out, monkeypatch, calls):
    wanted = wanted_over_another(out)
    stopped_after(out, 2, monkeypatch)
    calls.clear()
    table = attributed(out, batch_tokens=500, progress=True)
    assert table.drop(["scores", "residual"]).equals(wanted.drop(["scores", "residual"]))
    assert calls == [TEXTS[6:8]]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"[1]", b"\xff"])
def test_parts_without_their_settings_are_refused(out, monkeypatch, content):
    first, *_ = stopped_after(out, 1, monkeypatch)
    settings = first.with_name("settings.json")
    settings.unlink() if content is None else settings.write_bytes(content)
    with pytest.raises(InputError, match=r"its settings.json is missing or cannot be read; name"):
        attributed(out)
    assert len(attributed(out, resume=False)) == 8


def test_nothing_that_somebody_else_put_there_is_removed(out, monkeypatch):
    first, *_ = stopped_after(out, 1, monkeypatch)
    first.with_name("notes.txt").write_text("mine", encoding="utf-8")
    attributed(out, resume=False)
    assert left_in(first.parent) == ["notes.txt"]


def test_two_processes_do_not_write_the_same_parts(out):
    folder = out.with_name("out.parquet.parts")
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(InputError, match=r"another process is writing .*out.parquet$"):
        attributed(out)
    os.close(descriptor)
    assert len(attributed(out)) == 8


@pytest.mark.parametrize(
    ("call", "kept"),
    [
        pytest.param(1, [], id="settings"),
        pytest.param(3, ["settings.json"], id="first-part"),
        pytest.param(5, ["part-000000", "settings.json"], id="second-part"),
    ],
)
def test_full_disk_is_one_sentence_and_finished_parts_stay(out, monkeypatch, call, kept):
    wanted = wanted_over_another(out)
    before, sync, synced = out.read_bytes(), parts.sync, []

    def fills_up(path):
        synced.append(path)
        if len(synced) == call:
            full_disk()
        sync(path)

    monkeypatch.setattr(parts, "sync", fills_up)
    with pytest.raises(OSError, match=FULL) as refused:
        attributed(out)
    assert "\n" not in str(refused.value)
    monkeypatch.undo()
    folder = out.with_name("out.parquet.parts")
    left = left_in(folder) if folder.exists() else []
    assert ["-".join(name.split("-")[:2]) for name in left] == kept
    assert out.read_bytes() == before
    assert attributed(out).equals(wanted)


@pytest.mark.parametrize(
    "place", [(pq.ParquetWriter, "write_table"), (parts, "sync"), (Path, "replace")]
)
def test_full_disk_when_parts_are_put_together(out, monkeypatch, calls, place):
    wanted = wanted_over_another(out)
    before = out.read_bytes()
    stopped_after(out, 2, monkeypatch)
    finish = parts.TableParts.merge

    def fills_up(self):
        monkeypatch.setattr(*place, full_disk)
        return finish(self)

    monkeypatch.setattr(parts.TableParts, "merge", fills_up)
    with pytest.raises(OSError, match=FULL):
        attributed(out)
    monkeypatch.undo()
    assert out.read_bytes() == before
    assert left_in(out.parent) == ["out.parquet", "out.parquet.parts"]
    calls.clear()
    assert attributed(out).equals(wanted)


def test_a_real_full_disk(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = shutil.which("mount") and subprocess.run(  # noqa: S603
        ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(small)],  # noqa: S607
        capture_output=True,
        check=False,
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        with pytest.raises(OSError, match=FULL):
            attributed(small / "out.parquet", [f"{text}!" for text in TEXTS * 4], rows_per_part=1)
        kept = left_in(small / "out.parquet.parts")
        assert 2 < len(kept) < 20
        assert not [name for name in kept if name.startswith(".")]
    finally:
        subprocess.run(["umount", str(small)], check=True)  # noqa: S603, S607


def test_a_table_that_is_there_is_left_alone(out, calls):
    wanted = attributed(out)
    written = out.stat().st_mtime_ns
    calls.clear()
    assert attributed(out).equals(wanted)
    assert (calls, out.stat().st_mtime_ns) == ([], written)
    assert attributed(out, resume=False).equals(wanted)  # made again where that is asked for
    assert len(calls) == 3
    other = attributed(out, steps=7)  # other settings, another table
    assert not other.equals(wanted)


def targets():
    def scaled(by):
        return lambda embeddings: by * embeddings[:, 0]

    def first(embeddings, dimension=0):
        return embeddings[:, dimension]

    class Head:
        def __init__(self, weight):
            self.weight = weight

        def __call__(self, embeddings):
            return embeddings[:, 0] * self.weight

    def head(weight):
        made = torch.nn.Linear(32, 1)
        for parameter in made.parameters():
            torch.nn.init.constant_(parameter, weight)
        return made

    return {
        "code": (lambda e: e[:, 0], lambda e: e[:, 1]),
        "what a function holds on to": (scaled(1.0), scaled(2.0)),
        "partial": (functools.partial(first, dimension=1), functools.partial(first, dimension=2)),
        "default": (first, types.FunctionType(first.__code__, globals(), "first", (1,))),
        "object": (Head(1.0), Head(2.0)),
        "module": (head(1.0), head(2.0)),
    }


@pytest.mark.parametrize("kind", targets())
def test_functions_are_known_by_what_they_do(kind):
    one, other = targets()[kind]
    same = targets()[kind][0]  # made anew, as in another process
    assert described(one) == described(same) != described(other)


def test_parts_of_an_edited_target_are_refused(out, monkeypatch):
    stopped_after(out, 1, monkeypatch, target=lambda e: e[:, 0])
    with pytest.raises(
        InputError, match=r"holds parts made with target '.*<lambda> .*', now it is"
    ):
        attributed(out, target=lambda e: e[:, 1])


def test_functions_that_hold_each_other_have_an_end():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    assert described(even) == described(even) != described(odd)
