"""The table that information_gain returns."""

from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

Column = Literal[
    "word", "count", "probability", "self_information", "information_gain", "null", "corrected"
]
SHOWN = 10  # rows of a printed table
NUMBERS = {  # columns of nats, and their titles
    "self_information": "self-information",
    "information_gain": "information gain",
    "null": "by chance",
    "corrected": "corrected",
}


@dataclass(frozen=True, repr=False)
class InformationTable:
    """One row per word, the most frequent first; all information in nats (natural logarithm).

    Columns: `word`; `count`; `probability` P(w), count / tokens or, where it was asked for, w's
    share of all company; `self_information` -log P(w); `information_gain` KL(P(.|w) || P(.)), NaN
    for a word that never has company. With a correction also `null`, the information gain to be
    expected by chance, and `corrected`, the difference.

    Attributes:
        arrow: the columns as a `pyarrow.Table`.
        tokens: number of tokens in the corpus, hidden words included.
        sentences: number of sentences.
        vocabulary_size: number of distinct words, hidden ones included.

    Example:
        >>> from simcse_fast.information import information_gain
        >>> table = information_gain(["salt and pepper", "salt and sugar"], min_count=1)
        >>> len(table), "pepper" in table
        (4, True)
        >>> table.lookup("salt")["count"]
        2
    """

    arrow: pa.Table
    tokens: int
    sentences: int
    vocabulary_size: int

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def __contains__(self, word: object) -> bool:
        return self._row(word) >= 0

    def __repr__(self) -> str:
        head = (
            f"InformationTable: {len(self):,} of {self.vocabulary_size:,} words, "
            f"{self.tokens:,} tokens in {self.sentences:,} sentences"
        )
        lines = [head, *self.lines(self.arrow.slice(0, SHOWN).to_pylist())]
        return "\n".join(lines + (["..."] if len(self) > SHOWN else []))

    def lines(self, rows: list[dict[str, Any]]) -> list[str]:
        """Rows as text under a heading.

        Args:
            rows: of the table, as `arrow.to_pylist()` gives them.

        Returns:
            The heading and a line for each row.
        """
        width = max([4, *(len(str(row["word"])) for row in rows)])
        names = [name for name in NUMBERS if name in self.arrow.column_names]
        titles = "".join(f"{NUMBERS[name]:>18}" for name in names)
        lines = [f"{'word':<{width}} {'count':>12}{titles}"]
        for row in rows:
            values = "".join(f"{row[name]:>18.4f}" for name in names)
            lines.append(f"{row['word']!s:<{width}} {row['count']:>12,}{values}")
        return lines

    def _row(self, word: object) -> int:
        column = self.arrow["word"]
        try:
            value = pa.scalar(word, column.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return -1
        return int(pc.index(column, value).as_py())

    def lookup(self, word: str | int) -> dict[str, Any]:
        """The row of a word (of an id, where the corpus was ids without a vocabulary).

        Args:
            word: as it stands in the column `word`: lower-case for the tokenizer "words".

        Returns:
            Column name to value.

        Raises:
            KeyError: the word does not occur, or is hidden by `min_count`.
        """
        row = self._row(word)
        if row < 0:
            raise KeyError(f"{word!r} is not among the {len(self):,} words of the table")
        return cast("dict[str, Any]", self.arrow.slice(row, 1).to_pylist()[0])

    def column(self, name: Column) -> "NDArray[Any]":
        """A column as a numpy array, without a copy for the numbers.

        Args:
            name: word, count, probability, self_information, information_gain, null or corrected.

        Returns:
            (rows,) int64 for count, float64 for the others, objects for words.

        Raises:
            KeyError: there is no such column.
        """
        chunk = self.arrow[name].combine_chunks()
        return cast("NDArray[Any]", chunk.to_numpy(zero_copy_only=False))

    def head(self, rows: int = SHOWN) -> "InformationTable":
        """The most frequent words.

        Args:
            rows: how many.

        Returns:
            A table of at most `rows` rows.
        """
        return self._with(self.arrow.slice(0, rows))

    def top(self, rows: int = SHOWN, *, by: Column = "information_gain") -> "InformationTable":
        """The rows with the largest values of a column; NaN comes last.

        Args:
            rows: how many.
            by: the column.

        Returns:
            A table of at most `rows` rows, largest first.

        Raises:
            KeyError: there is no such column.
            ValueError: rows < 0, or the column is that of the words.

        Example:
            >>> from simcse_fast.information import information_gain
            >>> table = information_gain(["a b", "a b", "a c", "c d"], min_count=1)
            >>> table.top(1).column("word").item()  # d is only beside c, which is rare
            'd'
        """
        return self._first("top", rows, by, sign=-1)

    def _first(self, name: str, rows: int, by: Column, sign: int) -> "InformationTable":
        if rows < 0 or by == "word":
            raise ValueError(
                f"{name}: expected rows >= 0 and a column of numbers, got {rows}, {by!r}."
            )
        order = np.argsort(sign * self.column(by), kind="stable")
        return self._with(self.arrow.take(order[:rows]))

    def _with(self, rows: pa.Table) -> "InformationTable":
        return InformationTable(rows, self.tokens, self.sentences, self.vocabulary_size)

    def to_pandas(self) -> "pd.DataFrame":
        """The table as a pandas DataFrame.

        Returns:
            One row per word, with the table's columns.
        """
        return self.arrow.to_pandas()

    def to_parquet(self, path: str | PathLike[str]) -> None:
        """Write the table to a Parquet file.

        Args:
            path: the file; an existing one is replaced.
        """
        pq.write_table(self.arrow, path)

    def bottom(self, rows: int = SHOWN, *, by: Column = "information_gain") -> "InformationTable":
        """The rows with the smallest values of a column; NaN comes last.

        Args:
            rows: how many.
            by: the column.

        Returns:
            A table of at most `rows` rows, smallest first.

        Raises:
            KeyError: there is no such column.
            ValueError: rows < 0, or the column is that of the words.

        Example:
            >>> from simcse_fast.information import information_gain
            >>> table = information_gain(["a b", "a b", "a c", "c d"], min_count=1)
            >>> table.bottom(1).column("word").item()  # beside c, which is rare, and b
            'a'
        """
        return self._first("bottom", rows, by, sign=1)

    def bands(self) -> list["InformationTable"]:
        """The words by frequency: counts up to 9, up to 99, and so on, the most frequent first.

        Returns:
            A table for each power of ten that has words.

        Example:
            >>> from simcse_fast.information import information_gain
            >>> table = information_gain(["to be or not to be"] * 5, min_count=1)
            >>> [[*band.column("word")] for band in table.bands()]
            [['be', 'to'], ['not', 'or']]
        """
        digits = np.char.str_len(self.column("count").astype(str))
        cuts = np.flatnonzero(np.diff(digits)) + 1  # counts fall
        edges = [0, *cuts.tolist(), len(self)]
        return [self._with(self.arrow.slice(a, b - a)) for a, b in pairwise(edges) if b > a]

    def plot(self, ax: "Axes | None" = None, *, corrected: bool = False) -> "Axes":
        """Information gain against frequency, one dot a word; needs matplotlib.

        Args:
            ax: where to draw; a new figure by default.
            corrected: the column `corrected` instead.

        Returns:
            The axes, with what is to be expected by chance where the table knows it, and the words
            of the largest values named.

        Raises:
            KeyError: there is no column `corrected`.
        """
        from simcse_fast.information.plots import plot_gain  # noqa: PLC0415 - slow, not always there

        return plot_gain(self, ax, "corrected" if corrected else "information_gain")
