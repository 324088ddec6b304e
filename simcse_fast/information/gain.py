"""information_gain: corpus in, table out."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from simcse_fast.information.corpus import Sentences, TokenIds, read_corpus
from simcse_fast.information.table import InformationTable
from simcse_fast.kernels.cooccurrence.numba_kernels import cooccurrence_kl
from simcse_fast.kernels.text.numba_kernels import Numbered, number_words

BATCH = 4096  # sentences to one call of a tokenizer
Tick = Callable[[int], object]


def information_gain(
    corpus: object,
    *,
    tokenizer: Any = "words",
    context: str = "sentence",
    min_count: int = 10,
    correction: None = None,
    threads: int | None = None,
    progress: bool = True,
) -> InformationTable:
    """How far the words beside w are from words at large, for every word of a corpus.

    KL(w) = sum_v P(v|w) log(P(v|w) / P(v)), P(v|w) the share of v among the tokens that stand in
    one sentence with w, P(v) its share of all tokens; beside it the self-information -log P(w).
    Exact plug-in counts, no smoothing, natural logarithm. Rare words score high whatever they
    mean: with few tokens beside a word the plug-in value is biased upwards.

    Args:
        corpus: an iterable of str, an Arrow array of strings, a `datasets.Dataset` or a
            `pyarrow.Table` with a column `text` or `sentence`; a path or glob, or a list of them
            (.txt with a sentence a line, .parquet, .jsonl); or token ids as `(ids, offsets)` or
            `(ids, offsets, vocabulary)`, sentence s being ids[offsets[s] : offsets[s + 1]].
            Read into memory.
        tokenizer: "words" (runs of letters, numbers and combining marks of any script,
            lower-cased), or a tokenizer of `transformers` or `tokenizers`, used without special
            tokens and without truncation.
        context: "sentence": the other tokens of the same sentence.
        min_count: rarer words get no row; they stay in the counts as context. At least 1.
        correction: None, raw counts.
        threads: number of threads; by default one for each available core. The counts do not
            depend on it, the values to about 1e-13.
        progress: show a bar on a terminal when it takes more than two seconds (needs tqdm).

    Returns:
        Table of words, the most frequent first, words of equal count in code-point order.

    Raises:
        ValueError: the corpus is empty, unreadable or not valid UTF-8, or an argument is out of
            range or asks for what this release does not have.
        TypeError: the corpus or the tokenizer is of a kind that is not listed above.

    Reference: Kurita et al. 2023, arXiv 2310.15921; Oyama et al. 2023, arXiv 2212.09663.

    Example:
        >>> table = information_gain(["red wine", "red ink", "wine and ink"], min_count=1)
        >>> table.lookup("red")["count"]
        2
        >>> round(table.lookup("red")["information_gain"], 3)  # beside wine, ink: log(7 / 4)
        0.56
    """
    check_options(context, min_count, correction, threads)
    workers = threads or available_cores()
    read = read_corpus(corpus)
    numbered = number(read, tokenizer, workers, progress)
    if not len(numbered.ids):
        raise ValueError(
            f"corpus: no words in {len(numbered.offsets) - 1} sentences; expected at least one"
        )
    with bar(len(numbered.ids), "tokens", "counting", show=progress) as tick:
        gains = cooccurrence_kl(
            numbered.ids, numbered.offsets, numbered.counts, threads=workers, tick=tick
        )
    return build_table(numbered, gains, min_count)


def check_options(context: object, min_count: object, correction: object, threads: object) -> None:
    """What this release has, and whole numbers where they are due."""
    if context != "sentence":
        raise ValueError(f'context: expected "sentence", the only one so far; got {context!r}')
    if correction is not None:
        raise ValueError(f"correction: expected None, the only one so far; got {correction!r}")
    for name, value in (("min_count", min_count), ("threads", threads)):
        if value is None and name == "threads":
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name}: expected an int, got {type(value).__name__} ({value!r})")
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")


def available_cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def number(read: Sentences | TokenIds, tokenizer: Any, threads: int, progress: bool) -> Numbered:
    """Tokenize what is text; number the words by frequency."""
    if isinstance(read, TokenIds):
        if tokenizer != "words":
            raise ValueError("tokenizer: the corpus is token ids already; leave tokenizer out")
        return rank(read)
    encode = None if tokenizer == "words" else encoder(tokenizer)
    with bar(int(read.starts[-1] - read.starts[0]), "B", "tokenizing", show=progress) as tick:
        if encode is None:
            return number_words(read.data, read.starts, threads=threads, tick=tick)
        return rank(tokenize(read, *encode, tick))


def encoder(
    tokenizer: Any,
) -> tuple[Callable[[list[str]], list[list[int]]], Callable[[int], str | None]]:
    """Texts to ids and id to token, for tokenizers of `transformers` and `tokenizers`."""
    if hasattr(tokenizer, "encode_batch") and hasattr(tokenizer, "to_str"):
        # A copy: padding would be counted and truncation lose words, but both belong to the user.
        own = type(tokenizer).from_str(tokenizer.to_str())
        own.no_padding()
        own.no_truncation()

        def encode(texts: list[str]) -> list[list[int]]:
            return [code.ids for code in own.encode_batch(texts, add_special_tokens=False)]

        return encode, own.id_to_token
    if callable(tokenizer) and hasattr(tokenizer, "convert_ids_to_tokens"):
        quiet = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        return (
            lambda texts: tokenizer(texts, padding=False, truncation=False, **quiet)["input_ids"],
            tokenizer.convert_ids_to_tokens,
        )
    raise TypeError(
        'tokenizer: expected "words" or a tokenizer of transformers or tokenizers; got '
        f"{type(tokenizer).__name__}" + (f" {tokenizer!r}" if isinstance(tokenizer, str) else "")
    )


def tokenize(
    read: Sentences,
    encode: Callable[[list[str]], list[list[int]]],
    token: Callable[[int], str | None],
    tick: Tick,
) -> TokenIds:
    """Run a tokenizer over the sentences, batch by batch."""
    ids, lengths = [np.empty(0, np.int64)], [np.zeros(1, np.int64)]
    texts, done = read.texts(), 0
    while batch := list(islice(texts, BATCH)):
        codes = encode(batch)
        ids.append(np.fromiter((i for code in codes for i in code), np.int64))
        lengths.append(np.fromiter(map(len, codes), np.int64, len(codes)))
        tick(int(read.starts[done + len(batch)] - read.starts[done]))
        done += len(batch)
    every = np.concatenate(ids)
    words = [token(i) or f"[{i}]" for i in range(int(every.max(initial=-1)) + 1)]
    return TokenIds(every, np.cumsum(np.concatenate(lengths)), words)


def rank(tokens: TokenIds) -> Numbered:
    """Number ids by frequency; without a vocabulary the words are the ids themselves."""
    counts = np.bincount(tokens.ids) if len(tokens.ids) else np.zeros(0, np.int64)
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    rank = np.zeros(len(counts), np.uint32)
    rank[order] = np.arange(len(order), dtype=np.uint32)
    names = order.tolist()
    words = names if tokens.vocabulary is None else [tokens.vocabulary[i] for i in names]
    return Numbered(rank[tokens.ids], tokens.offsets, words, counts[order])


def build_table(numbered: Numbered, gains: Any, min_count: int) -> InformationTable:
    """Rows of the words that are frequent enough."""
    tokens, shown = len(numbered.ids), int(np.count_nonzero(numbered.counts >= min_count))
    counts = numbered.counts[:shown]
    probability = counts / tokens
    words = numbered.vocabulary[:shown]
    columns = {
        "word": pa.array(words, pa.string() if words and isinstance(words[0], str) else None),
        "count": counts,
        "probability": probability,
        "self_information": 0.0 - np.log(probability),  # not -0.0 for the only word
        "information_gain": gains[:shown],
    }
    table = pa.table(columns).sort_by([("count", "descending"), ("word", "ascending")])
    return InformationTable(table, tokens, len(numbered.offsets) - 1, len(numbered.vocabulary))


@contextmanager
def bar(total: int, unit: str, description: str, *, show: bool) -> Iterator[Tick]:
    """A progress bar after two seconds, on a terminal, where tqdm is installed."""
    try:
        from tqdm import tqdm  # noqa: PLC0415 - optional
    except ImportError:
        show = False
    if not show:
        yield lambda _: None
        return
    with tqdm(
        total=total,
        unit=unit,
        desc=description,
        unit_scale=True,
        delay=2,
        disable=None,
        leave=False,
    ) as shown:
        yield shown.update
