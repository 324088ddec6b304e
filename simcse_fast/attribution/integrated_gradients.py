"""Integrated Gradients of sentence embeddings, batched over nodes and sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_fast.attribution.assemble import assemble
from simcse_fast.attribution.baselines import read_baseline
from simcse_fast.attribution.chunks import bar, budget_for
from simcse_fast.attribution.encoder import open_encoder
from simcse_fast.attribution.path import Path, moving
from simcse_fast.attribution.steps import Steps, integrate, warn_unconverged
from simcse_fast.attribution.targets import read_target, target_values
from simcse_fast.attribution.tokens import Unit, check_sentences, check_unit, tokenize, units_of
from simcse_fast.attribution.vectors import vector_integrals

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from simcse_fast.attribution.attributions import Attributions


def integrated_gradients(
    model: Any,
    sentences: Sequence[str] | str,
    *,
    target: str | Tensor | Sequence[str] | Callable[[Tensor], Tensor] = "self",
    baseline: str | Tensor = "pad",
    steps: int | str = "auto",
    tolerance: float = 0.01,
    unit: Unit = "word",
    batch_tokens: int | None = None,
    special_tokens: str = "fixed",
    pooling: str | None = None,
    rule: str = "mapped",
    progress: bool = True,
) -> Attributions:
    """Weight of each word in a sentence's embedding, by Integrated Gradients.

    score_i = integral over alpha in [0, 1] of
              grad_i target(E(b + alpha (x - b))) . (x_i - b_i)

    x are the sentence's word embeddings, b the baseline's, E the encoder. The scores of a sentence,
    those of special tokens that are attributed included, add up to target(E(x)) - target(E(b)).
    All nodes of many sentences share one forward and one backward pass; results do not depend on
    what shares a pass with what.

    Args:
        model: a SentenceTransformer, or a pair (transformers model, tokenizer) with `pooling`. It
            runs without dropout; its mode and what requires gradients are restored.
        sentences: B texts.
        target: "self", cosine with the sentence's own embedding; "norm", length of the embedding
            before a final Normalize; "vector", every dimension of that embedding (the matrix P,
            tokens x D; scores are the lengths of its rows); a vector (D,) or (B, D), dot product
            with the embedding as the model returns it; another sentence, or one each, cosine with
            its embedding; or a callable from embeddings (R, D), as the model returns them, to
            numbers (R,).
        baseline: what each token starts from: the embedding of the "pad" or "mask" token, "zero",
            the "mean" of all word embeddings, or a tensor (H,).
        steps: nodes on the path; "auto" compares two rules and takes more for the sentences whose
            estimated error is above `tolerance`.
        tolerance: of "auto": error of a sentence's scores over their length.
        unit: "word" adds up the pieces of words; "token" lists every token, special ones included.
        batch_tokens: tokens of a pass at most; by default what fits memory and caches.
        special_tokens: "fixed" ones stay as they are along the path and score 0; "attributed" ones
            start from the baseline as well.
        pooling: of a pair: "mean" (default), "cls", "max", ... as sentence-transformers names them.
        rule: of the nodes: "mapped", "midpoint" or "gausslegendre"; "auto" needs "mapped".
        progress: show a bar, on a terminal, when it takes long.

    Returns:
        Scores with their errors, one sentence after the other.

    Raises:
        TypeError: the model, a sentence, the target or the baseline is of no kind that is known.
        ValueError: no sentence; a target or baseline of another shape or with NaN; steps < 1,
            tolerance <= 0, or an unknown name; a model that takes no word embeddings.

    Reference: Sundararajan, Taly and Yan 2017, arXiv 1703.01365.

    Example:
        >>> result = integrated_gradients(encoder, "Cats chase mice.", progress=False)
        >>> result.tokens[0]
        ['Cats', 'chase', 'mice', '.']
        >>> total = result.baseline_values[0] + result.scores[0].sum()
        >>> round(float(total), 3)  # the sentence's cosine with itself
        1.0
    """
    texts = check_sentences(sentences)
    wanted = Steps.read(steps, tolerance, rule)
    encoder = open_encoder(model, pooling)
    start = read_baseline(baseline, encoder)
    check_unit(unit)
    tokens = tokenize(encoder, texts)
    moves = [moving(sentence, special_tokens) for sentence in tokens]
    units = [units_of(sentence, unit) for sentence in tokens]
    budget = budget_for(encoder, batch_tokens)
    path = Path(encoder, tokens, moves, start, budget)
    with encoder.frozen(), bar("attributing", len(texts), shown=progress) as done:
        whole, empty = path.ends()
        explained = read_target(target, encoder, whole, budget)
        ends = target_values(explained, whole, whole), target_values(explained, empty, whole)
        if explained.is_vector:
            found = vector_integrals(path, ends[0] - ends[1], wanted, done)
        else:
            found = integrate(
                wanted,
                explained.name,
                list(ends[0] - ends[1]),
                lambda looks: path.contributions(explained, whole, looks),
                done,
            )
    warn_unconverged(found, wanted)
    return assemble(
        units,
        [own.add_up(one.scores) for own, one in zip(units, found, strict=True)],
        [one.scores.sum(0) for one in found],
        ends,
        sentences=texts,
        steps=np.array([one.nodes for one in found]),
        errors=np.array([one.error for one in found]),
        method="integrated gradients",
        target=explained.name,
        unit=unit,
    )
