"""information_gain: corpus in, table out."""

from __future__ import annotations

import tempfile
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from simcse_fast.errors import BackendUnavailableError, InputError
from simcse_fast.information.cache import fingerprint_of, folder_for
from simcse_fast.information.corpus import Text, open_corpus, text_of_files
from simcse_fast.information.corrections import check_shuffle, clumping, null_gain, shuffled_gain
from simcse_fast.information.counting import Gains, How, count_pairs
from simcse_fast.information.ids import FileSink, MemorySink, Numbered, load, told
from simcse_fast.information.numbering import Plan, encoder, number_ids, number_text
from simcse_fast.information.options import Options, check_options
from simcse_fast.information.pairs import FileOfPairs, MatrixOfPairs
from simcse_fast.information.progress import counting_bar, reading_bar
from simcse_fast.information.sentences import Repairs, TokenIds
from simcse_fast.information.table import InformationTable
from simcse_fast.kernels.cooccurrence.numba_windows import sum_beside
from simcse_fast.memory import resident_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from simcse_fast.information.spark import SparkCounts


def information_gain(
    corpus: object,
    *,
    tokenizer: Any = "words",
    context: str | int = "sentence",
    min_count: int = 10,
    correction: str | None = None,
    threads: int | None = None,
    progress: bool = True,
    presence: bool = False,
    probability: str = "unigram",
    split_sentences: bool | str | None = None,
    column: str | None = None,
    memory_limit: int | str | None = None,
    cache: bool | str | Path = "auto",
    rounds: int = 10,
    seed: int = 0,
    return_counts: bool | str | Path = False,
    engine: str = "local",
) -> Any:
    """How far the words beside w are from words at large, for every word of a corpus.

    KL(w) = sum_v P(v|w) log(P(v|w) / P(v)), P(v|w) the share of v among the tokens that stand in
    one sentence with w, P(v) its share of all tokens; beside it the self-information -log P(w).
    Exact plug-in counts, no smoothing, natural logarithm. Rare words score high whatever they
    mean: with few tokens beside a word the plug-in value is biased upwards, which `correction`
    estimates.

    Args:
        corpus: an iterable of str, an Arrow array of strings, a `datasets.Dataset` or
            `IterableDataset`, a table or data frame; a path or glob, or a list of them (.txt with
            a sentence a line, .jsonl, either also as .gz or .zst, .parquet); or token ids as
            `(ids, offsets)` or `(ids, offsets, vocabulary)`, sentence s being
            ids[offsets[s] : offsets[s + 1]]. Text is read part by part.
        tokenizer: "words" (runs of letters, numbers and combining marks of any script,
            lower-cased), or a tokenizer of `transformers` or `tokenizers`, used without special
            tokens and without truncation.
        context: "sentence" or "document": the other tokens of the same text, which is taken for a
            sentence or for a whole document; or a number of words to either side within it.
        min_count: rarer words get no row; they stay in the counts as context. At least 1.
        correction: None; "null" adds `null`, the expected value if the words beside w were drawn
            at random, and `corrected`, the difference; "shuffle" takes for `null` the mean over
            `rounds` corpora in which all tokens change places.
        threads: number of threads; by default one for each available core. The counts do not
            depend on it, the values to about 1e-13.
        progress: show a bar on a terminal when it takes more than two seconds (needs tqdm).
        presence: a sentence is the set of its words: repeats are dropped before anything is
            counted, tokens and counts included.
        probability: "unigram", P(v) is v's share of all tokens; or "marginal", its share of all
            that stands beside some word (the margin of the matrix of counts).
        split_sentences: texts are running text to be split into sentences first: True for
            English, or the code of another language (needs the package sentencex).
        column: of a table, data set, .parquet or .jsonl, where it is not `text` or `sentence`.
        memory_limit: bytes, or as in "2 GB", that the process may take: longer corpora are
            counted in passes, with their ids on disk.
        cache: "auto" keeps the ids of files of 256 MB and more, or of any under a memory limit, in
            a folder beside the first file; True those of all files, False none; or the folder to
            keep them in. They are used again while files and options are the same.
        rounds: shuffled corpora. At least 1.
        seed: of the shuffling.
        return_counts: also return the matrix of co-occurrence counts among the table's words, as
            `scipy.sparse.csr_array` (rows in the table's order; needs scipy); or a path: written
            there as Parquet with columns word, other, count, each unordered pair once.
        engine: "local"; or "spark", which takes a Spark DataFrame or paths that Spark reads
            (needs pyspark).

    Returns:
        Table of words, the most frequent first, words of equal count in code-point order. With
        `return_counts` a pair of the table and the matrix, or the path.

    Raises:
        ValueError: the corpus is empty or unreadable, the disk is full, or an argument is out of
            range. Invalid UTF-8 is replaced, with one warning.
        TypeError: the corpus or an option is of a kind that is not listed above.
        BackendUnavailableError: engine="spark" without pyspark.

    Reference: Kurita et al. 2023, arXiv 2310.15921; Oyama et al. 2023, arXiv 2212.09663.

    Example:
        >>> table = information_gain(["red wine", "red ink", "wine and ink"], min_count=1)
        >>> table.lookup("red")["count"]
        2
        >>> round(table.lookup("red")["information_gain"], 3)  # beside wine, ink: log(7 / 4)
        0.56
    """
    options = check_options(
        context,
        threads,
        memory_limit,
        tokenizer=tokenizer,
        presence=presence,
        probability=probability,
        min_count=min_count,
        correction=correction,
        rounds=rounds,
        seed=seed,
        split_sentences=split_sentences,
        column=column,
        cache=cache,
        return_counts=return_counts,
        engine=engine,
        progress=progress,
    )
    if options.engine == "spark":
        return gain_on_spark(corpus, options)
    repairs = Repairs()
    with numbered_corpus(corpus, options, repairs) as (numbered, kept):
        repairs.tell()
        if not numbered.tokens:
            raise no_words(numbered.sentences)
        try:
            return count(numbered, options, kept=kept)
        except KeyboardInterrupt as stop:
            if not kept:
                raise
            place = numbered.disk and numbered.disk.folder
            told = f"what was done is kept in {place}; the same call goes on from there"
            raise KeyboardInterrupt(told) from stop


def no_words(sentences: int) -> ValueError:
    """What is said of a corpus without words."""
    return ValueError(f"corpus: no words in {sentences} sentences; expected at least one")


def count(numbered: Numbered, options: Options, *, kept: bool) -> Any:
    """The table of a numbered corpus, and its matrix where that is wanted."""
    shown = int(np.count_nonzero(numbered.counts >= options.min_count))
    if options.correction == "shuffle":
        check_shuffle(numbered.tokens)
    with ExitStack() as stack:
        pairs: MatrixOfPairs | FileOfPairs | None = None
        if isinstance(options.return_counts, Path):
            pairs = FileOfPairs(options.return_counts, stack, numbered.vocabulary, shown)
        elif options.return_counts:
            pairs = MatrixOfPairs(shown)
        tick = stack.enter_context(counting_bar(numbered.tokens, show=options.progress))
        marginal, limit = options.probability == "marginal", options.memory_limit
        window = min(options.window, numbered.longest)
        how = How(window, marginal, options.threads, limit, tick)
        counting = replace(how, visit=pairs.visit) if pairs else how
        found = count_pairs(numbered, counting, resumable=kept and pairs is None)
        matrix = pairs.finish(found.counted) if pairs else None
    null = expected_gain(numbered, found, how, options)
    result = build_table(numbered, shown, share=found.share, gain=found.gain, null=null)
    if pairs is None:
        return result
    return result, options.return_counts if matrix is None else matrix


def expected_gain(
    numbered: Numbered, found: Gains, how: How, options: Options
) -> NDArray[np.float64] | None:
    """The correction that was asked for."""
    if options.correction == "null":
        sums = [sum_beside(offsets, how.window) for offsets in numbered.lengths()]
        beside = sum(one for one, _ in sums), sum(two for _, two in sums)
        return null_of(numbered, options, found.share, found.counted.terms.company, beside)
    if options.correction == "shuffle":
        total = numbered.tokens * options.rounds
        with counting_bar(total, "shuffling", show=options.progress) as tick:
            return shuffled_gain(numbered, replace(how, tick=tick), options.rounds, options.seed)
    return None


def null_of(
    counts: Numbered | SparkCounts,
    options: Options,
    share: NDArray[np.float64],
    company: NDArray[np.int64],
    beside: tuple[float, float],
) -> NDArray[np.float64]:
    """What chance gives; sets have no clumps."""
    if options.presence:
        return null_gain(share, company)
    clumps = clumping(counts.counts / counts.tokens, beside, counts.tokens)
    return null_gain(share, company, clumps)


@contextmanager
def numbered_corpus(
    corpus: object, options: Options, repairs: Repairs
) -> Iterator[tuple[Numbered, bool]]:
    """The ids of a corpus, and whether they are kept on disk for another run."""
    opened = open_corpus(corpus, options.column, repairs)
    if isinstance(opened, TokenIds):
        if options.tokenizer != "words" or options.split_sentences:
            name = "split_sentences" if options.tokenizer == "words" else "tokenizer"
            raise ValueError(f"{name}: the corpus is token ids already; leave {name} out")
        if options.memory_limit is not None:
            raise ValueError("memory_limit: token ids are in memory already; leave it out")
        yield number_ids(opened, presence=options.presence, threads=options.threads), False
        return
    code = None if options.tokenizer == "words" else encoder(options.tokenizer)
    plan = Plan(code, options.presence, options.split_sentences, options.threads)
    folder = folder_for(opened, plan, options)
    check_limit(options.memory_limit)
    with ExitStack() as stack:
        if folder is not None:
            numbered = kept_ids(opened, plan, options, folder, repairs)
        elif options.memory_limit is not None:
            beside = options.cache if isinstance(options.cache, Path) else None
            with told(beside or Path(tempfile.gettempdir())):
                make = tempfile.TemporaryDirectory(prefix="simcse-fast-", dir=beside)
            place = Path(stack.enter_context(make)) / "ids"
            numbered = ids_on_disk(opened, plan, options, FileSink(place, {}, repairs))
        else:
            numbered = ids_in_memory(opened, plan, options)
        yield numbered, folder is not None and numbered.disk is not None


def check_limit(limit: int | None) -> None:
    """Before anything is read."""
    if limit is not None and resident_memory() >= limit:
        raise InputError(
            f"memory_limit: the process takes {resident_memory():,} bytes before it begins; "
            f"expected more than that, got {limit:,}"
        )


def kept_ids(text: Text, plan: Plan, options: Options, folder: Path, repairs: Repairs) -> Numbered:
    """The ids of an earlier run, or new ones, which are kept where they can be."""
    fingerprint = fingerprint_of(text, plan, options.column)
    found = load(folder, fingerprint, repairs)
    if found is not None:
        return found
    try:
        return ids_on_disk(text, plan, options, FileSink(folder, fingerprint, repairs))
    except InputError as error:
        if options.cache != "auto" or options.memory_limit is not None:
            raise
        warnings.warn(f"{error}; the ids are not kept", stacklevel=5)
    repairs.forget()
    again = text_of_files(list(text.files), options.column, repairs)
    return ids_in_memory(again, plan, options)


def ids_in_memory(text: Text, plan: Plan, options: Options) -> Numbered:
    """Split and number."""
    with reading_bar(text.total, show=options.progress) as tick:
        return number_text(text, plan, MemorySink(options.threads), tick)


def ids_on_disk(text: Text, plan: Plan, options: Options, sink: FileSink) -> Numbered:
    """Split and number; what is not finished does not stay."""
    try:
        with reading_bar(text.total, show=options.progress) as tick:
            return number_text(text, plan, sink, tick)
    except BaseException:
        sink.discard()
        raise


def build_table(
    counted: Numbered | SparkCounts,
    shown: int,  # rows
    *,
    share: NDArray[np.float64],  # (words,) P(w)
    gain: NDArray[np.float64],  # (words,)
    null: NDArray[np.float64] | None,  # (words,)
) -> InformationTable:
    """The rows of the words that are frequent enough."""
    words = counted.vocabulary.slice(0, shown)
    with np.errstate(divide="ignore"):  # a word without company has no share of the margin
        rarity = 0.0 - np.log(share[:shown])  # not -0.0 for the only word
    columns = {
        "word": words.cast(pa.string()) if pa.types.is_large_string(words.type) else words,
        "count": counted.counts[:shown],
        "probability": share[:shown],
        "self_information": rarity,
        "information_gain": gain[:shown],
    }
    if null is not None:
        columns |= {"null": null[:shown], "corrected": gain[:shown] - null[:shown]}
    sizes = counted.tokens, counted.sentences, len(counted.counts)
    return InformationTable(pa.table(columns), *sizes)


def gain_on_spark(corpus: object, options: Options) -> InformationTable:
    """The table from a cluster's counts."""
    try:
        from simcse_fast.information.spark import count_on_spark  # noqa: PLC0415 - optional
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f'engine="spark": the package {error.name} is missing; run `pip install '
            "'simcse-fast[spark]'`, or use engine=\"local\""
        ) from error
    found = count_on_spark(
        corpus,
        column=options.column,
        probability=options.probability,
        presence=options.presence,
    )
    if not found.tokens:
        raise no_words(found.sentences)
    margin = found.company if options.probability == "marginal" else found.counts
    share = margin / max(int(margin.sum()), 1)
    beside = float(found.company.sum()), found.squares
    asked = options.correction is not None
    null = null_of(found, options, share, found.company, beside) if asked else None
    shown = int(np.count_nonzero(found.counts >= options.min_count))
    return build_table(found, shown, share=share, gain=found.gains, null=null)
