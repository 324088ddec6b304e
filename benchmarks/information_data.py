"""Sentences, ids and files of the information benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from simcse_fast.information.corpus import Text, array_parts
from simcse_fast.information.ids import MemorySink
from simcse_fast.information.numbering import Plan, number_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from simcse_fast.information.ids import Numbered

WIKIPEDIA = Path(__file__).resolve().parents[2] / "shared" / "data" / "wiki_sentences.parquet"
EXPONENT = 1.05
SHORTEST, LONGEST = 5, 60  # tokens of an invented sentence
CHUNK = 1 << 22  # tokens that are drawn at a time
# Letters, numbers, punctuation and white space, which all splitters treat alike. Marks, symbols and
# controls beyond ASCII they do not; nor the two letters whose lower case has more than one form.
PLAIN, TWO_FORMS = r"^[\p{L}\p{N}\p{P}\p{Z}\t\n\r\x20-\x7E]*$", "[İΣ]"


def silent(*_: object) -> None:
    """No progress bar."""


def source() -> str:
    """Where the sentences are from."""
    return "a sample of Wikipedia" if WIKIPEDIA.exists() else "invented words, Zipf's law"


def sentences(count: int | None) -> pa.Array:  # (count,) strings
    """The first ones of the sample, or invented ones where it is not beside the project."""
    if WIKIPEDIA.exists():
        found = pq.read_table(WIKIPEDIA, columns=["text"])["text"]
        return found.slice(0, count).combine_chunks()
    lines, tokens = Zipf(20_000), 32 * (count or 50_000)
    return pa.concat_arrays([texts for texts, _ in lines.chunks(tokens)]).slice(0, count)


def plain(texts: pa.Array) -> pa.Array:
    """The sentences that every splitter splits alike: 99 % of Wikipedia's."""
    alike = pc.match_substring_regex(texts, PLAIN)
    return texts.filter(pc.and_not(alike, pc.match_substring_regex(texts, TWO_FORMS)))


def numbered(texts: pa.Array, threads: int = 2, *, presence: bool = False) -> Numbered:
    """Split and number in memory."""
    plan = Plan(None, presence, None, threads)
    return number_text(
        Text(array_parts(texts, None), texts.nbytes), plan, MemorySink(threads), silent
    )


def parquet_file(texts: pa.Array, path: Path) -> Path:
    """A file of them, laid out as the sample is."""
    pq.write_table(pa.table({"text": texts}), path, compression="zstd", row_group_size=100_000)
    return path


class Zipf:
    """Sentences of "w1", "w2", ... whose frequencies fall as the rank to the power of -1.05."""

    def __init__(self, words: int) -> None:
        share = np.arange(1, words + 1) ** -EXPONENT
        self.ends = np.cumsum(share) / share.sum()
        self.names = pa.array([f"w{rank}" for rank in range(1, words + 1)])

    def chunks(self, tokens: int) -> Iterator[tuple[pa.Array, NDArray[np.int64]]]:
        """Sentences and their lengths, about so many tokens in all."""
        generator, mean = np.random.default_rng(0), (SHORTEST + LONGEST) / 2
        for first in range(0, tokens, CHUNK):
            count = max(1, int(min(CHUNK, tokens - first) / mean))
            lengths = generator.integers(SHORTEST, LONGEST + 1, count)
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            ranks = np.searchsorted(self.ends, generator.random(offsets[-1]))
            words = self.names.take(pa.array(np.minimum(ranks, len(self.names) - 1)))
            yield pc.binary_join(pa.ListArray.from_arrays(offsets, words), " "), lengths

    def write(self, tokens: int, path: Path) -> dict[str, int]:
        """One sentence a line; returns what any count of them must give."""
        facts = {"tokens": 0, "sentences": 0, "company": 0}
        with path.open("wb") as file:
            for texts, lengths in self.chunks(tokens):
                whole = pa.ListArray.from_arrays([0, len(texts)], texts)
                file.write(pc.binary_join(whole, "\n")[0].as_buffer())
                file.write(b"\n")
                facts["tokens"] += int(lengths.sum())
                facts["sentences"] += len(lengths)
                facts["company"] += int((lengths * (lengths - 1)).sum())
        return facts


@dataclass(frozen=True)
class Texts:
    """The sentences in every form that a method takes, made once."""

    folder: Path
    kept: dict[tuple[str, int | None, bool], Any] = field(default_factory=dict)

    def array(self, count: int | None, *, alike: bool = False) -> pa.Array:
        """The first sentences; `alike`: those among them that every splitter splits alike."""

        def make() -> pa.Array:
            return plain(self.array(count)) if alike else sentences(count)

        return self._once(("array", count, alike), make)

    def file(self, count: int | None, *, alike: bool = False) -> Path:
        """The same as Parquet."""
        if count is None and not alike and WIKIPEDIA.exists():
            return WIKIPEDIA
        path = self.folder / f"{count}{'-alike' * alike}.parquet"
        return self._once(
            ("file", count, alike), lambda: parquet_file(self.array(count, alike=alike), path)
        )

    def _once(self, key: tuple[str, int | None, bool], make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]
