"""Attributions in a file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_fast.attribution.attributions import Attributions
from simcse_fast.files import written_whole

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

FORMAT = "simcse_fast.attributions.1"
NAMES = ("method", "target", "unit")
COLUMNS = ("values", "baseline_values", "residual", "steps", "errors")


def save(result: Attributions, path: str | PathLike[str]) -> None:
    """Tensors, one after the other where they are ragged, and the texts as JSON."""
    from safetensors.numpy import save_file  # noqa: PLC0415 - not always installed

    # A header holds 100 MB at most, which the texts of a corpus exceed: they are a tensor too.
    texts = json.dumps({"sentences": result.sentences, "tokens": result.tokens})
    spans = [span for own in result.spans for span in own]
    tensors: dict[str, NDArray[Any]] = {
        "texts": np.frombuffer(texts.encode("ascii"), np.uint8),
        "spans": np.array(spans, np.int64).reshape(-1, 2),
        "scores": np.concatenate([np.zeros(0), *result.scores]),
        **{name: np.ascontiguousarray(getattr(result, name)) for name in COLUMNS},
    }
    if result.vectors is not None:
        rows = result.vectors or [np.zeros((0, 0), np.float32)]
        tensors["vectors"] = np.concatenate(rows)
    metadata = {"format": FORMAT, **{name: str(getattr(result, name)) for name in NAMES}}
    with written_whole(path) as unfinished:
        unfinished.touch()  # safetensors would call a missing folder an error of its own
        save_file(tensors, unfinished, metadata)


def load(path: str | PathLike[str]) -> Attributions:
    """What `save` wrote.

    Raises:
        ValueError: something else wrote this file.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - not always installed

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"path: {path} is no whole safetensors file ({error}).") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"path: {path} holds {metadata.get('format', 'something else')}; expected {FORMAT}, "
            "as Attributions.save writes it."
        )
    texts = json.loads(tensors["texts"].tobytes())
    counts = [len(tokens) for tokens in texts["tokens"]]
    starts = np.cumsum([0, *counts])
    ranges = [slice(low, low + count) for low, count in zip(starts, counts, strict=False)]
    spans = [(low, high) for low, high in tensors["spans"].tolist()]
    vectors = tensors.get("vectors")
    return Attributions(
        sentences=texts["sentences"],
        tokens=texts["tokens"],
        spans=[spans[own] for own in ranges],
        scores=[tensors["scores"][own] for own in ranges],
        **{name: tensors[name] for name in COLUMNS},
        **{name: metadata[name] for name in NAMES},
        vectors=None if vectors is None else [vectors[own] for own in ranges],
    )
