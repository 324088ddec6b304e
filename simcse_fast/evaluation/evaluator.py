"""Alignment and uniformity while sentence-transformers trains."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from simcse_fast.encoding import encode
from simcse_fast.evaluation.space import ALIKE, distinct, positives
from simcse_fast.metrics import alignment, uniformity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

METRICS = ("alignment", "uniformity", "alignment_uniformity")


class AlignmentUniformityEvaluator(SentenceEvaluator):  # type: ignore[misc]
    """How near positive pairs are, and how evenly distinct sentences are spread.

    The metrics are alignment (mean |x - y|^2 of the positive pairs), uniformity (log mean
    exp(-2 |x - y|^2) over all pairs of distinct sentences) and, to choose a checkpoint by, their
    sum alignment_uniformity; all on unit embeddings, and for all lower is better.

    Args:
        sentences1: N first sentences.
        sentences2: N second sentences.
        scores: (N,) how alike they are; None: all pairs are positive.
        positive_above: pairs with a higher score are positive; 4, as SimCSE has it for scores from
            0 to 5.
        name: before the metrics' names, and in the file's.
        batch_size: sentences at once.
        show_progress_bar: on a terminal.
        write_csv: add a line to a file in the folder that the trainer gives.

    Raises:
        ValueError: the lengths differ, or no pair is positive.

    Reference: Wang and Isola 2020, arXiv 2005.10242.
    """

    def __init__(
        self,
        sentences1: Sequence[str],
        sentences2: Sequence[str],
        scores: Sequence[float] | None = None,
        *,
        positive_above: float = ALIKE,
        name: str = "",
        batch_size: int = 32,
        show_progress_bar: bool = False,
        write_csv: bool = True,
    ) -> None:
        super().__init__()
        lengths = {"sentences1": len(sentences1), "sentences2": len(sentences2)}
        if scores is not None:
            lengths["scores"] = len(scores)
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{argument} {count}" for argument, count in lengths.items())
            raise ValueError(f"sentences2: expected as many as sentences1 and scores, got {told}.")
        if scores is None:
            self.positives = [list(sentences1), list(sentences2)]
        else:
            self.positives = positives(sentences1, sentences2, scores, positive_above)
        if not self.positives[0]:
            raise ValueError(
                f"scores: expected one or more above positive_above {positive_above:g}, got none "
                f"of {len(sentences1)}."
            )
        self.sentences = distinct([*sentences1, *sentences2])
        if len(self.sentences) < 2:  # noqa: PLR2004 - a pair
            raise ValueError("sentences1: expected two or more distinct sentences, got one.")
        self.name, self.batch_size = name, batch_size
        self.show_progress_bar, self.write_csv = show_progress_bar, write_csv
        self.csv_file = f"alignment_uniformity_evaluation{'_' if name else ''}{name}_results.csv"
        self.csv_headers = ["epoch", "steps", *METRICS]
        self.primary_metric = METRICS[-1]
        self.greater_is_better = False

    def __call__(
        self,
        model: SentenceTransformer,
        output_path: str | None = None,
        epoch: int = -1,
        steps: int = -1,
    ) -> dict[str, float]:
        """The metrics of a model, under names that begin with that of the evaluator."""
        embeddings = torch.from_numpy(
            encode(
                model, self.sentences, batch_size=self.batch_size, progress=self.show_progress_bar
            )
        )
        places = {text: place for place, text in enumerate(self.sentences)}
        x, y = (embeddings[[places[text] for text in side]] for side in self.positives)
        found = {"alignment": float(alignment(x, y)), "uniformity": float(uniformity(embeddings))}
        found["alignment_uniformity"] = sum(found.values())
        logger.info("%s: %s", self.name or self.description, found)
        if output_path is not None and self.write_csv:
            self._write(Path(output_path), [epoch, steps, *found.values()])
        metrics: dict[str, float] = self.prefix_name_to_metrics(found, self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics

    def _write(self, folder: Path, row: list[float]) -> None:
        """One line more, below the names of the columns."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.csv_file
        new = not path.is_file()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([self.csv_headers, row] if new else [row])

    @property
    def description(self) -> str:
        """Of the model card."""
        return "Alignment and Uniformity"

    def get_config_dict(self) -> dict[str, Any]:
        """Of the model card."""
        return {"pairs": len(self.positives[0]), "sentences": len(self.sentences)}
