"""What a study found, and how it is shown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.files import for_json, written_whole

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from simcse_fast.information import InformationTable
    from simcse_fast.studies.options import Options
    from simcse_fast.studies.points import Points


@dataclass(frozen=True)
class Study:
    """Regressions of word weights on what a corpus tells of the words.

    Attributes:
        rows: a regression each: set, method, level ("occurrence" or "word"), quantity, band of
            counts, encoder ("before", "after", or "change" for the difference), points, clusters
            (sentences, or words), r_squared, beta (relative weight per nat) with beta_error,
            spearman, partial_r_squared (given self-information), each with `_low` and `_high` of
            the 95 % interval; or `note`, why there is none.
        points: behind them, by set and method.
        table: of the corpus.
        options: of the study.
        encoders: names by "before" and "after".
        sentences: by set and method, in the order that `points` counts.
        seconds: what attributions took, those aside that were there before.
    """

    rows: list[dict[str, Any]]
    points: dict[tuple[str, str], Points]
    table: InformationTable
    options: Options
    encoders: dict[str, str]
    sentences: dict[tuple[str, str], list[str]]
    seconds: list[dict[str, Any]]

    @property
    def coverage(self) -> list[dict[str, Any]]:
        """Of each set and method: words, those known to the corpus, those that became points."""
        return [
            {"set": name, "method": method, **asdict(found.coverage)}
            | {"unknown_share": found.coverage.unknown_share}
            for (name, method), found in self.points.items()
        ]

    @property
    def static(self) -> bool:
        """Whether the encoders are static ones."""
        return not self.sentences

    def select(self, **wanted: Any) -> list[dict[str, Any]]:
        """Rows with these values.

        Args:
            wanted: column and value, as in `select(method="ig", band="all")`.
        """
        return [row for row in self.rows if all(row[name] == v for name, v in wanted.items())]

    def summary(self) -> dict[str, Any]:
        """Everything but the points, for JSON."""
        return {
            "encoders": self.encoders,
            "options": asdict(self.options),
            "corpus": {
                "tokens": self.table.tokens,
                "sentences": self.table.sentences,
                "words": len(self.table),
            },
            "sentences": {f"{n}, {m}": len(texts) for (n, m), texts in self.sentences.items()},
            "coverage": self.coverage,
            "seconds": self.seconds,
            "rows": for_json(self.rows),
        }

    def to_dataframe(self) -> pd.DataFrame:
        """All rows; needs pandas."""
        import pandas as pd  # noqa: PLC0415 - not always installed

        return pd.DataFrame(self.rows)

    def points_dataframe(self) -> pd.DataFrame:
        """All points: set, method, sentence, word, count, its information, weights by encoder."""
        from simcse_fast.studies.tables import points_frame  # noqa: PLC0415 - pandas

        return points_frame(self)

    def to_markdown(self) -> str:
        """Before and after, all words: a table for each level."""
        from simcse_fast.studies.tables import markdown  # noqa: PLC0415 - as the others

        return markdown(self)

    def plot(self, name: str | None = None, method: str | None = None) -> Figure:
        """Words' mean weights against information with the line through them, before and after.

        Args:
            name: of the set of sentences; the first by default.
            method: the first of the study by default.

        Returns:
            A matplotlib figure; pyplot does not know it.

        Raises:
            ValueError: there is no such set or method.
        """
        from simcse_fast.studies.plots import plot_scatter  # noqa: PLC0415 - matplotlib

        return plot_scatter(self, name, method)

    def plot_bars(self) -> Figure:
        """R squared of every set and method, before and after, with its interval."""
        from simcse_fast.studies.plots import plot_bars  # noqa: PLC0415 - matplotlib

        return plot_bars(self)

    def report(self, folder: str | Path) -> Path:
        """Write report.html, table.csv, table.md, study.json, points.parquet and plots.

        Args:
            folder: made if it is not there; files of an earlier report are replaced.

        Returns:
            The page.

        Raises:
            OSError: the folder cannot be written.
        """
        from simcse_fast.studies.page import page  # noqa: PLC0415 - matplotlib

        figures = {f"scatter-{'-'.join(place)}": self.plot(*place) for place in self.points}
        figures["bars"] = self.plot_bars()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            "study.json": json.dumps(self.summary(), indent=1) + "\n",
            "table.csv": self.to_dataframe().to_csv(index=False),
            "table.md": self.to_markdown(),
            "report.html": page(self, figures),
        }
        for name, text in texts.items():
            with written_whole(folder / name) as unfinished:
                unfinished.write_text(text, encoding="utf-8")
        with written_whole(folder / "points.parquet") as unfinished:
            self.points_dataframe().to_parquet(unfinished, index=False)
        for name, figure in figures.items():
            for kind in ("png", "svg"):
                with written_whole(folder / f"{name}.{kind}") as unfinished:
                    figure.savefig(unfinished, format=kind, dpi=150, metadata=METADATA[kind])
        return folder / "report.html"


# Nothing that changes from run to run.
METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}}
