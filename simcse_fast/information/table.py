"""The table that information_gain returns."""

from dataclasses import dataclass
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

Column = Literal["word", "count", "probability", "self_information", "information_gain"]
SHOWN = 10  # rows of a printed table
LABELLED = 12  # words named in a plot


@dataclass(frozen=True, repr=False)
class InformationTable:
    """One row per word, the most frequent first; all information in nats (natural logarithm).

    Columns: `word`; `count`; `probability` P(w) = count / tokens; `self_information` -log P(w);
    `information_gain` KL(P(.|w) || P(.)), NaN for a word that never has company.

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
        rows = self.arrow.slice(0, SHOWN).to_pylist()
        width = max([4, *(len(str(row["word"])) for row in rows)])
        lines = [head, f"{'word':<{width}} {'count':>12} {'self-information':>17} {'gain':>9}"]
        lines += [
            f"{row['word']!s:<{width}} {row['count']:>12,} {row['self_information']:>17.3f} "
            f"{row['information_gain']:>9.4f}"
            for row in rows
        ]
        return "\n".join(lines + (["..."] if len(self) > SHOWN else []))

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
            name: word, count, probability, self_information or information_gain.

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
        if rows < 0 or by == "word":
            raise ValueError(
                f"top: expected rows >= 0 and a column of numbers, got {rows}, {by!r}."
            )
        values = self.column(by)
        order = np.argsort(-values, kind="stable")
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

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Information gain against self-information, one dot a word; needs matplotlib.

        Args:
            ax: where to draw; a new figure by default.

        Returns:
            The axes, with the words of the largest information gain and count named.
        """
        if ax is None:
            from matplotlib import pyplot as plt  # noqa: PLC0415 - slow, and not always installed

            ax = plt.subplots(figsize=(7, 5))[1]
        ax.scatter(self.column("self_information"), self.column("information_gain"), s=4, alpha=0.4)
        for row in (*self.head(LABELLED).arrow.to_pylist(), *self.top(LABELLED).arrow.to_pylist()):
            if np.isfinite(row["information_gain"]):
                place = (row["self_information"], row["information_gain"])
                ax.annotate(str(row["word"]), place, fontsize=7)
        ax.set_xlabel("self-information -log P(w) [nats]")
        ax.set_ylabel("information gain KL(P(.|w) || P) [nats]")
        ax.set_title(f"{len(self):,} words, {self.tokens:,} tokens")
        return ax
