"""What explain says of the table that it made of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from simcse_fast.cli.common import bold
from simcse_fast.cli.explained import plain

if TYPE_CHECKING:
    from pathlib import Path

    from simcse_fast.attribution.batch import Batch

HEAVIEST, LEAST_COUNT = 10, 5  # words that are told, of those that occur so often


def totals(batch: Batch, seconds: float) -> dict[str, Any]:
    """The run for machines."""
    fresh = batch.total - batch.earlier
    return {
        "out": str(batch.out.resolve()),
        "sentences": batch.total,
        "sentences_of_earlier_runs": batch.earlier,
        "seconds": seconds,
        "sentences_per_second": fresh / seconds,
        "heaviest": heaviest(batch.out),
    }


def lines_of(batch: Batch, seconds: float) -> list[str]:
    """The run for people."""
    told = totals(batch, seconds)
    earlier = f", {batch.earlier:,} of them in an earlier run" if batch.earlier else ""
    rate = f"{seconds:,.1f} s, {told['sentences_per_second']:,.1f} sentences/s"
    lines = [
        f"{bold('Sentences')}  {batch.total:,}{earlier}; {rate}",
        f"{bold('Table')}      {told['out']}",
    ]
    words = [f"{plain(one['token'])} {one['mean_score']:+.3g}" for one in told["heaviest"]]
    return [*lines, f"{bold('Heaviest')}   {', '.join(words)}"] if words else lines


def heaviest(path: Path) -> list[dict[str, Any]]:
    """Words, or tokens, of the largest mean score among those that are no rarity."""
    sums = []
    with pq.ParquetFile(path) as file:
        for rows in file.iter_batches(columns=["tokens", "scores"]):
            tokens, scores = (pc.list_flatten(rows[name]) for name in ("tokens", "scores"))
            own = pa.table({"token": pc.utf8_lower(tokens), "score": scores})
            sums.append(own.group_by("token").aggregate([("score", "sum"), ("score", "count")]))
    total = pa.concat_tables(sums).group_by("token")
    table = total.aggregate([("score_sum", "sum"), ("score_count", "sum")])
    table = table.rename_columns(["token", "sum", "count"])
    table = table.filter(pc.greater_equal(table["count"], LEAST_COUNT))
    mean = pc.divide(table["sum"], pc.cast(table["count"], pa.float64()))
    table = table.append_column("mean_score", mean)
    first = table.sort_by([("mean_score", "descending"), ("token", "ascending")])[:HEAVIEST]
    found: list[dict[str, Any]] = first.select(["token", "count", "mean_score"]).to_pylist()
    return found
