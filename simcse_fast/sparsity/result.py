"""What `sparsify` found: the smaller model, the scores behind it, and how it compares."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.files import written_whole
from simcse_fast.sparsity.embedder import Embedder
from simcse_fast.sparsity.selection import Selection

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from simcse_fast.sparsity.sweep import Measure, Method
    from simcse_fast.training import TrainingResult


@dataclass(frozen=True)
class Sparsified:
    """A model without its least useful parameters.

    Attributes:
        model: of the kind that was given; a normal one, see `save`.
        sparsity: share that was asked for, or did best.
        scores: of each kind of unit, (layers, units); of weights, one tensor a matrix.
        selection: what stays, True, like scores; of units as `.heads` and `.neurons`.
        curve: a row for each sparsity and criterion: Spearman x 100, alignment and uniformity on
            the development pairs, and Spearman on the test pairs.
        method: how parameters were scored and removed.
        retraining: how the model was trained afterwards.
        retrained_scores: what it came to, as a row of the curve.
    """

    model: Any
    sparsity: float
    scores: Any
    selection: Any
    curve: list[dict[str, Any]]
    method: Method
    retraining: TrainingResult | None = None
    retrained_scores: dict[str, float] | None = None

    @property
    def removed(self) -> dict[str, float]:
        """Share of each kind of unit, or of the weights, that is gone."""
        if isinstance(self.selection, Selection):
            kinds = getattr(self.method, "kinds", ())
            return {kind: share for kind, share in self.selection.removed.items() if kind in kinds}
        kept = sum(int(mask.sum()) for mask in self.selection)
        return {"weights": 1 - kept / sum(mask.numel() for mask in self.selection)}

    @property
    def notes(self) -> tuple[str, ...]:
        """How what is gone is stored, a sentence each."""
        if not isinstance(self.selection, Selection):
            return ("Weights that are gone are zeros; matrices keep their shapes.",)
        notes = []
        widths, before = self.selection.widths, self.selection.neurons.shape[1]
        if (gone := before - max(widths)) > 0:
            notes.append(f"All feed-forward layers are {gone:,} neurons narrower, {max(widths):,}.")
        if zeros := sum(max(widths) - width for width in widths):
            notes.append(
                f"{zeros:,} neurons are zeros, as all layers of such a model have one width; "
                'allocation="layer" avoids them.'
            )
        if gone := sum(self.selection.heads.shape[1] - n for n in self.selection.head_counts):
            notes.append(
                f"{gone} heads are zeros where they were, as such a model's heads divide its width."
            )
        return tuple(notes)

    def apply(self, model: Any) -> Any:
        """A copy of another model of the same shape, without the same units or weights."""
        smaller = copy.deepcopy(model)
        self.method.apply(Embedder(smaller).transformer, self.selection)
        return smaller

    def retrained(self, training: TrainingResult, measures: dict[str, Measure]) -> Sparsified:
        """The same after training."""
        found: dict[str, float] = {}
        if measures:
            embedder = Embedder(training.model)
            with embedder.frozen():
                found = measures["development"](embedder)
                if "test" in measures:
                    found["test_spearman"] = measures["test"](embedder)["spearman"]
        return replace(
            self, model=training.model, retraining=training, retrained_scores=found or None
        )

    def save(self, folder: str | Path) -> None:
        """Save the model as its own library does; that library alone loads it again."""
        if isinstance(self.model, tuple):
            for part in self.model:
                part.save_pretrained(folder)
        else:
            self.model.save(str(folder), create_model_card=False)

    def summary(self) -> dict[str, Any]:
        """Everything but tensors, for JSON."""
        found = {
            "sparsity": self.sparsity,
            "removed": self.removed,
            "notes": list(self.notes),
            "curve": self.curve,
        }
        if isinstance(self.selection, Selection):
            found |= {"widths": self.selection.widths, "heads": self.selection.head_counts}
        if self.retrained_scores is not None:
            found["retrained"] = self.retrained_scores
        return found

    def to_dataframe(self) -> pd.DataFrame:
        """The curve, a row for each sparsity and criterion."""
        import pandas as pd  # noqa: PLC0415 - not always installed

        return pd.DataFrame(self.curve)

    def plot(self) -> Figure:
        """Spearman, alignment and uniformity against sparsity, beside the other criteria."""
        from simcse_fast.sparsity.plots import plot_curve  # noqa: PLC0415 - matplotlib

        return plot_curve(self)

    def plot_scores(self) -> Figure:
        """How scores are distributed in each layer, and what of them was removed."""
        from simcse_fast.sparsity.plots import plot_scores  # noqa: PLC0415 - matplotlib

        return plot_scores(self)

    def report(self, folder: str | Path) -> Path:
        """Write report.html with plots and tables, and report.json, into a folder.

        Returns:
            The page.
        """
        from simcse_fast.sparsity.page import page  # noqa: PLC0415 - matplotlib

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(folder / "report.json") as unfinished:
            unfinished.write_text(json.dumps(self.summary(), indent=1) + "\n", encoding="utf-8")
        with written_whole(folder / "report.html") as unfinished:
            unfinished.write_text(page(self), encoding="utf-8")
        return folder / "report.html"
