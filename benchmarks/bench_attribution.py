"""Word weights beside captum, xsbert's way and shap: python -m benchmarks.bench_attribution.

Errors come first: of every method at every number of nodes, against 512 nodes of Gauss-Legendre or
against all coalitions, on the same sentences. Then the methods are timed, in interleaved rounds, at
the number of nodes or coalitions where their errors are alike.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import attribution_data, harness
from benchmarks.attribution_peers import Captum, Jacobians, kernel_shap, partition
from simcse_fast import integrated_gradients, shapley_values
from simcse_fast.kernels.path_integral.quadrature import RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Scores = Sequence[np.ndarray]

OURS, CAPTUM = "simcse_fast", "captum, one at a time"
NODES = {OURS: (5, 7, 9, 11, 12, 13, 15, 19, 23, 31)}
NODES[CAPTUM] = (8, 12, 16, 18, 20, 22, 24, 28, 32, 40, 50)
DEFAULT_NODES = 50  # captum's
TOLERANCE = 0.01
FEW_ROUNDS = 3  # of whatever does not decide
SAMPLES = (16, 20, 24, 32, 48, 64, 128, 256)
GEMM = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
ATTENTION = ("_Attention", "scaled_dot_product")  # ours and torch's


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    models: dict[str, int]  # and sentences of each
    reference: int  # nodes
    lengths: tuple[int, ...]
    vector_lengths: tuple[int, ...]
    corpus: int
    coalition_sentences: int
    rounds: dict[str, int]  # of each model


LENGTHS, SHORT = (8, 16, 32, 64, 128), (8, 16, 32)
FULL = Size(
    {"minilm": 60, "bert-base": 6}, 512, LENGTHS, SHORT, 2000, 20, {"minilm": 5, "bert-base": 3}
)
ON_GPU = Size(
    *({"minilm": 1000, "bert-base": 1000}, 512, LENGTHS, SHORT, 2000, 20),
    {"minilm": 5, "bert-base": 5},
)
REHEARSAL = Size({"tiny": 4}, 31, (8, 16), (8,), 12, 2, {"tiny": 1})


def errors(found: Scores, exact: Scores) -> np.ndarray:
    """Of each sentence: length of the difference over length of the scores."""
    pairs = zip(found, exact, strict=True)
    return np.array([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs])


def summary(values: np.ndarray) -> dict[str, float]:
    """Median and 95th percentile."""
    return {"median": float(np.median(values)), "p95": float(np.quantile(values, 0.95))}


def ours(model: Any, sentences: list[str], steps: int | str, **options: Any) -> Any:
    """Scores of tokens, as captum gives them."""
    return integrated_gradients(
        model, sentences, steps=steps, unit="token", progress=False, **options
    )


def seconds(call: Callable[[], object]) -> float:
    """Of one call, the device's work included."""
    begin = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def scalar(name: str, device: str, size: Size) -> dict[str, Any]:
    """Integrated Gradients of the cosine: errors by nodes, and times at equal errors."""
    model = attribution_data.encoder(name, device)
    sentences = attribution_data.sentences("dev", size.models[name])
    few = sentences[:: max(1, len(sentences) // 60)]  # captum's errors and times
    peer = Captum(model)
    exact = ours(model, few, size.reference, rule="gausslegendre").scores
    methods = {
        OURS: lambda nodes, texts=few: ours(model, texts, nodes).scores,
        CAPTUM: lambda nodes, texts=few: peer.one_at_a_time(texts, nodes),
    }
    curve = []
    for method, call in methods.items():
        for nodes in NODES[method]:
            found: list[Any] = []
            took = seconds(lambda call=call, nodes=nodes, into=found: into.append(call(nodes)))
            row = {"method": method, "nodes": nodes, "ms_per_sentence": 1e3 * took / len(few)}
            curve.append(row | summary(errors(found[0], exact)))
    automatic = ours(model, few, "auto")
    nodes95 = {method: reaching(curve, method, "p95") for method in methods}
    steps = {
        OURS: partial(methods[OURS], nodes95[OURS]),
        f"{OURS}, auto": partial(ours, model, few, "auto"),
        f"{OURS}, median 1 %": partial(methods[OURS], reaching(curve, OURS, "median")),
        CAPTUM: partial(methods[CAPTUM], nodes95[CAPTUM]),
        f"{CAPTUM}, default": partial(methods[CAPTUM], DEFAULT_NODES),
        "captum, batched": partial(peer.batched, few, nodes95[CAPTUM], 256),
        f"{CAPTUM}, our nodes": partial(methods[CAPTUM], nodes95[OURS]),
    }
    times = in_turn(steps, size.rounds[name])
    result = {
        "kind": "scalar",
        "encoder": name,
        "sentences": len(few),
        "tokens": statistics.mean(len(scores) for scores in exact),
        "nodes": nodes95 | {f"{OURS}, median 1 %": reaching(curve, OURS, "median")},
        "auto": {
            **summary(errors(automatic.scores, exact)),
            "estimated": summary(automatic.errors),
            "nodes": float(automatic.steps.mean()),
        },
        "curve": curve,
        "s": times,
        "speed_up": {
            name: round(harness.speed_up(values, times[OURS]), 3) for name, values in times.items()
        },
        "default_over_median": round(
            harness.speed_up(times[f"{CAPTUM}, default"], times[f"{OURS}, median 1 %"]), 3
        ),
        "batch_against_single": float(
            errors(
                [ours(model, [text], 12).scores[0] for text in few[:8]],
                ours(model, few, 12).scores[:8],
            ).max()
        ),
    }
    if device != "cpu":
        result["all_s"] = seconds(lambda: ours(model, sentences, nodes95[OURS]))
        result["all_sentences"] = len(sentences)
    return result


def reaching(curve: list[dict[str, Any]], method: str, measure: str) -> int:
    """The fewest nodes from which on the error stays below the tolerance."""
    rows = [row for row in curve if row["method"] == method]
    bad = [row["nodes"] for row in rows if row[measure] > TOLERANCE]
    good = [row["nodes"] for row in rows if row["nodes"] > max(bad, default=0)]
    return min(good, default=rows[-1]["nodes"])


def in_turn(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, in rounds of one call each in an order drawn anew."""
    timed = {name: partial(seconds, step) for name, step in steps.items()}
    random, times = np.random.default_rng(0), {name: [] for name in steps}
    for _ in range(rounds):
        for name in random.permutation(list(timed)):
            times[str(name)].append(round(timed[str(name)](), 5))
    return times


def by_length(name: str, device: str, size: Size) -> list[dict[str, Any]]:
    """Equal nodes on sentences of one length: what batching alone gains."""
    model = attribution_data.encoder(name, device)
    peer, rows = Captum(model), []
    for tokens in size.lengths:
        sentences = attribution_data.of_length(tokens, 4 if name == "bert-base" else 16)
        steps = {
            OURS: partial(ours, model, sentences, 12),
            CAPTUM: partial(peer.one_at_a_time, sentences, 12),
        }
        times = in_turn(steps, FEW_ROUNDS)
        ratio = round(harness.speed_up(times[CAPTUM], times[OURS]), 3)
        rows.append(
            {"kind": "length", "encoder": name, "tokens": tokens, "sentences": len(sentences)}
            | {"s": times, "speed_up": ratio}
        )
    return rows


def vectors(name: str, device: str, size: Size) -> list[dict[str, Any]]:
    """P at equal nodes: forward mode by hand, torch.func's, and D backward passes."""
    model, rows = attribution_data.encoder(name, device), []
    rule = RULES["midpoint"](15)
    nodes, weights = (
        torch.tensor(x, dtype=torch.float32, device=device) for x in vars(rule).values()
    )
    for tokens in size.vector_lengths:
        (sentence,) = attribution_data.of_length(tokens, 1)
        peer = Jacobians(model, sentence)
        options = {"target": "vector", "rule": "midpoint"}
        steps: dict[str, Callable[[], Any]] = {
            OURS: partial(ours, model, [sentence], 15, **options),
            "torch.func": partial(peer.by_vmap, nodes, weights),
            "D backward passes": partial(peer.by_backward_passes, nodes, weights),
        }
        exact = steps["D backward passes"]().cpu().numpy()
        times = in_turn(steps, FEW_ROUNDS)
        rows.append(
            {
                "kind": "vector",
                "encoder": name,
                "tokens": tokens,
                "s": times,
                "speed_up": {
                    peer: round(harness.speed_up(values, times[OURS]), 2)
                    for peer, values in times.items()
                },
                "apart": {
                    # Ours is calibrated; without that the rules are the same.
                    OURS: float(errors(steps[OURS]().vectors, [exact])[0]),
                    "torch.func": float(errors([steps["torch.func"]().cpu().numpy()], [exact])[0]),
                },
            }
        )
    if device == "cpu" and name == "minilm":
        rows[-1]["mib"] = {way: peak(way, size.vector_lengths[-1]) for way in ("ours", "vmap")}
    return rows


def peak(way: str, tokens: int) -> float:
    """MiB beyond the model, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.attribution_memory", way, str(tokens)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return round(float(run.stdout.split()[-1]), 1)


def coalitions(device: str, size: Size) -> dict[str, Any]:
    """Shapley values of 5 to 10 words: errors by coalitions, and times where they are alike."""
    model = attribution_data.encoder("minilm", device)
    sentences = attribution_data.of_whole_words(size.coalition_sentences, 5, 10)

    def run(texts: Any, samples: int | str) -> Any:
        return shapley_values(model, texts, samples=samples, progress=False)

    exact = run(sentences, "exact").scores
    curve = []
    for samples in SAMPLES:
        found = run(sentences, samples)
        told = summary(found.errors)
        curve.append({"samples": samples, "told": told} | summary(errors(found.scores, exact)))
    theirs = summary(errors([partition(model, text) for text in sentences], exact))
    alike = {
        measure: next(row["samples"] for row in curve if row[measure] <= theirs[measure])
        for measure in ("median", "p95")
    }
    steps = {
        OURS: partial(run, sentences, alike["median"]),
        f"{OURS}, one at a time": lambda: [run(text, alike["median"]) for text in sentences],
        f"{OURS}, equal 95th percentile": partial(run, sentences, alike["p95"]),
        "shap Partition": lambda: [partition(model, text) for text in sentences],
    }
    times = in_turn(steps, FEW_ROUNDS)
    return {
        "kind": "shapley",
        "sentences": len(sentences),
        "words": statistics.mean(map(len, exact)),
        "curve": curve,
        "partition": theirs,
        "kernel_shap": kernel(model, sentences, exact),
        "samples": alike,
        "s": times,
        "speed_up": {
            name: round(harness.speed_up(values, times[OURS]), 2) for name, values in times.items()
        },
        "partition_over_p95": round(
            harness.speed_up(times["shap Partition"], times[f"{OURS}, equal 95th percentile"]),
            2,
        ),
    }


def kernel(model: Any, sentences: list[str], exact: Scores) -> dict[int, dict[str, float]]:
    """Errors of shap's KernelExplainer on the same games."""
    found = {}
    for samples in (32, 64, 128):
        scores = []
        for text, values in zip(sentences, exact, strict=True):
            tokens = text.split()

            def game(sets: np.ndarray, tokens: list[str] = tokens, text: str = text) -> np.ndarray:
                texts = [
                    " ".join(t if s else "[MASK]" for t, s in zip(tokens, one, strict=True))
                    for one in sets
                ]
                embeddings = model.encode([text, *texts], convert_to_tensor=True)
                return (embeddings[1:] @ embeddings[0]).cpu().numpy()

            scores.append(kernel_shap(game, len(values), samples))
        found[samples] = summary(errors(scores, exact))
    return found


def corpus(name: str, device: str, size: Size) -> dict[str, Any]:
    """Many real sentences to a tolerance of 1 %, and where the time goes."""
    model = attribution_data.encoder(name, device)
    sentences = attribution_data.sentences("train", size.corpus)
    found: list[Any] = []
    took = seconds(lambda: found.append(ours(model, sentences, "auto")))
    fixed = seconds(lambda: ours(model, sentences, 12))
    with profile(activities=[ProfilerActivity.CPU]) as run:
        ours(model, sentences[: size.corpus // 10], "auto")
    events = run.key_averages()
    total = sum(event.self_cpu_time_total for event in events)

    def share(chosen: Callable[[str], bool]) -> float:
        return sum(e.self_cpu_time_total for e in events if chosen(e.key)) / total

    return {
        "kind": "corpus",
        "encoder": name,
        "sentences": len(sentences),
        "s": round(took, 2),
        "fixed_s": round(fixed, 2),
        "nodes": float(found[0].steps.mean()),
        "estimated": summary(found[0].errors),
        "gemm_share": round(share(lambda key: key in GEMM), 3),
        "attention_share": round(share(lambda key: any(a in key for a in ATTENTION)), 3),
    }


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_attribution")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rehearse", action="store_true", help="a tiny encoder, few sentences")
    parser.add_argument("--only", nargs="+", metavar="KIND", help="scalar length vector ...")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(min(torch.get_num_threads(), 2) if options.device == "cpu" else 8)
    size = REHEARSAL if options.rehearse else FULL if options.device == "cpu" else ON_GPU
    first = next(iter(size.models))
    plan: dict[str, list[Callable[[], Any]]] = {
        "scalar": [partial(scalar, name, options.device, size) for name in size.models],
        "length": [partial(by_length, name, options.device, size) for name in size.models],
        "vector": [partial(vectors, first, options.device, size)],
        "shapley": [partial(coalitions, options.device, size)],
        "corpus": [partial(corpus, first, options.device, size)],
    }
    where = f"cpu-{harness.machine()}" if options.device == "cpu" else harness.gpu()
    name = f"attribution-{'rehearsal' if options.rehearse else where}"
    rows: list[dict[str, Any]] = []
    for kind, calls in plan.items():
        for call in calls if options.only is None or kind in options.only else []:
            found = call()
            rows += found if isinstance(found, list) else [found]
            print({k: v for k, v in rows[-1].items() if k not in {"curve", "s"}}, flush=True)
            path = harness.save(name, rows, options.output)  # what is there, whatever follows
    print(path)


if __name__ == "__main__":
    main()
