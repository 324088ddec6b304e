"""What one would count co-occurrences with, were it not for this package.

Each takes the ids or the text that ours takes and gives what can be compared with ours.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise, permutations
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse, special

from benchmarks import harness

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from simcse_fast.information.ids import Numbered

    Values = NDArray[np.float64]

PACKAGES = ("pyarrow", "numpy", "duckdb", "scikit-learn", "nltk", "gensim", "tokenizers")
SPLITTERS = ("our words", "Whitespace", "BertPreTokenizer")  # the others' tokens are not only words
WORD = r"[^\W_]+"
KL_IN_SQL = """
    WITH pairs AS ({pairs}),
         company AS (SELECT word, sum(c) AS r FROM pairs GROUP BY word)
    SELECT pairs.word, sum(c / r * ln(c / r / p))
    FROM pairs JOIN company USING (word) JOIN shares ON pairs.other = shares.word
    GROUP BY pairs.word"""
# The text book's, and half of its work: each pair of a sentence's distinct words once.
SELF_JOIN = """
    SELECT a.word, b.word AS other, count(*) AS c
    FROM tokens a JOIN tokens b ON a.sentence = b.sentence AND a.position <> b.position
    GROUP BY ALL"""
ORDERED_JOIN = """
    SELECT word, other, c FROM half UNION ALL
    SELECT other, word, c FROM half WHERE word <> other"""
HALF = """
    WITH bags AS (SELECT sentence, word, count(*) AS n FROM tokens GROUP BY ALL)
    SELECT a.word, b.word AS other,
           sum(CASE WHEN a.word = b.word THEN a.n * (a.n - 1) ELSE a.n * b.n END) AS c
    FROM bags a JOIN bags b ON a.sentence = b.sentence AND a.word <= b.word
    GROUP BY ALL HAVING c > 0"""


def versions() -> dict[str, str]:
    """Of the peers."""
    return harness.versions(PACKAGES)


def kl_of_matrix(pairs: Any, counts: NDArray[np.int64]) -> Values:  # (words,)
    """KL(w) from the matrix of co-occurrence counts, whose diagonal still holds the tokens."""
    words = len(counts)
    word = np.repeat(np.arange(words), np.diff(pairs.indptr))
    own = word == pairs.indices
    pairs.data[own] -= counts[word[own]]
    company = np.asarray(pairs.sum(axis=1), np.float64).ravel()
    share = pairs.data / np.maximum(company, 1)[word]
    # Over P(v), not over counts: the sums stay small, and with them their rounding.
    gain = special.xlogy(share, share / (counts / counts.sum())[pairs.indices])
    return np.where(company > 0, np.bincount(word, gain, words), np.nan)


def occurrences(numbered: Numbered, kind: type = np.int32) -> Any:
    """X, sentences by words."""
    shape = (len(numbered.offsets) - 1, len(numbered.counts))
    ones = np.ones(numbered.tokens, kind)
    return sparse.csr_matrix((ones, numbered.ids.astype(np.int32), numbered.offsets), shape)


def scipy_kl(numbered: Numbered) -> Values:
    """KL(w) from X^T X."""
    matrix = occurrences(numbered)
    return kl_of_matrix((matrix.T @ matrix).tocsr(), numbered.counts)


class Duckdb:
    """KL(w) in SQL, one thread; the tables are there before the clock runs."""

    def __init__(self, numbered: Numbered) -> None:
        import duckdb  # noqa: PLC0415 - a peer, not always there
        import pyarrow as pa  # noqa: PLC0415 - beside it

        self.words = len(numbered.counts)
        sentence = np.repeat(np.arange(numbered.sentences), np.diff(numbered.offsets))
        positions = np.arange(numbered.tokens) - numbered.offsets[sentence]
        columns = {"sentence": sentence, "position": positions, "word": numbered.ids}
        tokens = pa.table({name: values.astype(np.int32) for name, values in columns.items()})
        share = numbered.counts / numbered.counts.sum()
        shares = pa.table({"word": np.arange(self.words, dtype=np.int32), "p": share})
        self.connection = duckdb.connect()
        self.connection.execute("SET threads=1; SET enable_progress_bar=false")
        for name, table in (("tokens", tokens), ("shares", shares)):
            self.connection.register("arrow", table)
            self.connection.execute(f"CREATE TABLE {name} AS SELECT * FROM arrow")  # noqa: S608
            self.connection.unregister("arrow")

    def self_join(self) -> Values:
        """Every position with every other of its sentence."""
        return self._kl(SELF_JOIN)

    def ordered_join(self) -> Values:
        """Distinct words of a sentence in one order, both orders of their sums."""
        self.connection.execute(f"CREATE OR REPLACE TEMP TABLE half AS {HALF}")
        return self._kl(ORDERED_JOIN)

    def _kl(self, pairs: str) -> Values:
        found = self.connection.execute(KL_IN_SQL.format(pairs=pairs)).fetchnumpy()
        word, gain = found.values()
        every = np.full(self.words, np.nan)
        every[np.asarray(word)] = np.asarray(gain)
        return every


def sklearn_table(texts: list[str]) -> tuple[list[str], NDArray[np.int64], Values]:
    """Words, counts and KL by CountVectorizer and X^T X."""
    from sklearn.feature_extraction.text import CountVectorizer  # noqa: PLC0415 - a peer

    vectorizer = CountVectorizer(token_pattern=WORD, dtype=np.int32)
    matrix = vectorizer.fit_transform(texts)
    counts = np.asarray(matrix.sum(axis=0), np.int64).ravel()
    gain = kl_of_matrix((matrix.T @ matrix).tocsr(), counts)
    return vectorizer.get_feature_names_out().tolist(), counts, gain


def sklearn_file(path: str) -> tuple[list[str], NDArray[np.int64], Values]:
    """The same from a Parquet file."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - beside it

    return sklearn_table(pq.read_table(path)["text"].to_pylist())


def python_words(texts: list[str]) -> tuple[list[int], dict[str, int], Counter[int]]:
    """What one would write: re, lower, dict."""
    number: dict[str, int] = {}
    ids = [
        number.setdefault(word, len(number))
        for text in texts
        for word in re.findall(WORD, text.lower())
    ]
    return ids, number, Counter(ids)


def hugging_face(words: list[str], kind: str = "our words") -> Any:
    """A WordLevel tokenizer of known words; all but "our words" give punctuation as tokens too."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers  # noqa: PLC0415

    vocabulary = {word: number for number, word in enumerate([*words, "[UNK]"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 - no secret
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = {
        "our words": lambda: pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}\p{M}]+"), "removed"),
        "Whitespace": pre_tokenizers.Whitespace,
        "BertPreTokenizer": pre_tokenizers.BertPreTokenizer,
    }[kind]()
    return tokenizer


def encoded(tokenizer: Any, texts: list[str]) -> list[Any]:
    """By the fastest of its ways, without offsets."""
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    return encode(texts, add_special_tokens=False)


def as_lists(numbered: Numbered, words: list[str]) -> list[list[str]]:
    """The sentences as lists of words."""
    found = [words[i] for i in numbered.ids.tolist()]
    return [found[low:high] for low, high in pairwise(numbered.offsets.tolist())]


def nltk_pairs(sentences: list[list[str]]) -> Any:
    """A ConditionalFreqDist of every position with every other of its sentence; no KL."""
    from nltk import ConditionalFreqDist  # noqa: PLC0415 - a peer

    return ConditionalFreqDist(pair for words in sentences for pair in permutations(words, 2))


def nltk_window(sentences: list[list[str]], width: int) -> Any:
    """A BigramCollocationFinder of ordered pairs at most `width` apart; no KL."""
    from nltk.collocations import BigramCollocationFinder  # noqa: PLC0415 - a peer

    apart = [None] * width  # no pair reaches across sentences
    words = [word for sentence in sentences for word in (*sentence, *apart)]
    return BigramCollocationFinder.from_words(words, window_size=width + 1)


def gensim_accumulator(sentences: list[list[str]]) -> Callable[[], Any]:
    """Counts sentences that hold both words (presence); no KL. The dictionary is there before."""
    from gensim.corpora import Dictionary  # noqa: PLC0415 - a peer
    from gensim.topic_coherence.text_analysis import (  # noqa: PLC0415 - beside it
        WordOccurrenceAccumulator,
    )

    dictionary = Dictionary(sentences)
    longest = max(map(len, sentences))

    def count() -> Any:
        accumulator = WordOccurrenceAccumulator(set(dictionary.token2id.values()), dictionary)
        return accumulator.accumulate(sentences, longest)

    return count
