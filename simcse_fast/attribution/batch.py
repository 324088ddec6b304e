"""Weights of the words of every sentence of a corpus, in one Parquet file."""

from __future__ import annotations

import inspect
import os
import re
import sys
import warnings
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from simcse_fast import __version__
from simcse_fast.attribution.encoder import open_encoder
from simcse_fast.attribution.fingerprints import described, fingerprint, hash_of
from simcse_fast.attribution.integrated_gradients import integrated_gradients
from simcse_fast.attribution.parts import TableParts
from simcse_fast.attribution.shapley import shapley_values
from simcse_fast.errors import InputError
from simcse_fast.information.corpus import read_corpus
from simcse_fast.information.sentences import Sentences

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from simcse_fast.attribution.attributions import Attributions

METHODS: dict[str, Callable[..., Attributions]] = {
    "integrated_gradients": integrated_gradients,
    "shapley": shapley_values,
}
# Sentences of a part where many share a pass, enough that those of like length meet; and where
# each fills its passes alone. On a CPU such a part takes about a minute.
ROWS = {"cpu": (128, 16)}
ROWS_ELSEWHERE = (1024, 256)
UNDECISIVE = ("model", "sentences", "progress", "batch_tokens")  # change no result
COUNTED = re.compile(r"([\d,]+) of [\d,]+ (sentences .*)", re.DOTALL)
OWN = re.compile(r", at most .*", re.DOTALL)  # in a warning: holds for one part only
NUMBERED = re.compile(r"\bsentence (\d+)")
SCHEMA = pa.schema(
    {
        "sentence": pa.int64(),
        "text": pa.string(),
        "tokens": pa.list_(pa.string()),
        "starts": pa.list_(pa.int32()),
        "ends": pa.list_(pa.int32()),
        "scores": pa.list_(pa.float64()),
        "value": pa.float64(),
        "baseline_value": pa.float64(),
        "residual": pa.float64(),
        "steps": pa.int64(),
        "error": pa.float64(),
    }
)
VECTORS = pa.field("vectors", pa.list_(pa.list_(pa.float32())))


def attribute_file(
    model: Any,
    source: Any,
    out: str | PathLike[str],
    *,
    method: str = "integrated_gradients",
    rows_per_part: int | None = None,
    resume: bool = True,
    progress: bool = True,
    **options: Any,
) -> Path:
    """Weights of the words of every sentence of a corpus, in one Parquet file.

    Needs memory for the texts and for the scores of one part, never for those of all. A part that
    is finished is on the disk, in the folder `<out>.parts`: whatever stops the run, the same call
    goes on from there and ends with the same table. Then the parts become `out`, which until then
    is what it was before.

    Args:
        model: as the method takes it.
        source: sentences (an iterable, an Arrow array, a `datasets.Dataset`), or a path or paths to
            .txt (a sentence a line), .parquet or .jsonl.
        out: a .parquet file; an existing one is replaced once the new one is whole, unless it is
            this very table: then nothing is left to do.
        method: "integrated_gradients" or "shapley".
        rows_per_part: sentences that a stop may lose; by default 128 on a CPU and 1,024 on a
            GPU, with Shapley values or vectors 16 and 256.
        resume: go on from what is there; False begins anew.
        progress: show a bar on a terminal.
        **options: of `integrated_gradients` or `shapley_values`; one target for all sentences.

    Returns:
        The file. A row a sentence, blank ones too: sentence (its number), text, tokens, starts,
        ends and scores (lists), value, baseline_value, residual, steps, error, as `Attributions`
        explains them; for `target="vector"` also vectors (tokens, D) fp32, some 50 KB a sentence.

    Raises:
        InputError: no sentence, a source that cannot be read, a file that cannot be the output, or
            parts of other settings: it says which.
        TypeError, ValueError: as the method raises them.
        OSError: the disk is full or fails; finished parts stay.
        KeyboardInterrupt: with the number of sentences that are done.

    Example:
        >>> import pyarrow.parquet as pq
        >>> out = attribute_file(encoder, ["Cats chase mice.", ""], "words.parquet")
        >>> pq.read_table(out)["tokens"].to_pylist()
        [['Cats', 'chase', 'mice', '.'], []]
    """
    batch = Batch(model, source, out, method=method, rows_per_part=rows_per_part, **options)
    batch.run(resume=resume, progress=progress)
    return batch.out


class Batch:
    """One run over a corpus; arguments are those of `attribute_file`.

    Attributes:
        out: the file.
        total: sentences.
        done: sentences whose part is on the disk.
        earlier: how many of them were there before.
    """

    def __init__(
        self,
        model: Any,
        source: Any,
        out: str | PathLike[str],
        *,
        method: str = "integrated_gradients",
        rows_per_part: int | None = None,
        **options: Any,
    ) -> None:
        if method not in METHODS:
            raise InputError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
        if rows_per_part is not None and rows_per_part < 1:
            raise InputError(f"rows_per_part: expected at least 1, got {rows_per_part}")
        self.out, self.sentences = output_of(out, source), read_sentences(source)
        self.model, self.method, self.options = model, method, options
        given = _arguments(method, options)
        encoder = open_encoder(model, options.get("pooling"))
        self.with_vectors = isinstance(given["target"], str) and given["target"] == "vector"
        alone = self.with_vectors or method == "shapley"
        rows = rows_per_part or ROWS.get(encoder.device.type, ROWS_ELSEWHERE)[alone]
        self.total, self.done, self.earlier = len(self.sentences), 0, 0
        settings = {
            "simcse_fast": __version__,
            **{name: described(value) for name, value in given.items()},
            "method": method,  # of two; that of `shapley_values` is its default
            "rows_per_part": rows,
            "model": fingerprint(encoder),
            "sentences": hash_of(self.sentences),
        }
        self.parts = TableParts(
            self.out,
            SCHEMA.append(VECTORS) if self.with_vectors else SCHEMA,
            [range(low, min(low + rows, self.total)) for low in range(0, self.total, rows)],
            settings,
        )

    def run(self, *, resume: bool = True, progress: bool = True) -> None:
        """All parts that are not there yet, and then the file."""
        if resume and self.parts.complete():
            self.earlier = self.done = self.total
            return
        ranges = self.parts.ranges
        try:
            with self.parts.claimed(resume=resume):
                missing = self.parts.missing()
                self.earlier = self.done = self.total - sum(len(ranges[n]) for n in missing)
                with self._bar(shown=progress) as bar:
                    for number in missing:
                        result, notes = self._attributed(ranges[number])
                        self.parts.write(number, self._columns(result, ranges[number]), notes)
                        self.done += len(result)
                        bar.update(len(result))
                found = self.parts.merge()
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(
                f"{self.done:,} of {self.total:,} sentences are done; the same command goes on "
                "from there"
            ) from stop
        for text, count in found.items():
            warnings.warn(f"{count:,} of {self.total:,} {text}", stacklevel=3)

    def _bar(self, *, shown: bool) -> Any:
        return tqdm(
            total=self.total,
            initial=self.done,
            desc="attributing",
            unit=" sentences",
            smoothing=0,
            leave=False,
            disable=None if shown else True,
            file=sys.stderr,
        )

    def _attributed(self, rows: range) -> tuple[Attributions, Counter[str]]:
        """The scores of some rows; and what their method warns of, and how often."""
        texts = list(self.sentences.texts(rows.start, rows.stop))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                result = METHODS[self.method](self.model, texts, progress=False, **self.options)
            except ValueError as error:
                told = NUMBERED.sub(lambda m: f"sentence {int(m[1]) + rows.start}", str(error))
                raise InputError(told) from error
        notes: Counter[str] = Counter()
        for one in caught:
            match = COUNTED.fullmatch(str(one.message))
            if match is None:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
            else:
                text = OWN.sub("; see the column error.", match[2])
                notes[text] += int(match[1].replace(",", ""))
        return result, notes

    def _columns(self, result: Attributions, rows: range) -> dict[str, Any]:
        """Arrow arrays of a part."""
        counts = [len(tokens) for tokens in result.tokens]
        spans = np.array(list(chain.from_iterable(result.spans)), np.int32).reshape(-1, 2)
        columns = {
            "sentence": np.arange(rows.start, rows.stop),
            "text": result.sentences,
            "tokens": _lists(counts, pa.array(chain.from_iterable(result.tokens), pa.string())),
            "starts": _lists(counts, pa.array(spans[:, 0])),
            "ends": _lists(counts, pa.array(spans[:, 1])),
            "scores": _lists(counts, pa.array(np.concatenate([np.zeros(0), *result.scores]))),
            "value": result.values,
            "baseline_value": result.baseline_values,
            "residual": result.residual,
            "steps": result.steps,
            "error": result.errors,
        }
        if self.with_vectors and result.vectors is not None:
            rows_of = np.concatenate(result.vectors).astype(np.float32, copy=False)
            inner = _lists([rows_of.shape[1]] * len(rows_of), pa.array(rows_of.reshape(-1)))
            columns["vectors"] = _lists(counts, inner)
        return columns


def output_of(out: str | PathLike[str], source: Any) -> Path:
    """Where the table goes.

    Raises:
        InputError: it cannot.
    """
    path = Path(out)
    if path.suffix != ".parquet":
        raise InputError(f"out: expected a name in .parquet, got {path}")
    if path.is_dir():
        raise InputError(f"out: {path} is a folder")
    if not path.parent.is_dir():
        raise InputError(f"out: there is no folder {path.parent}")
    named = isinstance(source, str | os.PathLike) and path.exists()
    if named and os.path.exists(source) and path.samefile(source):  # noqa: PTH110 - any string
        raise InputError(f"out: {path} is the source, which it would replace")
    return path


def read_sentences(source: Any) -> Sentences:
    """The texts of a corpus, in memory.

    Raises:
        InputError: there is none, or it cannot be read.
        TypeError: it is none.
    """
    try:
        found = source if isinstance(source, Sentences) else read_corpus(source)
    except ValueError as error:
        raise InputError(f"source: {str(error).removeprefix('corpus: ')}") from error
    except TypeError as error:
        raise TypeError(f"source: {str(error).removeprefix('corpus: ')}") from error
    if not isinstance(found, Sentences):
        raise TypeError("source: expected texts, got token ids")
    if not any(text.strip() for text in found.texts()):
        raise InputError("source: expected at least one sentence, found none")
    return found


def _arguments(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """All arguments of the method that decide a result, with its defaults.

    Raises:
        TypeError: the method has no such option.
        InputError: a target for each sentence.
    """
    try:
        bound = inspect.signature(METHODS[method]).bind(None, [], **options)
    except TypeError as error:
        raise TypeError(f"{method}: {error}") from error
    bound.apply_defaults()
    given = {name: value for name, value in bound.arguments.items() if name not in UNDECISIVE}
    target = given["target"]
    each = isinstance(target, list | tuple) and any(isinstance(one, str) for one in target)
    if each or getattr(target, "ndim", 1) != 1:
        raise InputError("target: expected one for all sentences of a corpus, got one each")
    return given


def _lists(counts: list[int], values: pa.Array) -> pa.ListArray:
    """Values cut into lists of so many."""
    offsets = pa.array(np.cumsum([0, *counts]), pa.int64()).cast(pa.int32())
    return pa.ListArray.from_arrays(offsets, values)
