"""Text to ids by frequency: workers split and number parts, one vocabulary at the end."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Queue
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from simcse_fast.information.corpus import Text
from simcse_fast.information.ids import MemorySink, Numbered, Sink
from simcse_fast.information.lower_case import Numbering, Sets, grown, in_lower_case
from simcse_fast.information.sentences import Part, Sentences, TokenIds, from_strings
from simcse_fast.kernels.text.numba_kernels import Words

Ids = NDArray[np.uint32]

TIDY = 8  # parts, after which Arrow gives back what it keeps of those before


class Encoder(NamedTuple):
    """A tokenizer of `transformers` or `tokenizers`."""

    encode: Callable[[list[str]], list[list[int]]]
    token: Callable[[int], str | None]
    identity: str | None  # equal for equal tokenizers; None: unknown


@dataclass(frozen=True)
class Plan:
    """How text becomes ids."""

    encoder: Encoder | None  # None: "words"
    presence: bool  # a word counts once a sentence
    language: str | None  # of running text that is first split into sentences
    threads: int


class Reader:
    """One worker: what it has met so far."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.sets = plan, Sets() if plan.presence else None
        self.lower = Numbering()  # sets must know at once which spellings are one word
        self.words = self.lower.words if plan.presence else Words()
        self.counts: NDArray[np.int64] = np.zeros(0, np.int64)

    def number(self, sentences: Sentences) -> tuple[Ids, NDArray[np.uint32]]:
        """Ids in this worker's numbering, and the tokens of each sentence."""
        if self.plan.language:
            sentences = split_sentences(sentences, self.plan.language)
        if self.plan.encoder:
            ids, sizes = encode(sentences, self.plan.encoder)
        elif self.sets:
            ids, sizes = self.lower(sentences)
        else:
            return self.words.number(sentences.data, sentences.starts)
        if self.sets:
            ids = self.sets(ids, sizes).copy()
        self.counts = grown(self.counts, int(ids.max()) + 1 if len(ids) else 0)
        self.counts += np.bincount(ids, minlength=len(self.counts))
        return ids, sizes

    def vocabulary(self) -> tuple[pa.Array, NDArray[np.int64]]:
        """Words and counts in this worker's numbering."""
        if self.plan.encoder:
            token = self.plan.encoder.token
            words = [token(i) or f"[{i}]" for i in range(len(self.counts))]
            return pa.array(words, pa.large_string()), self.counts
        words, counts = in_lower_case(self.words), self.words.counts()
        return words, grown(self.counts, len(words))[: len(words)] if self.sets else counts


def encode(sentences: Sentences, encoder: Encoder) -> tuple[Ids, NDArray[np.uint32]]:
    """Ids by a tokenizer, which has threads of its own."""
    codes = encoder.encode(list(sentences.texts()))
    sizes = np.fromiter(map(len, codes), np.uint32, len(codes))
    return np.fromiter((i for code in codes for i in code), np.uint32, int(sizes.sum())), sizes


def split_sentences(texts: Sentences, language: str) -> Sentences:
    """The sentences of running text, by the library sentencex."""
    from sentencex import segment  # noqa: PLC0415 - optional

    found = (part for text in texts.texts() for part in segment(language, text))
    return from_strings([part for part in found if not part.isspace()])


class Turn(NamedTuple):
    """A part of a text, its number, and how much was read for it."""

    number: int
    part: Part
    read: int


class Crew:
    """Workers that number the parts of a text; what they found is written in its order.

    Otherwise results would depend on who is quicker.
    """

    def __init__(self, plan: Plan, sink: Sink, tick: Callable[[int, int], object]) -> None:
        # A tokenizer has threads of its own.
        self.readers = [Reader(plan) for _ in range(1 if plan.encoder else plan.threads)]
        self.sink, self.tick = sink, tick
        self.condition, self.written, self.failed = threading.Condition(), 0, False

    def take(self, worker: int, turn: Turn) -> None:
        """Number a part, and write it when its turn comes."""
        ids, sizes = self.readers[worker].number(turn.part.sentences)
        with self.condition:
            self.condition.wait_for(lambda: self.written == turn.number or self.failed)
            if self.failed:
                return
            self.sink.append(worker, ids, sizes)
            self.tick(turn.read, len(ids))
            if turn.number % TIDY == TIDY - 1:
                pa.default_memory_pool().release_unused()
            self.written += 1
            self.condition.notify_all()

    def fail(self) -> None:
        """Wake up who waits for a part that will not come."""
        with self.condition:
            self.failed = True
            self.condition.notify_all()

    def work(self, worker: int, queue: Queue[Turn | None]) -> None:
        """Take parts until there are no more; to the end, or who fills the queue would wait."""
        failure = None
        while (turn := queue.get()) is not None:
            try:
                if not self.failed:
                    self.take(worker, turn)
            except BaseException as error:
                failure = error
                self.fail()
        if failure is not None:
            raise failure

    def share_out(self, turns: Iterator[Turn]) -> None:
        """Hand out parts as they come, until all is read or a worker fails."""
        workers = len(self.readers)
        queue: Queue[Turn | None] = Queue(workers)
        with ThreadPoolExecutor(workers) as pool:
            futures = []
            try:
                futures += [pool.submit(self.work, worker, queue) for worker in range(workers)]
                for turn in turns:
                    if self.failed:
                        break
                    queue.put(turn)
            except BaseException:
                self.fail()
                raise
            finally:
                for _ in range(workers):
                    queue.put(None)
        for future in futures:
            future.result()


def number_text(text: Text, plan: Plan, sink: Sink, tick: Callable[[int, int], object]) -> Numbered:
    """Read, split and number a text; `tick` gets bytes read and tokens found.

    The caller's thread reads, so that a stream may belong to it and Ctrl-C waits for no worker.
    """
    crew = Crew(plan, sink, tick)
    turns = (
        Turn(number, part, part.done - before)
        for number, (before, part) in enumerate(with_previous(text.parts))
    )
    if len(crew.readers) > 1:
        crew.share_out(turns)
    else:
        for turn in turns:
            crew.take(0, turn)
    return finish(crew.readers, sink)


def with_previous(parts: Iterator[Part]) -> Iterator[tuple[int, Part]]:
    """Each part with what was read before it."""
    before = 0
    for part in parts:
        yield before, part
        before = part.done


def finish(readers: list[Reader], sink: Sink) -> Numbered:
    """One vocabulary by frequency for workers that each numbered their own words."""
    found = [reader.vocabulary() for reader in readers]
    ends = np.cumsum([len(words) for words, _ in found])[:-1]
    coded = pa.concat_arrays([words for words, _ in found]).dictionary_encode()
    times = np.concatenate([counts for _, counts in found])
    readers.clear()  # their tables are as large as the vocabulary
    del found
    codes, words = coded.indices.to_numpy(), coded.dictionary
    counts = np.bincount(codes, times, len(words)).astype(np.int64)
    vocabulary, counts, rank = by_frequency(words, counts)
    maps = [rank[part] for part in np.split(codes, ends)]
    del coded, codes, words
    return sink.finish(maps, vocabulary, counts)


def by_frequency(
    words: pa.Array, counts: NDArray[np.int64]
) -> tuple[pa.Array, NDArray[np.int64], Ids]:
    """Words that occur, the most frequent first, ties by the word; and the rank of each."""
    table = pa.table({"count": counts, "word": words})
    order = pc.sort_indices(table, [("count", "descending"), ("word", "ascending")]).to_numpy()
    order = order[: np.count_nonzero(counts)]
    rank = np.zeros(len(counts), np.uint32)
    rank[order] = np.arange(len(order), dtype=np.uint32)
    return words.take(pa.array(order)), counts[order], rank


def number_ids(tokens: TokenIds, *, presence: bool, threads: int) -> Numbered:
    """Token ids by frequency; without a vocabulary the words are the ids themselves."""
    size = int(tokens.ids.max()) + 1 if len(tokens.ids) else 0
    if size > 4 * len(tokens.ids) + (1 << 20):  # ids far apart: number those that occur
        distinct, ids = np.unique(tokens.ids, return_inverse=True)
        names = distinct
    else:
        names, ids = np.arange(size), tokens.ids
    ids, sizes = ids.astype(np.uint32), np.diff(tokens.offsets).astype(np.uint32)
    if presence:
        ids = Sets()(ids, sizes)
    counts = np.bincount(ids, minlength=len(names)).astype(np.int64)
    words = pa.array(names.astype(np.int64))
    if tokens.vocabulary is not None:
        words = pa.array(tokens.vocabulary, pa.large_string()).take(words)
    vocabulary, counts, rank = by_frequency(words, counts)
    sink = MemorySink(threads)
    sink.append(0, ids, sizes)
    return sink.finish([rank], vocabulary, counts)


def encoder(tokenizer: Any) -> Encoder:
    """The functions of a tokenizer of `transformers` or `tokenizers`."""
    if hasattr(tokenizer, "encode_batch") and hasattr(tokenizer, "to_str"):
        # A copy: padding would be counted and truncation lose words, but both belong to the user.
        own = type(tokenizer).from_str(tokenizer.to_str())
        own.no_padding()
        own.no_truncation()
        encode_all = getattr(own, "encode_batch_fast", own.encode_batch)  # without offsets

        def ids(texts: list[str]) -> list[list[int]]:
            return [code.ids for code in encode_all(texts, add_special_tokens=False)]

        return Encoder(ids, own.id_to_token, own.to_str())
    if callable(tokenizer) and hasattr(tokenizer, "convert_ids_to_tokens"):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            return encoder(backend)
        quiet = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        return Encoder(
            lambda texts: tokenizer(texts, padding=False, truncation=False, **quiet)["input_ids"],
            tokenizer.convert_ids_to_tokens,
            None,
        )
    raise TypeError(
        'tokenizer: expected "words" or a tokenizer of transformers or tokenizers; got '
        f"{type(tokenizer).__name__}" + (f" {tokenizer!r}" if isinstance(tokenizer, str) else "")
    )
