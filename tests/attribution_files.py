"""Corpora attributed into files by a tiny model, and what stops that."""

import errno
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from attribution_models import TEXTS, pair_of

from simcse_fast.attribution import batch
from simcse_fast.attribution.batch import attribute_file

NUMBERS = {
    "value": "values",
    "baseline_value": "baseline_values",
    "residual": "residual",
    "steps": "steps",
    "error": "errors",
}
LONG = "the cat " * 60  # more than the model's 40 tokens
CORPUS = [*TEXTS[:5], "", LONG, *TEXTS[5:], "  ", LONG]  # 12
FULL = r"^out: .*out.parquet cannot be written \(No space left on device\); finished parts are "


def attributed(out, corpus=TEXTS, **options):
    """The table of a corpus, in parts of three sentences."""
    options = {"rows_per_part": 3, "progress": False} | options
    return pq.read_table(attribute_file(pair_of(), corpus, out, **options))


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def check_table(table, result, rtol=1e-9):
    """The rows are those of `Attributions`, but for what rounding in other passes does."""
    assert table["sentence"].to_pylist() == list(range(len(result)))
    assert table["text"].to_pylist() == result.sentences
    assert table["tokens"].to_pylist() == result.tokens
    spans = [[list(span) for span in own] for own in result.spans]
    columns = zip(table["starts"].to_pylist(), table["ends"].to_pylist(), strict=True)
    assert [[list(span) for span in zip(*own, strict=True)] for own in columns] == spans
    for got, wanted in zip(table["scores"].to_pylist(), result.scores, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=rtol, atol=rtol)
    for column, name in NUMBERS.items():
        wanted = getattr(result, name)
        np.testing.assert_allclose(table[column].to_numpy(), wanted, rtol=1e3 * rtol, atol=rtol)


def stop_in_part(monkeypatch, number, error):
    """Raise in the middle of this part."""
    write, begun = batch.Batch._attributed, []

    def stopped(self, rows):
        begun.append(rows)
        if len(begun) == number + 1:
            raise error
        return write(self, rows)

    monkeypatch.setattr(batch.Batch, "_attributed", stopped)


class Stopped(Exception):  # noqa: N818 - it stands for anything
    pass


def stopped_after(out, finished, monkeypatch, **options):
    """Leave so many finished parts."""
    with monkeypatch.context() as patch:
        stop_in_part(patch, finished, Stopped())
        with pytest.raises(Stopped):
            attributed(out, **options)
    return sorted((out.parent / "out.parquet.parts").glob("part-*.parquet"))


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
