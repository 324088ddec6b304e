"""Run under torchrun by tests: both kinds of models on two processes, their losses to a file."""

import json
import sys
from pathlib import Path

import torch
from train_models import sentences, triplets, weights_hash

from simcse_fast import train

OPTIONS = {"batch_size": 21, "steps": 5, "device": "cpu", "save_steps": 3}
RUNS = {
    # Sentences enough for an epoch and a half, some twice.
    "static": {"unsupervised": [*sentences(60), *sentences(5)], "learning_rate": 1e-2},
    "bert": {"triplets": triplets(70), "learning_rate": 1e-3, "pooling": "avg"},
    "masked": {"unsupervised": sentences(65), "learning_rate": 1e-3, "mlm_weight": 0.5},
}


def main(folder: Path) -> dict:
    """Train each; every process returns the same."""
    told = {}
    for name, options in RUNS.items():
        output = folder / f"out-{name}"
        result = train(str(folder / name), output=output, **OPTIONS, **options)
        history = result.history
        told[name] = {"losses": history.losses, "weights": weights_hash(result.model)}
        told[name] |= {"duplicates": history.duplicates, "real": history.real_tokens}
        told[name] |= {"mlm_losses": history.mlm_losses}
        told[name] |= {"padded": history.padded_tokens, "sentences": history.sentences}
        again = train(str(folder / name), output=output, resume=True, **OPTIONS, **options)
        told[name]["resumed"] = weights_hash(again.model)
    return told


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    told = main(folder)
    rank = torch.distributed.get_rank()
    (folder / f"rank-{rank}.json").write_text(json.dumps(told), encoding="utf-8")
