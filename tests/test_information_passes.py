"""Counting in passes over what is on disk: equal to one pass, cut off and taken up again."""

import errno
import json
import signal
import subprocess
import sys
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from information_files import folders, run_killed, zipf_file, zipf_lines
from test_information import assert_same, gain

from simcse_fast.information import InformationTable, counting, ids
from simcse_fast.information import gain as gains
from simcse_fast.kernels.cooccurrence import engine


@pytest.fixture
def text(tmp_path):
    return zipf_file(tmp_path)


@pytest.fixture
def passes(monkeypatch):
    """Passes over 40 rows each, of chunks of some 500 tokens; the ranges that were counted."""
    ranges = []
    original = engine.copy_rows

    def copy_rows(run, corpus, chunks, words, load):
        ranges.append(words)
        return original(run, corpus, chunks, words, load)

    monkeypatch.setattr(ids, "CHUNK", 500)
    monkeypatch.setattr(engine, "DENSE", 16)
    monkeypatch.setattr(engine, "copy_rows", copy_rows)
    monkeypatch.setattr(counting, "in_memory", lambda numbered, *_: numbered.disk is None)
    monkeypatch.setattr(
        counting, "end_of_pass", lambda corpus, *_: min(_[-1] + 40, len(corpus.counts))
    )
    return ranges


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"context": 2},
        {"presence": True},
        {"probability": "marginal"},
        {"probability": "marginal", "context": 4},
        {"correction": "null"},
        {"correction": "shuffle", "rounds": 2},
    ],
    ids=str,
)
def test_passes_give_the_table_of_one(text, passes, options, threads):
    in_passes = gain(text, memory_limit="4 GB", threads=threads, **options)
    assert len(passes) > 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "in_memory", lambda *_: True)
        whole = gain(text, threads=threads, cache=False, **options)
    assert_same(in_passes, whole)
    if "correction" in options:
        np.testing.assert_allclose(in_passes.column("null"), whole.column("null"), atol=1e-12)


@pytest.mark.usefixtures("passes")
def test_lists_and_streams_are_kept_on_disk_for_the_time_being(text, monkeypatch, tmp_path):
    monkeypatch.setattr(gains.tempfile, "tempdir", str(tmp_path))
    lines = text.read_text().split("\n")
    assert_same(gain(iter(lines), memory_limit="4 GB"), gain(text, cache=False))
    assert folders(text) == []


def test_the_pairs_of_passes_are_those_of_one(text, passes, tmp_path):
    whole = gain(text, cache=False, return_counts=True)[1]
    in_passes = gain(text, memory_limit="4 GB", return_counts=True)[1]
    assert len(passes) > 3
    assert abs(whole - in_passes).max() == 0
    path = tmp_path / "pairs.parquet"
    assert gain(text, memory_limit="4 GB", return_counts=path)[1] == path
    assert pq.read_table(path)["count"].to_numpy().sum() * 2 == whole.sum() + whole.trace()


def test_the_limit_decides_the_passes(monkeypatch):
    """Ranges grow while what they copy fits; a limit below one row's need is told."""
    corpus = engine.Corpus(np.array([100, 50, 20, 10]), 30)
    monkeypatch.setattr(engine, "DENSE", 1)
    monkeypatch.setattr(counting, "resident_memory", lambda: 1000)
    load = np.array([[50, 200], [20, 100], [10, 50]])
    nothing = counting.How(0, False, 1, 0, lambda _: None)
    fixed = -counting.room_for_rows(corpus, nothing, 180)
    assert fixed > 1000 + 180 * counting.OF_CHUNK

    def end(room):
        limited = counting.How(0, False, 1, fixed + room, lambda _: None)
        return counting.end_of_pass(corpus, limited, 180, load, 1)

    one, two, all_ = 50 * 8 + 180 * 4, 70 * 8 + 180 * 4, 80 * 8 + 180 * 4
    assert [end(one), end(two - 1), end(two), end(all_)] == [2, 2, 3, 4]
    with pytest.raises(ValueError, match=f"memory_limit: .* expected at least {fixed + one:,}"):
        end(one - 1)


def test_texts_longer_than_memory_for_squares_of_them(tmp_path, passes):
    """A few long documents: what a pass may copy is bounded by the tokens, not by the pairs."""
    words = " ".join(f"w{i % 997}" for i in range(60_000))
    path = tmp_path / "long.txt"
    path.write_text("\n".join([words] * 3))
    table = gain(path, memory_limit="4 GB", context="document")
    assert len(passes) > 3
    assert_same(table, gain(path, cache=False))


def test_ids_that_are_in_memory_have_no_limit():
    with pytest.raises(ValueError, match="memory_limit: token ids are in memory already"):
        gain((np.array([0, 1]), np.array([0, 2])), memory_limit="4 GB")


def test_a_limit_that_is_too_low_is_told(text):
    with pytest.raises(ValueError, match=r"memory_limit: the process takes .* got 1,000,000"):
        gain(text, memory_limit="1 MB")


def test_a_full_disk_loses_no_finished_pass(text, passes, monkeypatch):
    expected = gain(text, cache=False, threads=2)
    written = counting.written_whole
    calls = []

    def full(path):
        calls.append(path)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(path)

    monkeypatch.setattr(counting, "written_whole", full)
    with pytest.raises(ValueError, match=r"No space left.*the passes before it are kept"):
        gain(text, memory_limit="4 GB", threads=2)
    before, _ = len(passes), passes.clear()
    assert_same(gain(text, memory_limit="4 GB", threads=2), expected)
    assert len(passes) == len(range(16, expected.vocabulary_size, 40)) - (before - 1)


@pytest.mark.parametrize("damage", ["shorter", "empty", "other"])
def test_torn_passes_are_counted_again(text, passes, damage):
    expected = gain(text, memory_limit="4 GB", threads=2)
    path, every = folders(text)[0] / ids.PASSES, len(passes)
    content = path.read_bytes()
    path.write_bytes({"shorter": content[:-100], "empty": b"", "other": b"x" * 100}[damage])
    assert_same(gain(text, memory_limit="4 GB", threads=2), expected)
    assert len(passes) == 2 * every


@pytest.mark.parametrize(
    ("point", "how"),
    [
        *[(point, "kill") for point in ("splitting", "finishing", "counting")],
        *[(point, "kill") for point in ("after-counting", "first-pass", "after-two-passes")],
        *[(point, "interrupt") for point in ("splitting", "counting", "after-two-passes")],
    ],
)
def test_a_second_run_finishes_what_was_cut_off(text, passes, point, how):
    text.write_text("\n".join(zipf_lines(2000)))
    stopped = run_killed(text, point, how)
    assert stopped.returncode not in {0, 2}, stopped.stderr
    kept = "what was done is kept in" in stopped.stderr
    assert kept == (how == "interrupt" and point != "splitting")
    finished = gain(text, memory_limit="4 GB", threads=2)
    assert_same(finished, gain(text, cache=False))
    assert len(folders(text)) == 1
    every = len(range(16, finished.vocabulary_size, 40))
    assert len(passes) == every - 2 * (point == "after-two-passes")


def test_ctrl_c_stops_all_workers_at_once(tmp_path):
    """A real signal, while two workers split a stream that never ends."""
    code = """
import itertools, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from simcse_fast import information_gain
information_gain(["a b c"], min_count=1)
def stream():
    for number in itertools.count():
        if number == 100_000:
            print("running", flush=True)
        yield "some words that follow each other"
information_gain(stream(), threads=2, memory_limit="8 GB", cache=sys.argv[1])
"""
    run = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.readline() == "running\n"
    assert list(tmp_path.iterdir()) != []  # the ids of a stream are kept there for the time being
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=60)
    assert "KeyboardInterrupt" in told
    assert list(tmp_path.iterdir()) == []


def test_two_processes_may_keep_the_same_ids(text):
    """Whoever finishes last wins; both have their table."""
    expected, found = gain(text, cache=False), []
    threads = [
        threading.Thread(target=lambda: found.append(run_killed(text, "none", "")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run in found:
        assert run.returncode == 0, run.stderr
    table = InformationTable(pq.read_table(f"{text}.table.parquet"), 0, 0, 0)
    assert_same(table, expected)
    meta = json.loads((folders(text)[0] / ids.META).read_text())
    assert meta["tokens"] == expected.tokens


def test_handles_outlive_the_folder(text, passes, monkeypatch):
    """Another process renumbers an edited text while passes run over the old one."""
    expected = gain(text, cache=False)
    original, state = counting.save_state, []

    def renumber_and_save(place, key, now):
        if not state:
            state.append(now)
            lines = text.read_text().split("\n")
            text.write_text("\n".join(lines[::-1]).replace("w1 ", "w7 "))
            run = run_killed(text, "none", "")
            assert run.returncode == 0, run.stderr
        return original(place, key, now)

    monkeypatch.setattr(counting, "save_state", renumber_and_save)
    assert_same(gain(text, memory_limit="4 GB", threads=2), expected)
    monkeypatch.setattr(counting, "save_state", original)
    # Passes of the old text lie beside the new ids now, and are not taken for theirs.
    assert_same(gain(text, memory_limit="4 GB", threads=2), gain(text, cache=False))
