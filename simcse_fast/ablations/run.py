"""The runs of an ablation: what they share is made once, then one training after the other."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from inspect import signature
from statistics import fmean
from typing import TYPE_CHECKING, Any

from simcse_fast.ablations.groups import REFUSED, TENSION, Facts, configurations
from simcse_fast.ablations.probe import Probe
from simcse_fast.ablations.result import Ablation
from simcse_fast.ablations.sources import read_sources
from simcse_fast.ablations.store import Store
from simcse_fast.ablations.tension import train_by_tension
from simcse_fast.encoding import evaluating
from simcse_fast.errors import InputError
from simcse_fast.progress import bar
from simcse_fast.training import train
from simcse_fast.training.arguments import check_device
from simcse_fast.training.encoders import check_pooling, dropout_of, load_encoder
from simcse_fast.training.identity import weights_of
from simcse_fast.training.options import Options
from simcse_fast.training.run import make_plan, quiet_transformers
from simcse_fast.training.sealed import made, writing
from simcse_fast.training.texts import read_scored_pairs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

    from simcse_fast.ablations.groups import Configuration
    from simcse_fast.ablations.sources import Source
    from simcse_fast.training.encoders import Encoder
    from simcse_fast.training.observer import Observe
    from simcse_fast.training.run import Plan

LAST = 10  # steps whose mean is the loss at the end


@dataclass(frozen=True)
class Request:
    """The arguments of `ablate`."""

    model: str
    sentences: Any
    triplets: Any
    development: Any
    test: Any
    output: Path
    vary: str | list[str] | Mapping[str, Mapping[str, Any]]
    seeds: int
    training: dict[str, Any]
    trajectory_steps: int
    trajectories: int
    keep_models: bool
    device: str | None


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    request: Request
    store: Store
    sources: dict[str, Source]
    probes: dict[str, Probe]


def run(request: Request, say: Callable[[str], None]) -> Ablation:
    """Make the runs that are not there; see `simcse_fast.ablate`."""
    check_device(request.device)
    check_names(request)
    common = options_of(request.training, "training")
    with quiet_transformers(), made(request.output, "output"):
        say("loading the model")
        encoder = load_encoder(
            request.model, pooling=common.pooling, supervised=False, device=request.device
        )
        say("reading the text")
        pairs = {
            name: read_scored_pairs(getattr(request, name), name)
            for name in ("development", "test")
            if getattr(request, name) is not None
        }
        sources = read_sources(request, encoder, common, say)
        found, notes = configurations(request.vary, facts_of(request, encoder, common, sources))
        for one in found:
            where = f"{one.group}, {one.name}"
            plan_of(encoder, options_of(one.options, where), sources[one.source], where)
        store = Store(request.output)
        with store.alone("settings"):
            store.begin(settings(request, encoder, sources, pairs))
        probes = {name: Probe(encoder.model, *columns) for name, columns in pairs.items()}
        runs = all_runs(Bench(request, store, sources, probes), found)
        result = Ablation(rows(found, request.seeds, runs), tuple(notes), request.output)
        with store.alone("results"):
            result.save()
    return result


def check_names(request: Request) -> None:
    """Refuse options that `train` does not have, or that the ablation sets itself."""
    known = [field.name for field in fields(Options) if field.name not in REFUSED]
    given = {"training": request.training}
    if isinstance(request.vary, Mapping):
        given |= {f"vary: {name}": dict(options) for name, options in request.vary.items()}
    for where, options in given.items():
        if unknown := [name for name in options if name not in known]:
            raise InputError(
                f"{where}: {unknown[0]} is no option to set; expected some of {', '.join(known)}"
            )


def options_of(given: Mapping[str, Any], where: str) -> Options:
    """Options of `train` with its defaults; refuses what it would refuse."""
    defaults = {name: one.default for name, one in signature(train).parameters.items()}
    if given.get("loss") == TENSION:  # which `train` does not know
        given = {**given, "loss": "info_nce"}
    try:
        return Options(**{f.name: given.get(f.name, defaults[f.name]) for f in fields(Options)})
    except (ValueError, TypeError) as error:
        raise type(error)(f"{where}: {error}") from None


def plan_of(encoder: Encoder, options: Options, source: Source, where: str) -> Plan:
    """What `train` would do, or why it cannot."""
    try:
        check_pooling(encoder.model, options.pooling)
        return make_plan(encoder, None, source.data, options, source.argument == "triplets", 1)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def facts_of(
    request: Request, encoder: Encoder, common: Options, sources: dict[str, Source]
) -> Facts:
    """What the model and the data allow, and the options of all runs."""
    training = {}
    for name, source in sources.items():
        plan = plan_of(encoder, common, source, "training")
        filled = {"batch_size": plan.batch_size, "steps": plan.steps, "epochs": None}
        training[name] = {**request.training, **filled}
    return Facts(
        static=encoder.static,
        plain=not encoder.static and encoder.plain,
        dropout=dropout_of(encoder),
        rows={name: source.data.report.rows for name, source in sources.items()},
        training=training,
    )


def settings(
    request: Request, encoder: Encoder, sources: dict[str, Source], pairs: dict[str, Any]
) -> dict[str, Any]:
    """What runs of one folder have in common."""
    texts = {name: source.data.content for name, source in sources.items() if name != "pairs"}
    scored = {
        name: hashlib.sha256(repr(columns).encode()).hexdigest() for name, columns in pairs.items()
    }
    return {"model": weights_of(encoder.model), "training": request.training, **texts, **scored}


def all_runs(bench: Bench, found: list[Configuration]) -> dict[str, dict[str, Any]]:
    """Every run by its name: the first seed of all configurations, then the second, ..."""
    seeds = range(bench.request.seeds)
    wanted = {one.run(seed): (one, seed) for seed in seeds for one in found}
    runs: dict[str, dict[str, Any]] = {}
    try:
        with bar(len(wanted), " runs", "ablating", show=True) as shown:
            for wait in (False, True):  # at the end for those that other processes are at
                for name in [name for name in wanted if name not in runs]:
                    run = kept_or_made(bench, name, *wanted[name], wait=wait)
                    if run is None:
                        continue
                    runs[name] = run
                    if shown is not None:
                        shown.update(1)
    except KeyboardInterrupt as stop:
        kept = sum(bench.store.run(name) is not None for name in wanted)
        raise KeyboardInterrupt(
            f"{kept} of {len(wanted)} runs are in {bench.request.output}; the same again goes on"
        ) from stop
    return runs


def kept_or_made(
    bench: Bench, name: str, configuration: Configuration, seed: int, *, wait: bool
) -> dict[str, Any] | None:
    """A run; None while another process makes it."""
    with bench.store.alone(name, wait=wait) as mine:
        if not mine:
            return None
        run = bench.store.run(name)
        if run is None or not is_enough(bench, name, run, seed):
            run = one_run(bench, name, configuration, seed)
            bench.store.keep(name, run)
    return run


def is_enough(bench: Bench, name: str, known: dict[str, Any], seed: int) -> bool:
    """Whether a run has the trajectory and the model that are asked for."""
    request = bench.request
    followed = seed >= request.trajectories or known["every"] == request.trajectory_steps
    return followed and (not request.keep_models or bench.store.model(name).is_dir())


def one_run(bench: Bench, name: str, configuration: Configuration, seed: int) -> dict[str, Any]:
    """Train once, and judge what came of it."""
    request, probes = bench.request, bench.probes
    started, judging = time.perf_counter(), 0.0
    trajectory: list[dict[str, Any]] = []

    def observe(model: SentenceTransformer, step: int) -> None:
        nonlocal judging
        begun = time.perf_counter()
        trajectory.append({"step": step, **probes["development"](model)})
        judging += time.perf_counter() - begun

    followed = seed < request.trajectories
    model, losses, seconds = trained(bench, configuration, seed, observe if followed else None)
    begun = time.perf_counter()
    with evaluating(model):
        found = dict(trajectory[-1]) if followed else probes["development"](model)
        test = probes["test"](model)["spearman"] if "test" in probes else None
    judging += time.perf_counter() - begun
    if request.keep_models:
        with writing(bench.store.model(name)) as folder:
            model.save_pretrained(str(folder))
    return {
        "source": configuration.source,
        "options": configuration.options,
        "seed": seed,
        "steps": len(losses),
        "development": found["spearman"],
        "test": test,
        "alignment": found["alignment"],
        "uniformity": found["uniformity"],
        "loss": fmean(losses[-LAST:]),
        "losses": losses,
        "seconds": seconds,
        "seconds_judging": judging,
        "seconds_in_all": time.perf_counter() - started,
        "every": request.trajectory_steps if followed else None,
        "trajectory": trajectory,
    }


def trained(
    bench: Bench, configuration: Configuration, seed: int, observe: Observe | None
) -> tuple[SentenceTransformer, list[float], float]:
    """The model, the loss of each step, and the seconds that all of them took."""
    request, source = bench.request, bench.sources[configuration.source]
    if configuration.options.get("loss") == TENSION:
        return train_by_tension(
            request.model,
            source.data,
            configuration.options,
            seed=seed,
            device=request.device,
            observe=observe,
            every=request.trajectory_steps,
        )
    data: dict[str, Any] = {source.argument: source.value}
    result = train(
        request.model,
        **data,
        **configuration.options,
        output=request.output,
        cache=request.output / "cache",
        seed=seed,
        device=request.device,
        save=False,
        observe=observe,
        observe_steps=request.trajectory_steps,
    )
    return result.model, result.history.losses, result.history.seconds


def rows(
    found: list[Configuration], seeds: int, runs: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each configuration and seed; those of equal options share a run."""
    return [
        {"group": one.group, "configuration": one.name, "run": one.run(seed), **runs[one.run(seed)]}
        for one in found
        for seed in range(seeds)
    ]
