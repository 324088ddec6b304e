"""The public function: from a model and pairs to the model without its least useful parameters."""

from __future__ import annotations

import copy
import inspect
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformer

from simcse_fast.errors import InputError
from simcse_fast.evaluation.space import ALIKE
from simcse_fast.sparsity.calibration import calibration_of, scored_pairs, sentences_of
from simcse_fast.sparsity.embedder import Embedder
from simcse_fast.sparsity.layouts import check_same_shape, units_of
from simcse_fast.sparsity.options import MEASURED, WEIGHTS, Options
from simcse_fast.sparsity.result import Sparsified
from simcse_fast.sparsity.structured import Structured
from simcse_fast.sparsity.sweep import Measure, best, sweep
from simcse_fast.sparsity.unstructured import Unstructured
from simcse_fast.training import train
from simcse_fast.training.options import Options as TrainingOptions
from simcse_fast.training.texts import ENDINGS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from simcse_fast.sparsity.calibration import Scored
    from simcse_fast.sparsity.layouts import Layout
    from simcse_fast.sparsity.sweep import Method


def sparsify(
    model: Any,
    pairs: Any,
    *,
    sparsity: float | Sequence[float],
    units: str | Sequence[str] = ("heads", "neurons"),
    balance: float = 0.5,
    retrain: Mapping[str, Any] | None = None,
    rewind: Any = None,
    development: Any = None,
    test: Any = None,
    compare: str | Sequence[str] = MEASURED,
    seeds: int = 5,
    allocation: str = "global",
    aggregate: str = "absolute",
    positive_above: float = ALIKE,
    pooling: str | None = None,
    layout: Layout | None = None,
    progress: bool = True,
) -> Sparsified:
    """Remove the attention heads and neurons that contribute least to alignment and uniformity.

    S = balance * S_align + (1 - balance) * S_uniform,  S_L = sum_i |dL_i / dxi| / its layer's norm

    xi = 1 is a factor on the unit, dL_i the share of sentence i in the gradient of the loss over
    the whole calibration set. Everything is scored once: two forward and two backward passes.
    Several sparsities are compared with each other, with pruning by magnitude and at random.

    Args:
        model: a SentenceTransformer that begins with a transformer, or a pair (transformers model,
            tokenizer). It is not changed.
        pairs: what units are scored on. Sentence pairs with scores 0 to 5: a path to .tsv,
            .parquet or .jsonl, a `datasets.Dataset`, a mapping of columns or tuples; or the same
            without scores, of positive pairs alone. Alignment is over the positives, uniformity
            over all distinct sentences.
        sparsity: share of the units to remove, in [0, 1), of heads and of neurons each; or several,
            of which the one that does best on `development` is taken.
        units: "heads", "neurons" or both; or "weights", single ones of all matrices of the layers,
            by |theta dL / dtheta|.
        balance: weight of alignment against uniformity, in [0, 1].
        retrain: arguments of `simcse_fast.train` (data and `output` at least), with which the
            smaller model is trained; its learning rate is 3e-5 by default.
        rewind: a model of the same shape that the parameters are removed from instead, usually the
            one before contrastive training, to be trained again.
        development: pairs with scores, as `pairs`, on which models are compared; `pairs` themselves
            where these have scores.
        test: the same, reported for our models alone; nothing is chosen by it.
        compare: "magnitude", "random", both or ().
        seeds: random orders to compare with.
        allocation: "global" orders the units of all layers together, as the paper does; "layer"
            removes as many from each layer, so that matrices shrink as much as they can.
        aggregate: "absolute" sums the sizes of the sentences' shares, "total" takes the size of
            their sum, the gradient over the set.
        positive_above: score above which a pair is positive.
        pooling: of a pair (transformers model, tokenizer), see `PairEncoder`; "mean".
        layout: where a model of a family that is not known has its heads and neurons.
        progress: show bars on a terminal.

    Returns:
        The smaller model, its scores, and how it compares.

    Raises:
        ValueError, TypeError: an argument or the data cannot be used; the message says which.

    Example:
        >>> pairs = [("cats chase mice.", "cats chase."), ("mice.", "mice chase mice.")]
        >>> smaller = sparsify(encoder, pairs, sparsity=0.5)
        >>> smaller.removed
        {'heads': 0.5, 'neurons': 0.5}

    Reference: An, Zhang and Song 2023, arXiv 2311.03881, which publishes no code: this is our
    reading of it, docs/sparsity.md says where it may differ.
    """
    options = Options(
        *(sparsity, units, balance, allocation, aggregate, compare, seeds, positive_above, retrain)
    )
    changed = model if rewind is None else rewind
    check_retraining(changed, retrain)
    embedder = Embedder(model, pooling)
    method = _method(embedder, layout, options)
    if rewind is not None:
        scored = units_of(embedder.transformer, layout)
        check_same_shape(Embedder(rewind).transformer, scored, layout, "rewind")
    rows = []
    with torch.inference_mode(mode=False), torch.enable_grad():
        data, own = calibration_of(pairs, positive_above)
        measures = _measures(own, development, test, positive_above)
        if not measures and len(options.sparsities) > 1:
            raise InputError("development: needed to choose between several sparsities, got none")
        scores = method.scores(data, balance, progress=progress)
        if measures:
            rows = sweep(
                method,
                scores,
                sorted({0.0, *options.sparsities}),
                measures,
                compare=options.comparisons,
                seeds=seeds,
                progress=progress,
            )
    asked = [row for row in rows if row["sparsity"] in options.sparsities]
    chosen = best(asked) if len(options.sparsities) > 1 else options.sparsities[0]
    selection = method.select(scores, chosen)
    smaller = copy.deepcopy(changed)
    method.apply(Embedder(smaller).transformer, selection)
    found = Sparsified(smaller, chosen, scores, selection, rows, method, measures)
    return found if retrain is None else found.retrain(**retrain)


def _method(embedder: Embedder, layout: Layout | None, options: Options) -> Method:
    if options.kinds == (WEIGHTS,):
        return Unstructured(embedder, layout)
    return Structured(embedder, layout, options.kinds, options.allocation, options.aggregate)


def check_retraining(model: Any, arguments: Mapping[str, Any] | None) -> None:
    """Everything that can be told before units are scored, which takes minutes.

    Raises:
        ValueError, TypeError: `train` would refuse its arguments, or the model.
    """
    if arguments is None:
        return
    if not isinstance(model, SentenceTransformer):
        raise TypeError(
            f"retrain: expected a SentenceTransformer to train, got {type(model).__name__}"
        )
    try:
        bound = inspect.signature(train).bind(model, **arguments)
    except TypeError as error:
        raise InputError(f"retrain: {error}") from None
    bound.apply_defaults()
    given = bound.arguments
    sources = [given[name] for name in ("unsupervised", "triplets") if given[name] is not None]
    if len(sources) != 1:
        raise InputError("retrain: expected either unsupervised or triplets, the data to train on")
    named = isinstance(sources[0], str | Path) and Path(sources[0]).suffix in ENDINGS
    if named and not Path(sources[0]).is_file():
        raise InputError(f"retrain: there is no file {sources[0]}")
    try:
        training = {field.name: given[field.name] for field in fields(TrainingOptions)}
        TrainingOptions(**training)
        Path(given["output"]).mkdir(parents=True, exist_ok=True)
    except (ValueError, TypeError) as error:
        raise type(error)(f"retrain: {error}") from None
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"retrain: output {given['output']}: {reason}") from error


def _measures(
    own: Scored | None, development: Any, test: Any, positive_above: float
) -> dict[str, Measure]:
    """What models are judged by; without scores nothing."""
    scored = own if development is None else scored_pairs(development, "development")
    if scored is None:
        if test is not None:
            raise InputError("test: needs development, pairs with scores to choose by; got none")
        return {}
    sentences = sentences_of(scored, positive_above, "development")
    measures = {"development": Measure(scored, sentences)}
    if test is not None:
        measures["test"] = Measure(scored_pairs(test, "test"), None)
    return measures
