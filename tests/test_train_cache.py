"""The cache of token ids: used for what it was made of only, made once, never left half done."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", reason="needs the extra train")

from sentence_transformers import SentenceTransformer
from train_models import save_bert, sentences, write_lines

from simcse_fast.errors import InputError
from simcse_fast.training import tokens
from simcse_fast.training.sealed import MARKER, made
from simcse_fast.training.text_encoder import TextEncoder
from simcse_fast.training.tokens import token_data


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return SentenceTransformer(str(save_bert(tmp_path_factory.mktemp("model"))), device="cpu")


@pytest.fixture
def counted(monkeypatch):
    """How many times texts were tokenized."""
    calls = []
    write = tokens.write
    monkeypatch.setattr(tokens, "write", lambda *a: calls.append(1) or write(*a))
    return calls


def test_cache_serves_what_it_was_made_of_only(bert, tmp_path, counted):
    path, cache = write_lines(tmp_path / "s.txt", sentences(40)), tmp_path / "cache"

    def made(length=32):
        return token_data(path, "unsupervised", TextEncoder(bert.tokenizer, length), cache)

    first, again = made(), made()
    assert len(counted) == 1
    assert first.report == again.report
    assert np.array_equal(first.columns[0].ids, again.columns[0].ids)
    made(length=16)
    assert len(counted) == 2
    write_lines(path, sentences(40, seed=1))
    os.utime(path, ns=(1, 1))
    assert not np.array_equal(made().columns[0].ids, first.columns[0].ids)
    assert len(counted) == 3
    made()
    assert len(counted) == 3


@pytest.mark.parametrize("harm", ["marker", "bit", "missing", "foreign"])
def test_torn_or_foreign_cache_is_made_anew(bert, tmp_path, counted, harm):
    path, cache = write_lines(tmp_path / "s.txt", sentences(40)), tmp_path / "cache"
    encoder = TextEncoder(bert.tokenizer, 32)
    expected = token_data(path, "unsupervised", encoder, cache)
    expected = np.array(expected.columns[0].ids)
    (folder,) = cache.iterdir()
    ids = folder / "ids-0.bin"
    if harm == "marker":
        (folder / MARKER).unlink()
    elif harm == "missing":
        ids.unlink()
    elif harm == "bit":
        ids.write_bytes(bytes([ids.read_bytes()[0] ^ 1]) + ids.read_bytes()[1:])
    else:
        other = token_data(sentences(40, seed=5), "unsupervised", encoder, tmp_path / "other")
        assert other.report.rows == 40
        shutil.rmtree(folder)
        (foreign,) = (tmp_path / "other").iterdir()
        foreign.rename(folder)
    before = len(counted)
    found = token_data(path, "unsupervised", encoder, cache)
    assert len(counted) == before + 1
    assert np.array_equal(found.columns[0].ids, expected)


def test_two_runs_make_a_cache_once(bert, tmp_path, monkeypatch, counted):
    lines, encoder, cache = sentences(40), TextEncoder(bert.tokenizer, 32), tmp_path / "cache"
    begun, waited, told = threading.Event(), threading.Event(), []
    write = tokens.write

    def slow(*arguments):
        begun.set()
        waited.wait(60)
        return write(*arguments)

    def say(sentence):
        told.append(sentence)
        waited.set()

    monkeypatch.setattr(tokens, "write", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(token_data, lines, "unsupervised", encoder, cache, say)
        begun.wait(60)
        second = pool.submit(token_data, lines, "unsupervised", encoder, cache, say)
        found = [one.result().columns[0].ids for one in (first, second)]
    assert told == [f"waiting for another run that writes token ids into {cache}"]
    assert len(counted) == 1
    assert np.array_equal(*found)
    assert len(list(cache.iterdir())) == 1  # no lock is left


def test_lock_of_a_killed_run_keeps_nobody_out(bert, tmp_path):
    (tmp_path / tokens.LOCK).touch()
    told = []
    encoder = TextEncoder(bert.tokenizer, 32)
    token_data(sentences(40), "unsupervised", encoder, tmp_path, told.append)
    assert told == []
    assert not (tmp_path / tokens.LOCK).exists()


def test_failed_block_takes_only_its_empty_folders_with_it(tmp_path):
    def work(folder, name):
        with made(folder, "output"):
            if name:
                (folder / name).touch()
            raise InputError("no")

    def failing(folder, name=None):
        with pytest.raises(InputError, match="no"):
            work(folder, name)

    failing(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    failing(tmp_path / "a" / "b", "file")
    assert (tmp_path / "a" / "b" / "file").exists()
    (tmp_path / "there").mkdir()
    failing(tmp_path / "there")
    assert (tmp_path / "there").exists()


def test_file_that_changes_or_vanishes_while_read(bert, tmp_path, monkeypatch):
    path = write_lines(tmp_path / "s.txt", sentences(40))
    read = tokens.read_columns

    def and_then(change):
        def reading(*arguments):
            columns = read(*arguments)
            change()
            return columns

        return reading

    encoder = TextEncoder(bert.tokenizer, 32)
    monkeypatch.setattr(tokens, "read_columns", and_then(lambda: write_lines(path, ["c1", "c2"])))
    with pytest.raises(InputError, match=r"s\.txt changed while it was read; try again"):
        token_data(path, "unsupervised", encoder, tmp_path / "cache")
    monkeypatch.setattr(tokens, "read_columns", and_then(path.unlink))
    with pytest.raises(InputError, match=r"s\.txt changed while it was read; try again"):
        token_data(path, "unsupervised", encoder, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
