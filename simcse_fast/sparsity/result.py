"""What `sparsify` found: the smaller model, the scores behind it, and how it compares."""

from __future__ import annotations

import copy
import errno
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from simcse_fast.files import for_json, written_whole
from simcse_fast.sparsity.ablation import check_predictions
from simcse_fast.sparsity.embedder import Embedder
from simcse_fast.sparsity.removal import width_of
from simcse_fast.sparsity.selection import Selection
from simcse_fast.sparsity.structured import Structured
from simcse_fast.training import train

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from simcse_fast.sparsity.sweep import Measure, Method
    from simcse_fast.training import TrainingResult

LEARNING_RATE = 3e-5  # of retraining


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
        measures: what models were judged by.
        retraining: how the model was trained afterwards.
        retrained_scores: what it came to, as a row of the curve.
    """

    model: Any
    sparsity: float
    scores: Any
    selection: Any
    curve: list[dict[str, Any]]
    method: Method
    measures: dict[str, Measure]
    retraining: TrainingResult | None = None
    retrained_scores: dict[str, float] | None = None

    @property
    def removed(self) -> dict[str, float]:
        """Share of each kind of unit, or of the weights, that is gone."""
        return self.method.removed(self.selection)

    @property
    def notes(self) -> tuple[str, ...]:
        """How what is gone is stored, a sentence each."""
        if not isinstance(self.selection, Selection):
            return ("Weights that are gone are zeros; matrices keep their shapes.",)
        notes = []
        width, before = width_of(self.selection), self.selection.neurons.shape[1]
        if width < before:
            notes.append(f"All feed-forward layers have {width:,} neurons instead of {before:,}.")
        if zeros := sum(width - kept for kept in self.selection.widths):
            notes.append(
                f"{zeros:,} of these are zeros, as all layers of such a model have one width; "
                'allocation="layer" avoids them.'
            )
        if gone := int((~self.selection.heads).sum()):
            notes.append(
                f"{gone} of {self.selection.heads.numel()} heads are zeros and stay in place: the "
                "width of such a model is that of all its heads."
            )
        return tuple(notes)

    def apply(self, model: Any) -> Any:
        """A copy of another model of the same shape, without the same units or weights."""
        smaller = copy.deepcopy(model)
        self.method.apply(Embedder(smaller).transformer, self.selection)
        return smaller

    def retrain(self, **arguments: Any) -> Sparsified:
        """Train the smaller model; what is gone stays away.

        Args:
            arguments: of `simcse_fast.train`; the learning rate is 3e-5 by default.

        Returns:
            The same with the trained model, and what it scores.
        """
        training = train(self.model, **{"learning_rate": LEARNING_RATE, **arguments})
        found: dict[str, float] = {}
        if self.measures:
            embedder = Embedder(training.model)
            with embedder.frozen():
                found = self.measures["development"](embedder)
                if "test" in self.measures:
                    found["test_spearman"] = self.measures["test"](embedder)["spearman"]
        return replace(
            self, model=training.model, retraining=training, retrained_scores=found or None
        )

    def check(self, units: int = 100, *, seed: int = 0, progress: bool = True) -> dict[str, Any]:
        """Remove some units of the model that was scored, each by itself, and see.

        Args:
            units: how many; half of them heads, as far as there are.
            seed: of the draw.
            progress: show a bar on a terminal.

        Returns:
            "alignment" and "uniformity": Spearman's correlation of the prediction -dL/dxi, not
            normalised, with L(xi = 0) - L(xi = 1); "units": how many of each kind.

        Raises:
            TypeError: single weights were removed, not units.
        """
        if not isinstance(self.method, Structured):
            raise TypeError("check: is for heads and neurons; single weights were removed.")
        return check_predictions(self.method, units, seed, progress=progress)

    def save(self, folder: str | Path) -> None:
        """Save the model as its own library does; that library alone loads it again.

        Raises:
            OSError: it cannot be written; what was in the folder is still there.
        """
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not folder.is_dir():
            raise OSError(errno.ENOTDIR, "no folder", str(folder))
        with TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as unfinished:
            try:
                if isinstance(self.model, tuple):
                    for part in self.model:
                        part.save_pretrained(unfinished)
                else:
                    self.model.save(unfinished, create_model_card=False)
            except SafetensorError as error:
                raise OSError(errno.EIO, str(error), str(folder)) from error
            if folder.exists():
                shutil.rmtree(folder)
            Path(unfinished).rename(folder)
            Path(unfinished).mkdir()  # for what removes it

    def summary(self) -> dict[str, Any]:
        """Everything but tensors, for JSON."""
        found = {
            "sparsity": self.sparsity,
            "removed": self.removed,
            "notes": list(self.notes),
            "curve": for_json(self.curve),
        }
        if isinstance(self.selection, Selection):
            found |= {"widths": self.selection.widths, "heads": self.selection.head_counts}
        if self.retrained_scores is not None:
            found["retrained"] = for_json(self.retrained_scores)
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
