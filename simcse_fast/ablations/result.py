"""What `ablate` found: a row for each configuration and seed, their means, tables and plots."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from simcse_fast.ablations.store import write
from simcse_fast.files import written_whole

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

MEASURES = {  # and their decimals
    "development": 2,
    "test": 2,
    "alignment": 4,
    "uniformity": 4,
    "loss": 4,
    "seconds": 1,
}
LONG = ("options", "losses", "trajectory")  # what a table has no room for


@dataclass(frozen=True)
class Ablation:
    """All runs of an ablation.

    Attributes:
        rows: one for each configuration and seed: "group", "configuration", "seed", "development"
            and "test" (Spearman x 100), "alignment" and "uniformity" of the development pairs,
            "loss" (mean of the last ten steps), "seconds" (of training steps), "trajectory".
            A score that is not defined is None.
        notes: what a person should know, a sentence each.
        folder: where tables and plots are.
    """

    rows: list[dict[str, Any]]
    notes: tuple[str, ...]
    folder: Path

    def summary(self) -> list[dict[str, Any]]:
        """Of each configuration the mean and the standard deviation over its seeds.

        Measure m is under "m" and, with n - 1 in the denominator, "m_deviation"; None where it is
        not defined. "runs" are the seeds.
        """
        members: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in self.rows:
            members.setdefault((row["group"], row["configuration"]), []).append(row)
        found = []
        for (group, configuration), rows in members.items():
            one: dict[str, Any] = {"group": group, "configuration": configuration}
            one["runs"] = len(rows)
            for name in MEASURES:
                values = [row[name] for row in rows]
                known = [value for value in values if value is not None]
                whole = len(known) == len(values)
                one[name] = fmean(known) if whole else None
                one[f"{name}_deviation"] = stdev(known) if whole and len(known) > 1 else None
            found.append(one)
        return found

    def to_dataframe(self) -> pd.DataFrame:
        """The rows, without what is a list in them."""
        import pandas as pd  # noqa: PLC0415 - not always installed

        return pd.DataFrame([_short(row) for row in self.rows])

    def table(self) -> str:
        """The summary in Markdown: mean \u00b1 deviation."""
        summary = self.summary()
        names = [name for name in MEASURES if any(one[name] is not None for one in summary)]
        lines = [
            f"| group | configuration | {' | '.join(names)} |",
            f"|:--|:--{'|--:' * len(names)}|",
        ]
        for one in summary:
            cells = " | ".join(told(one, name) for name in names)
            label = one["configuration"].replace("|", "\\|")
            lines.append(f"| {one['group']} | {label} | {cells} |")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Scores by configuration, a panel a group: every seed, the mean and the deviation."""
        from simcse_fast.ablations.plots import plot_scores  # noqa: PLC0415 - matplotlib

        return plot_scores(self)

    def plot_trajectories(self) -> Figure | None:
        """Alignment against uniformity during training, a panel a group; None without any."""
        from simcse_fast.ablations.plots import plot_trajectories  # noqa: PLC0415 - matplotlib

        return plot_trajectories(self)

    def save(self) -> None:
        """Write results.json, table.csv, table.md, and the plots as SVG and PNG.

        Raises:
            OSError: one of them cannot be written.
        """
        summary = self.summary()
        write(
            self.folder / "results.json",
            {"notes": list(self.notes), "summary": summary, "rows": self.rows},
        )
        with (
            written_whole(self.folder / "table.csv") as unfinished,
            unfinished.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, list(summary[0]))
            writer.writeheader()
            writer.writerows(summary)
        with written_whole(self.folder / "table.md") as unfinished:
            unfinished.write_text(self.table() + "\n", encoding="utf-8")
        figures = {"scores": self.plot(), "trajectories": self.plot_trajectories()}
        for name, figure in figures.items():
            if figure is None:
                continue
            for ending in ("svg", "png"):
                with written_whole(self.folder / f"{name}.{ending}") as unfinished:
                    figure.savefig(unfinished, format=ending, dpi=150)


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: json.dumps(value) if name == "options" else value
        for name, value in row.items()
        if name not in LONG or name == "options"
    }


def told(one: dict[str, Any], name: str) -> str:
    """Mean and deviation of a measure in a summary's line, as people read it."""
    value, deviation, places = one[name], one[f"{name}_deviation"], MEASURES[name]
    if value is None:
        return "\u2013"
    return f"{value:.{places}f}" + ("" if deviation is None else f" \u00b1 {deviation:.{places}f}")
