"""SparseCSE on all-MiniLM-L6-v2: python -m benchmarks.bench_sparsity [PART ...].

Parts: scoring (time beside a plain loop), ablation (scores against the truth), sweep (STS against
sparsity), encoding (throughput of smaller models), retraining. Needs ../shared/data/sts, and
nli_triplets.tsv for the last.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from benchmarks import harness
from benchmarks.training_data import minilm_folder
from simcse_fast import alignment, sparsify, uniformity
from simcse_fast.sparsity.ablation import Unit, ablate
from simcse_fast.sparsity.calibration import Scored, calibration_of
from simcse_fast.sparsity.embedder import Embedder
from simcse_fast.sparsity.layouts import Units, units_of
from simcse_fast.sparsity.masks import masked
from simcse_fast.sparsity.scores import LOSSES, Scores, score
from simcse_fast.sparsity.structured import Structured
from simcse_fast.sparsity.sweep import OURS, best, sweep

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
STS = {part: DATA / "sts" / f"stsb_{part}.tsv" for part in ("train", "dev", "test")}
LEVELS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
FEW_LEVELS = (0.01, 0.05, 0.1, 0.3)
BOTH = ("heads", "neurons")
VARIANTS = {  # kinds, allocation, aggregate; balance
    "gradient of the set": ((BOTH, "global", "total"), 0.5),
    "heads alone": ((("heads",), "global", "absolute"), 0.5),
    "neurons alone": ((("neurons",), "global", "absolute"), 0.5),
    "each layer alike": ((BOTH, "layer", "absolute"), 0.5),
    "alignment alone": ((BOTH, "global", "absolute"), 1.0),
    "uniformity alone": ((BOTH, "global", "absolute"), 0.0),
}
SMALL = 0.2  # sparsities up to here are small
OURS_NAME = "simcse_fast"
PAIRS = 500  # of the development part, whose sentences they are removed on
NEURONS = 120  # that are removed one by one, besides all heads
RECIPE = {"epochs": 1, "batch_size": 128, "learning_rate": 3e-5, "seed": 0}


def model() -> SentenceTransformer:
    """all-MiniLM-L6-v2."""
    return SentenceTransformer(minilm_folder(), device="cpu").eval()


def plain_loop(embedder: Embedder, units: Units, pairs: Scored) -> None:
    """Scores as they are often written: 64 pairs at a time, the losses of the batch."""
    masks = [torch.ones(units.heads, requires_grad=True) for _ in units.layers]
    masks += [torch.ones(units.neurons, requires_grad=True) for _ in units.layers]
    sums = {loss: [torch.zeros_like(mask) for mask in masks] for loss in LOSSES}
    half = len(units.layers)
    for begin in range(0, len(pairs.first), 64):
        with masked(units, masks[:half], masks[half:]):
            x = embedder(pairs.first[begin : begin + 64])
            y = embedder(pairs.second[begin : begin + 64])
        values = {"alignment": alignment(x, y), "uniformity": uniformity(torch.cat([x, y]))}
        for loss, value in values.items():
            value.backward(retain_graph=loss != LOSSES[-1])
            for total, mask in zip(sums[loss], masks, strict=True):
                total.add_(mask.grad.abs())
                mask.grad = None
    for parameter in embedder.transformer.parameters():
        parameter.grad = None


def measure_scoring() -> dict[str, Any]:
    """For the 1,500 pairs of STS-B's development part."""
    data, pairs = calibration_of(STS["dev"], 4)
    embedder = Embedder(model())
    units = units_of(embedder.transformer)

    def frozen() -> None:
        with embedder.frozen():
            plain_loop(embedder, units, pairs)

    steps = {
        OURS_NAME: lambda: score(embedder, units, data, progress=False),
        "plain loop": lambda: plain_loop(embedder, units, pairs),
        "plain loop, parameters frozen": frozen,
    }
    times = harness.interleaved(steps, seconds=30, least=3)
    return {
        "part": "scoring",
        "sentences": len(data.texts),
        "ms": {name: harness.summary(values) for name, values in times.items()},
        "speed_up": {
            name: round(harness.speed_up(values, times[OURS_NAME]), 2)
            for name, values in times.items()
        },
    }


def measure_ablation() -> dict[str, Any]:
    """Rank correlation of -dL/dxi with L(xi = 0) - L(xi = 1), unit by unit."""
    scored = calibration_of(STS["dev"], 4)[1]
    rows = list(zip(scored.first, scored.second, scored.scores, strict=True))
    some = random.Random(0).sample(rows, PAIRS)  # noqa: S311  # not for secrets
    data, _ = calibration_of(some, 4)
    embedder = Embedder(model())
    units = units_of(embedder.transformer)
    scores = score(embedder, units, data, progress=False)
    layers = range(len(units.layers))
    chosen = [Unit("heads", layer, head) for layer in layers for head in range(units.heads)]
    draw = random.Random(0)  # noqa: S311  # not for secrets
    every = [Unit("neurons", layer, n) for layer in layers for n in range(units.neurons)]
    chosen += draw.sample(every, NEURONS)
    begin = time.perf_counter()
    changes = ablate(embedder, units, data, chosen, progress=True)
    seconds = time.perf_counter() - begin
    return {
        "part": "ablation",
        "sentences": len(data.texts),
        "units": {"heads": units.heads * len(units.layers), "neurons": NEURONS},
        "seconds": round(seconds, 1),
        "spearman": {loss: correlations(scores, chosen, changes, loss) for loss in LOSSES},
    }


def correlations(
    scores: Scores, chosen: list[Unit], changes: list[dict[str, float]], loss: str
) -> dict[str, float]:
    """Of all units, of heads and of neurons; of signed changes and of their sizes."""
    from scipy.stats import spearmanr  # noqa: PLC0415 - slow

    found = {}
    for name in ("all", "heads", "neurons"):
        some = [n for n, unit in enumerate(chosen) if name in {"all", unit.kind}]
        predicted = [
            -float(getattr(scores, chosen[n].kind)[loss].total[chosen[n].layer, chosen[n].index])
            for n in some
        ]
        actual = [changes[n][loss] for n in some]
        found[name] = round(float(spearmanr(predicted, actual)[0]), 4)
        sizes = [abs(x) for x in predicted], [abs(x) for x in actual]
        found[f"{name}, sizes"] = round(float(spearmanr(*sizes)[0]), 4)
    return found


def measure_sweep() -> dict[str, Any]:
    """Scored on STS-B's training part, chosen on its development part, reported on its test."""
    begin = time.perf_counter()
    whole = sparsify(
        model(), STS["train"], sparsity=LEVELS, development=STS["dev"], test=STS["test"]
    )
    variants = {}
    for name, (options, balance) in VARIANTS.items():
        method = whole.method
        scores = whole.scores
        if isinstance(method, Structured):
            kinds, allocation, aggregate = options
            gradients, embedder = method.gradients, method.embedder
            method = Structured(embedder, None, kinds, allocation, aggregate)
            scores = {kind: gradients.combined(kind, balance, aggregate) for kind in kinds}
        variants[name] = sweep(
            *(method, scores, FEW_LEVELS, whole.measures), compare=(), seeds=1, progress=False
        )
        print(name, [round(row["spearman"], 2) for row in variants[name]], flush=True)
    single = sparsify(
        *(model(), STS["train"]), sparsity=FEW_LEVELS, units="weights", compare=("magnitude",),
        development=STS["dev"], test=STS["test"],
    )  # fmt: skip
    variants["single weights"] = [
        r for r in single.curve if r["criterion"] == OURS and r["sparsity"]
    ]
    chosen = best([row for row in whole.curve if 0 < row["sparsity"] <= SMALL])
    ours = {row["sparsity"]: row for row in whole.curve if row["criterion"] == OURS}
    return {
        "part": "sweep",
        "seconds": round(time.perf_counter() - begin, 1),
        "dense": ours[0.0],
        "chosen": ours[chosen],
        "curve": whole.curve,
        "single weights": single.curve,
        "variants": variants,
    }


def measure_encoding() -> dict[str, Any]:
    """Sentences a second of smaller models, beside the dense one, and their differences."""
    texts = calibration_of(STS["dev"], 4)[0].texts[:1000]
    dense = model()
    models = {"dense": dense}
    share = {"dense": 1.0}
    rows = []
    for level in (0.25, 0.5, 0.75):
        found = sparsify(
            *(dense, STS["dev"]), sparsity=level, units=["neurons"], allocation="layer", compare=()
        )
        with tempfile.TemporaryDirectory() as folder:
            found.save(folder)
            loaded = SentenceTransformer(folder, device="cpu")
            difference = abs(loaded.encode(texts[:64]) - found.model.encode(texts[:64])).max()
        models[f"{level:g}"] = loaded
        linears = [m for m in loaded[0].model.encoder.modules() if isinstance(m, torch.nn.Linear)]
        before = [m for m in dense[0].model.encoder.modules() if isinstance(m, torch.nn.Linear)]
        numbers = sum(m.weight.numel() for m in linears) / sum(m.weight.numel() for m in before)
        share[f"{level:g}"] = round(numbers, 4)
        rows.append({"sparsity": level, "difference": float(difference)})
    steps = {name: lambda one=one: one.encode(texts, batch_size=64) for name, one in models.items()}
    times = harness.interleaved(steps, seconds=30, least=5)
    return {
        "part": "encoding",
        "sentences": len(texts),
        "ms": {name: harness.summary(values) for name, values in times.items()},
        "speed_up": {
            name: round(harness.speed_up(times["dense"], values), 3)
            for name, values in times.items()
        },
        "share_of_products": share,
        "reloaded": rows,
    }


def measure_retraining() -> dict[str, Any]:
    """Small and large sparsities, trained on triplets; the dense model alike."""
    levels = (0.0, 0.05, 0.15, 0.3)  # 15 %: the best small one of the sweep
    base = sparsify(
        *(model(), STS["train"]),
        sparsity=levels[1:],
        development=STS["dev"],
        test=STS["test"],
        compare=(),
    )
    rows = []
    for level in levels:
        selection = base.method.select(base.scores, level)
        smaller = model()
        base.method.apply(smaller[0].model, selection)
        one = replace(base, model=smaller, sparsity=level, selection=selection)
        with tempfile.TemporaryDirectory() as folder:
            found = one.retrain(**RECIPE, triplets=DATA / "nli_triplets.tsv", output=folder)
        before = next(row for row in base.curve if row["sparsity"] == level)
        rows.append({"sparsity": level, "before": before, "after": found.retrained_scores})
        print(rows[-1], flush=True)
    return {"part": "retraining", "recipe": RECIPE | {"triplets": "nli_triplets.tsv"}, "rows": rows}


PARTS = {
    "scoring": measure_scoring,
    "ablation": measure_ablation,
    "sweep": measure_sweep,
    "encoding": measure_encoding,
    "retraining": measure_retraining,
}


def main() -> None:
    """Measure and save."""
    torch.set_num_threads(min(torch.get_num_threads(), 2))
    for name in sys.argv[1:] or PARTS:
        row = PARTS[name]()
        print(row, flush=True)
        print(harness.save(f"sparsity-{name}-cpu-{harness.machine()}", [row]), flush=True)


if __name__ == "__main__":
    main()
