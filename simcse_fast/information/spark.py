"""Information gain on a Spark cluster: the numbers of one machine, from one shuffle of the pairs.

c log c is not linear, so all that stands beside a word has to meet in one place before its pairs
are counted. Spark reads the corpus twice:

1. tasks count words, which are added up, collected and numbered by frequency;
2. tasks send each sentence to the buckets, ranges of rows of about equal cost, that own its rare
   words; one task gets a whole bucket and counts its pairs. Pairs of frequent words are counted
   where they are read, and the triangles are added up.

What tasks do is in simcse_fast.information.spark_tasks; docs/information.md tells why.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.errors import AnalysisException, PySparkRuntimeError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from simcse_fast.errors import BackendUnavailableError
from simcse_fast.information import spark_tasks
from simcse_fast.information.numbering import by_frequency
from simcse_fast.information.readers import kind_of, sentence_of, text_column
from simcse_fast.kernels.cooccurrence import engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

PROBABILITIES = ("unigram", "marginal")
ENDINGS = (".parquet", ".txt", ".txt.gz", ".jsonl")
BUCKETS = 4  # for each core at least, so that cores that finish early find more
RECORD, SPAN = 4, 8  # bytes beside the entries: of a sentence in a bucket, and of an occurrence


@dataclass(frozen=True)
class SparkCounts:
    """What counting a corpus on Spark gives; words by falling count, ties in code-point order."""

    vocabulary: pa.LargeStringArray  # (words,)
    counts: NDArray[np.int64]  # (words,) occurrences
    company: NDArray[np.int64]  # (words,) R_w, the tokens that stand beside w
    gains: NDArray[np.float64]  # (words,) KL(w) in nats, NaN without company
    tokens: int
    sentences: int
    squares: float  # sum over the tokens of the squared number of others in their sentences


class Known(NamedTuple):
    """What the first reading gives."""

    vocabulary: pa.LargeStringArray
    counts: NDArray[np.int64]
    company: NDArray[np.int64]
    longest: int  # tokens of the longest sentence
    sentences: int
    squares: float


def count_on_spark(
    corpus: Any,
    *,
    column: str | None = None,
    probability: str = "unigram",
    presence: bool = False,
    session: SparkSession | None = None,
    bucket_bytes: int = 128 << 20,
) -> SparkCounts:
    """Count the words of a corpus and the pairs within its sentences on a Spark cluster.

    KL(w) = ( sum_v f(c_wv) - sum_v c_wv log P(v) ) / R_w - log R_w, f(c) = c log c

    Workers need this package with its extra `information`, and memory for twice `bucket_bytes` and
    about 150 bytes for each distinct word; the driver collects 40 bytes a word, within
    `spark.driver.maxResultSize`. Spark's settings decide the rest: how many tasks read (by the
    files), and how many count (`spark.sql.shuffle.partitions`). Needs pyspark 4.1 or newer, whose
    Arrow batches are limited in bytes; not for Spark Connect, which has no broadcast.

    Args:
        corpus: a `pyspark.sql.DataFrame`; or a path that Spark reads, or a list of them: .parquet,
            .txt or .txt.gz with one sentence a line, .jsonl with an object a line. Read twice:
            its rows must be the same each time. Invalid UTF-8 becomes U+FFFD.
        column: the column of sentences; by default `text`, `sentence`, or the only one of strings.
        probability: P(v): "unigram", v's share of all tokens, or "marginal", of all company.
        presence: a word counts once a sentence.
        session: whose cluster reads the paths; by default the active one, else a new one.
        bucket_bytes: size of the part of the pairs' sentences that a worker holds at a time, > 0.
            Only a single word that takes more makes a larger one.

    Returns:
        Counts and information gain of every word: counts bit-equal to those of one machine, KL to
        1e-12.

    Raises:
        TypeError: the corpus is none of these.
        ValueError: it cannot be read, has no such column, or holds nulls; or an argument is out of
            range.

    Example:
        >>> rows = [("salt and pepper",), ("salt",)]
        >>> corpus = spark.createDataFrame(rows, "text string")  # doctest: +SKIP
        >>> count_on_spark(corpus).counts  # doctest: +SKIP
        array([2, 1, 1])
    """
    if probability not in PROBABILITIES:
        expected = ", ".join(PROBABILITIES)
        raise ValueError(f"probability: expected one of {expected}, got {probability!r}.")
    if bucket_bytes <= 0:
        raise ValueError(f"bucket_bytes: expected at least 1 byte, got {bucket_bytes}.")
    texts = sentences_of(corpus, column, session)
    known = count_words(texts, presence=presence)
    share_of = known.company if probability == "marginal" else known.counts
    plan = plan_of(known, engine.log_shares(share_of), presence, bucket_bytes, cores_of(texts))
    return SparkCounts(
        *(known.vocabulary, known.counts, known.company),
        gains=count_pairs(texts, known, plan) if len(known.counts) else np.empty(0),
        tokens=int(known.counts.sum()),
        sentences=known.sentences,
        squares=known.squares,
    )


def cores_of(texts: DataFrame) -> int:
    """Tasks that run side by side."""
    return int(texts.sparkSession.sparkContext.defaultParallelism)


def sentences_of(corpus: Any, column: str | None, session: SparkSession | None) -> DataFrame:
    """Whatever a user calls a corpus, as one column `text`."""
    if isinstance(corpus, DataFrame):
        return only_text(corpus, "corpus", column)
    paths = [corpus] if isinstance(corpus, str | os.PathLike) else corpus
    if not isinstance(paths, list | tuple) or not all(
        isinstance(path, str | os.PathLike) for path in paths
    ):
        raise TypeError(
            f"corpus: expected a pyspark DataFrame, a path that Spark reads ({', '.join(ENDINGS)}) "
            f"or a list of paths, got {type(corpus).__name__}."
        )
    by_kind: dict[str, list[str]] = {}
    for path in map(os.fspath, paths):
        kind = kind_of(Path(path))
        if kind not in READERS:
            expected = ", ".join(ENDINGS)
            raise ValueError(f"corpus: {path} ends in {kind!r}; expected {expected}")
        by_kind.setdefault(kind, []).append(path)
    if not by_kind:
        raise ValueError("corpus: expected one path at least, got an empty list.")
    session = session or start()
    tables = [read(session, kind, paths, column) for kind, paths in by_kind.items()]
    for table in tables[1:]:
        tables[0] = tables[0].unionAll(table)
    return tables[0]


def start() -> SparkSession:
    """The active session, or a new one."""
    try:
        return SparkSession.builder.getOrCreate()
    except PySparkRuntimeError as error:
        raise BackendUnavailableError(
            'engine="spark": Spark cannot start; it needs Java 17 or newer, on PATH or as '
            'JAVA_HOME; install it, or use engine="local"'
        ) from error


def read(session: SparkSession, kind: str, paths: list[str], column: str | None) -> DataFrame:
    """Files of one kind."""
    where = f"corpus: {', '.join(paths):.200}"
    try:
        return READERS[kind](session, paths, where, column)
    except AnalysisException as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{where} cannot be read: {reason}") from error


def read_lines(
    session: SparkSession, paths: list[str], where: str, column: str | None
) -> DataFrame:
    """Text files, a sentence a line: the only column there is."""
    if column is not None:
        raise ValueError(f"{where}: column {column!r} is not there; lines of text have none")
    return only_text(session.read.text(paths, lineSep="\n"), where, None)


def read_parquet(
    session: SparkSession, paths: list[str], where: str, column: str | None
) -> DataFrame:
    """Parquet files."""
    return only_text(session.read.parquet(*paths), where, column)


def read_jsonl(
    session: SparkSession, paths: list[str], where: str, column: str | None
) -> DataFrame:
    """JSON lines; the first one tells the column, as Spark would read them all to know it."""
    lines = session.read.text(paths, lineSep="\n")
    first = lines.filter(F.trim("value") != "").first()
    if first is None:
        raise ValueError(f"{where} is empty; expected one object a line")
    _, column = sentence_of(first[0], column, f"{where}, first line")
    if column is None:
        raise ValueError(f"{where}: expected one object a line, got a string")
    schema = StructType([StructField(column, StringType())])
    return only_text(session.read.schema(schema).json(paths, lineSep="\n"), where, column)


READERS: dict[str, Callable[[SparkSession, list[str], str, str | None], DataFrame]] = {
    ".txt": read_lines,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}


def only_text(table: DataFrame, where: str, column: str | None) -> DataFrame:
    """The column of sentences, as `text`."""
    strings = [field.name for field in table.schema if isinstance(field.dataType, StringType)]
    name = text_column(strings, table.columns, where, column)
    quoted = name.replace("`", "``")
    return table.select(F.col(f"`{quoted}`").alias("text"))


def count_words(texts: DataFrame, *, presence: bool) -> Known:
    """The first reading."""

    def work(batches: spark_tasks.Batches) -> spark_tasks.Batches:
        return spark_tasks.count(batches, presence=presence)

    found = (
        texts.mapInArrow(work, spark_tasks.WORDS)
        .groupBy("word")
        .agg(
            F.sum("count").alias("count"),
            F.sum("company").alias("company"),
            F.max("longest").alias("longest"),
            F.sum("nulls").alias("nulls"),
            F.sum("squares").alias("squares"),
        )
        .toArrow()
    )
    is_word = found["word"].is_valid()
    words, totals = found.filter(is_word), found.filter(pc.invert(is_word)).to_pylist()
    sentences, longest, nulls, squares = (
        sum(row[name] for row in totals) for name in ("count", "longest", "nulls", "squares")
    )
    if nulls:
        raise ValueError(
            f"corpus: {nulls:,} of {sentences + nulls:,} rows are null, or no JSON; expected a "
            "string in each"
        )
    spelled = words["word"].cast(pa.large_string()).combine_chunks()
    vocabulary, counts, rank = by_frequency(spelled, words["count"].to_numpy())
    company = np.empty_like(counts)
    company[rank] = words["company"].to_numpy()
    return Known(vocabulary, counts, company, longest, sentences, squares)


def plan_of(
    known: Known, log_p: NDArray[np.float64], presence: bool, bucket_bytes: int, cores: int
) -> spark_tasks.Plan:
    """Buckets of about equal cost.

    What stands before a word in a sorted sentence is no more than the sentence, so its company
    bounds the entries that its row needs; sentences that hold two words of a bucket go there once.
    """
    corpus = engine.Corpus(known.counts, known.longest)
    rows = slice(corpus.dense, None)
    occurrences, entry = known.counts[rows], np.dtype(corpus.entry).itemsize
    costs = entry * (known.company[rows] + occurrences) + (RECORD + SPAN) * occurrences
    ends = np.cumsum(costs)
    total = int(ends[-1]) if len(ends) else 0
    buckets = min(max(-(-total // bucket_bytes), BUCKETS * cores), len(ends))
    marks = np.linspace(0, total, buckets + 1)[1:-1]
    cuts = [0, *np.searchsorted(ends, marks).tolist(), len(ends)]
    bounds = corpus.dense + np.unique(cuts).astype(np.int64)
    return spark_tasks.Plan(corpus, known.vocabulary, log_p, bounds, presence)


def count_pairs(texts: DataFrame, known: Known, plan: spark_tasks.Plan) -> NDArray[np.float64]:
    """The second reading and the shuffle: KL(w) of every word."""
    shared = texts.sparkSession.sparkContext.broadcast(plan)

    def send(batches: spark_tasks.Batches) -> spark_tasks.Batches:
        return spark_tasks.send(batches, shared.value)

    def add_up(batches: spark_tasks.Batches) -> spark_tasks.Batches:
        return spark_tasks.add_up(batches, shared.value)

    try:
        found = (
            texts.mapInArrow(send, spark_tasks.RECORDS)
            .repartition("bucket")
            .sortWithinPartitions("bucket")
            .mapInArrow(add_up, spark_tasks.SUMS)
            .groupBy("word")
            .agg(*(F.sum(name).alias(name) for name in ("entropy", "cross", "own")))
            .toArrow()
        )
    finally:
        shared.destroy()
    return gains_of(found, known)


def gains_of(found: pa.Table, known: Known) -> NDArray[np.float64]:
    """KL(w) from the sums of all tasks."""
    words = found["word"].to_numpy()
    entropy, cross = np.zeros(len(known.counts)), np.zeros(len(known.counts))
    own = np.zeros(len(known.counts), np.int64)
    entropy[words], cross[words] = found["entropy"].to_numpy(), found["cross"].to_numpy()
    own[words] = found["own"].to_numpy()
    entropy += own * np.log(np.maximum(own, 1))
    return engine.divergence(entropy, engine.Terms(known.company, cross, own))
