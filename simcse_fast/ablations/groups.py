"""What is varied: named groups of configurations, each a few options of `train`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simcse_fast.errors import InputError
from simcse_fast.training.options import POOLINGS

TENSION = "contrastive_tension"  # a loss that `train` does not have
# Options of `train` by group and name; "source" is what the model is trained on.
CONFIGURATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "dropout": {
        **{f"p = {p:g}": {"dropout": p} for p in (0.0, 0.01, 0.05, 0.1, 0.15, 0.2, 0.5)},
        "fixed mask": {"augmentation": "fixed_mask"},
    },
    "augmentation": {
        "none": {},
        **{
            f"{kind} {100 * share:.0f} %": {"augmentation": kind, "augmentation_share": share}
            for kind in ("crop", "delete")
            for share in (0.1, 0.2, 0.3)
        },
        "delete one word": {"augmentation": "delete_one"},
    },
    "pooling": {pooling: {"pooling": pooling} for pooling in POOLINGS},
    "temperature": {f"{t:g}": {"temperature": t} for t in (0.001, 0.01, 0.05, 0.1, 1.0)},
    "batch": {},  # depends on the data
    "hard_negatives": {"with": {"source": "triplets"}, "without": {"source": "pairs"}},
    "objective": {
        "InfoNCE": {},
        "InfoNCE, textbook": {"loss": "textbook"},
        "CT": {"loss": TENSION},
    },
}
GROUPS = tuple(CONFIGURATIONS)
BATCHES = (64, 256, 1024, 4096, 16384, 65536)
OF_TRANSFORMERS = ("dropout", "augmentation", "pooling")
OWN = "own"  # the group of configurations that a user gives
# What `train` leaves out of these is not what is learned, or is set by the ablation itself.
REFUSED = ("seed", "evaluation_steps", "patience", "save_steps", "keep_checkpoints")


@dataclass(frozen=True)
class Facts:
    """What a model and the data allow."""

    static: bool
    plain: bool  # a transformer without a pooling of its own
    dropout: float | None  # the model's own, where all layers have one
    rows: dict[str, int]  # of each source that there is: sentences, triplets, pairs
    training: dict[str, dict[str, Any]]  # options of all runs on a source, batch and steps included


@dataclass(frozen=True)
class Configuration:
    """One thing changed."""

    group: str
    name: str
    source: str  # what it is trained on
    options: dict[str, Any]  # of `train`

    def run(self, seed: int) -> str:
        """The name of a run; configurations of equal options share theirs."""
        content = json.dumps([self.source, self.options, seed], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def configurations(
    vary: str | list[str] | Mapping[str, Mapping[str, Any]], facts: Facts
) -> tuple[list[Configuration], list[str]]:
    """All configurations in order, and what a person should know of them.

    Raises:
        InputError: there is no such group, or it makes no sense for the model or the data.
    """
    if isinstance(vary, Mapping):
        chosen = {OWN: {name: dict(options) for name, options in vary.items()}}
        sources = {OWN: "sentences" if "sentences" in facts.rows else "triplets"}
        notes: list[str] = []
    else:
        names = [vary] if isinstance(vary, str) else list(dict.fromkeys(vary))
        for name in names:
            _check(name, facts)
        chosen, notes = {}, []
        for name in names:
            chosen[name] = CONFIGURATIONS[name] or _batches(facts, notes)
        sources = dict.fromkeys(names, "sentences")
    found = [
        _configuration(group, name, dict(options), sources[group], facts)
        for group, members in chosen.items()
        for name, options in members.items()
    ]
    if not found:
        raise InputError("vary: expected one or more configurations, got none")
    return found, notes


def _check(name: str, facts: Facts) -> None:
    if name not in GROUPS:
        raise InputError(f"vary: expected one or more of {', '.join(GROUPS)}, got {name!r}")
    if facts.static and name in OF_TRANSFORMERS:
        others = ", ".join(group for group in GROUPS if group not in OF_TRANSFORMERS)
        raise InputError(f"vary: a static model has no {name} to vary; it has {others}")
    wanted = "pairs" if name == "hard_negatives" else "sentences"
    if wanted not in facts.rows:
        needed = "triplets with negatives" if wanted == "pairs" else "sentences"
        raise InputError(f"vary: {name} needs {needed}, got none")


def _batches(facts: Facts, notes: list[str]) -> dict[str, dict[str, Any]]:
    """Batch sizes that see as many sentences as all other runs."""
    base = facts.training["sentences"]
    seen = base["batch_size"] * base["steps"]
    most = min(seen, facts.rows["sentences"])
    sizes = [size for size in BATCHES if size <= most]
    if left := [f"{size:,}" for size in BATCHES if size > most]:
        notes.append(
            f"batches of {', '.join(left)} were left out: {facts.rows['sentences']:,} sentences, "
            f"{seen:,} of them trained on"
        )
    return {f"{n:,}": {"batch_size": n, "steps": max(round(seen / n), 1)} for n in sizes}


def _configuration(
    group: str, name: str, options: dict[str, Any], source: str, facts: Facts
) -> Configuration:
    """With the options of all runs, without those that change nothing."""
    source = options.pop("source", source)
    epochs = options.pop("epochs", None)
    options = facts.training[source] | options
    if epochs is not None:
        options["steps"] = max(round(epochs * (facts.rows[source] // options["batch_size"])), 1)
    if facts.plain and options.get("pooling") is None:
        options["pooling"] = "cls"
    if options.get("dropout") == facts.dropout:
        options.pop("dropout", None)
    if options.get("augmentation") not in {"crop", "delete"}:
        options.pop("augmentation_share", None)
    kept = {key: value for key, value in options.items() if value is not None}
    for key, default in (("augmentation", "none"), ("temperature", 0.05), ("loss", "info_nce")):
        if kept.get(key) == default:
            del kept[key]
    return Configuration(group, name, source, kept)
