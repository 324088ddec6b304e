"""Ids on disk: kept, recognised, rebuilt; counting in passes, cut off and taken up again."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_information import assert_same, gain
from tokenizers import Tokenizer, models, pre_tokenizers

from simcse_fast.information import InformationTable, cache, counting, ids
from simcse_fast.information import gain as gains
from simcse_fast.information.sentences import Repairs
from simcse_fast.kernels.cooccurrence import engine

KILLED = Path(__file__).with_name("information_killed.py")


def zipf_lines(sentences, seed=0):
    rng = np.random.default_rng(seed)
    return [
        " ".join(f"w{word}" for word in rng.zipf(1.3, rng.integers(1, 20)) % 500)
        for _ in range(sentences)
    ]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(zipf_lines(300)))
    return path


@pytest.fixture
def readings(monkeypatch):
    """How often a text was split."""
    calls = []
    original = gains.number_text
    monkeypatch.setattr(
        gains, "number_text", lambda *arguments: calls.append(1) or original(*arguments)
    )
    return calls


def folders(path):
    return sorted(found for found in path.parent.iterdir() if found.is_dir())


# Kept ids


def test_ids_are_kept_and_used_again(text, readings):
    first = gain(text, cache=True)
    assert_same(gain(text, cache=True), first)
    assert_same(gain(text, cache=True, context=3), gain(text, cache=False, context=3))
    assert len(readings) == 2  # the first, and the one without a cache
    assert len(folders(text)) == 1


def test_ids_are_kept_where_asked_for(text, tmp_path):
    first = gain(text, cache=tmp_path / "there")
    assert_same(gain(text, cache=str(tmp_path / "there")), first)
    assert len(list((tmp_path / "there").iterdir())) == 1


def test_small_files_are_not_kept_unless_asked(text, monkeypatch):
    gain(text)
    assert folders(text) == []
    monkeypatch.setattr(cache, "LARGE", 1)
    gain(text)
    assert len(folders(text)) == 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text.write_text(text.read_text() + "\nnew words"), id="longer"),
        pytest.param(lambda text: os.utime(text, ns=(1, 1)), id="other-time"),
    ],
)
def test_a_changed_text_is_read_again(text, readings, change):
    gain(text, cache=True)
    change(text)
    assert_same(gain(text, cache=True), gain(text, cache=False))
    assert len(readings) == 3
    assert len(folders(text)) == 1


def word_level(words):
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="u"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_other_options_have_other_ids(text, readings):
    few, more = word_level(["u", "w1"]), word_level(["u", "w1", "w2"])
    for _ in range(2):
        for options in (
            {},
            {"presence": True},
            {"split_sentences": True},
            {"tokenizer": few},
            {"tokenizer": more},
        ):
            assert_same(gain(text, cache=True, **options), gain(text, cache=False, **options))
    assert len(readings) == 5 + 10


@pytest.mark.parametrize("name", [ids.IDS, ids.SIZES, ids.WORDS, ids.META])
@pytest.mark.parametrize("damage", ["shorter", "flipped", "empty", "gone"])
def test_a_torn_cache_is_rebuilt(text, readings, name, damage):
    expected = gain(text, cache=True)
    path = folders(text)[0] / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        end = {"shorter": len(content) - 2, "flipped": len(content), "empty": 0}[damage]
        path.write_bytes(content[:end])
    assert_same(gain(text, cache=True), expected)
    assert len(readings) == 2
    assert_same(gain(text, cache=True), expected)
    assert len(readings) == 2


@pytest.mark.parametrize("name", [ids.IDS, ids.SIZES, ids.WORDS])
def test_every_flipped_bit_is_seen(text, name):
    gain(text, cache=True)
    folder = folders(text)[0]
    meta = json.loads((folder / ids.META).read_text())
    path, rng = folder / name, np.random.default_rng(0)
    whole = path.read_bytes()
    for bit in rng.integers(0, 8 * len(whole), 100):
        torn = bytearray(whole)
        torn[bit // 8] ^= 1 << bit % 8
        path.write_bytes(torn)
        assert ids.load(folder, meta["fingerprint"], Repairs()) is None
    path.write_bytes(whole)
    assert ids.load(folder, meta["fingerprint"], Repairs()) is not None


def test_what_a_killed_process_left_is_removed(text):
    gain(text, cache=True)
    folder = folders(text)[0]
    dead, alive, starting = (
        folder.with_name(f"{folder.name}{ids.UNFINISHED}{name}") for name in ("a", "b", "c")
    )
    for path in (dead, alive, starting):
        path.mkdir()
    (dead / ids.LOCK).touch()
    held = ids.lock(alive / ids.LOCK)
    (folder / ids.META).unlink()
    gain(text, cache=True)
    assert [path.exists() for path in (dead, alive, starting)] == [False, True, True]
    held.close()
    os.utime(starting, (1, 1))
    (folder / ids.META).unlink()
    gain(text, cache=True)
    assert folders(text) == [folder]


def test_two_threads_may_keep_the_same_ids(text):
    expected, found = gain(text, cache=False), []
    threads = [
        threading.Thread(target=lambda: found.append(gain(text, cache=True))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for table in found:
        assert_same(table, expected)
    assert len(folders(text)) == 1


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


def test_a_folder_that_takes_no_ids(text, tmp_path, monkeypatch):
    """Asked for, it is an error; else a warning, and the count goes on."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(
        ValueError, match=r"cache: .* cannot be written: (Not a directory|File exists)"
    ):
        gain(text, cache=blocked)
    monkeypatch.setattr(cache, "LARGE", 1)
    monkeypatch.setattr(ids.FileSink, "append", full_disk)
    with pytest.warns(UserWarning, match=r"No space left on device.*the ids are not kept"):
        assert_same(gain(text), gain(text, cache=False))
    assert folders(text) == []


def full_disk(self, *_):
    with ids.told(self.folder):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_sentence(text, monkeypatch):
    monkeypatch.setattr(ids.FileSink, "append", full_disk)
    with pytest.raises(ValueError, match=r"No space left on device; free some, or name another"):
        gain(text, cache=True)
    assert folders(text) == []


def test_ids_of_few_words_take_two_bytes(text):
    table = gain(text, cache=True)
    folder = folders(text)[0]
    assert (folder / ids.IDS).stat().st_size == 2 * table.tokens
    assert ids.id_type(1 << 16) is np.uint16
    assert ids.id_type((1 << 16) + 1) is np.uint32


# Passes


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
    how = counting.How(0, False, 1, None, lambda _: None)
    fixed = -counting.room_for_rows(corpus, how, 0, 180)
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


def run_killed(path, point, how):
    command = [sys.executable, str(KILLED), str(path), "40", point, how]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603


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
import itertools, sys
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
