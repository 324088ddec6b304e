"""A small ablation for the tests: models, texts, and the call."""

from pathlib import Path

from train_models import save_bert, save_static, scored_pairs, sentences, triplets, write_lines

from simcse_fast import ablate
from simcse_fast.ablations.result import Ablation


def files(folder: Path) -> dict[str, Path]:
    """Models and texts."""
    return {
        "folder": folder,
        "bert": save_bert(folder / "bert"),
        "static": save_static(folder / "static"),
        "text": write_lines(folder / "text.txt", sentences(100)),
        "triplets": write_lines(folder / "triplets.tsv", triplets(60)),
        "pairs": write_lines(folder / "pairs.tsv", scored_pairs(40, seed=3)),
    }


def ablated(given: dict[str, Path], output: Path, model: str = "static", **options) -> Ablation:
    """Two seeds of each temperature, two steps each, unless told otherwise."""
    fixed = {"development": given["pairs"], "vary": "temperature", "seeds": 2, "steps": 2}
    fixed |= {"batch_size": 16, "device": "cpu", "sentences": given["text"], "output": output}
    return ablate(given[model], **(fixed | options))
