"""Ids on disk: kept, recognised, rebuilt."""

import errno
import json
import os
import threading

import numpy as np
import pytest
from information_files import folders, zipf_file
from test_information import assert_same, gain
from tokenizers import Tokenizer, models, pre_tokenizers

from simcse_fast.information import cache, ids
from simcse_fast.information import gain as gains
from simcse_fast.information.sentences import Repairs


@pytest.fixture
def text(tmp_path):
    return zipf_file(tmp_path)


@pytest.fixture
def readings(monkeypatch):
    """How often a text was split."""
    calls = []
    original = gains.number_text
    monkeypatch.setattr(
        gains, "number_text", lambda *arguments: calls.append(1) or original(*arguments)
    )
    return calls


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


def test_a_folder_is_not_cleared_away_while_it_is_locked(text, monkeypatch):
    """By who looks at it between the opening of its lock and the locking."""
    flock = ids.fcntl.flock

    def seen_first(file, how):
        monkeypatch.setattr(ids.fcntl, "flock", flock)
        (unfinished,) = folders(text)
        ids.remove_abandoned(unfinished.with_name(unfinished.name.partition(ids.UNFINISHED)[0]))
        assert unfinished.exists()
        flock(file, how)

    monkeypatch.setattr(ids.fcntl, "flock", seen_first)
    assert_same(gain(text, cache=True), gain(text, cache=False))
    assert ids.fcntl.flock is flock
    assert len(folders(text)) == 1


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
