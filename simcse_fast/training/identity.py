"""What a training run is known by: checkpoints that differ in it do not mix."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from simcse_fast.training.encoders import head_parameters

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    from simcse_fast.training.run import Plan

SAMPLE = 1024  # weights of each matrix that identify a model


def decisive(
    plan: Plan, evaluator: EmbeddingSimilarityEvaluator | None, processes: int
) -> dict[str, Any]:
    """All that decides what is learned; checkpoints that differ in it do not mix."""
    given = asdict(plan.options)
    for name in ("epochs", "save_steps", "keep_checkpoints", "memory_share"):
        del given[name]
    if evaluator is None:
        del given["evaluation_steps"], given["patience"]
    return given | {
        "model": weights_of(plan.encoder.model),
        "data": plan.data.content,
        "evaluate": evaluator and pairs_hash(evaluator),
        "batch_size": plan.batch_size,
        "steps": plan.steps,
        "learning_rate": plan.learning_rate,
        "max_length": plan.data.report.max_length,
        "processes": processes,
    }


def pairs_hash(evaluator: EmbeddingSimilarityEvaluator) -> str:
    """What stands for the evaluation's pairs in a checkpoint."""
    pairs = (evaluator.sentences1, evaluator.sentences2, evaluator.scores)
    return hashlib.sha256(repr(pairs).encode()).hexdigest()[:16]


def weights_of(model: SentenceTransformer) -> str:
    """A hash of the model to begin with: of shapes and of a sample of its weights."""
    content = hashlib.sha256()
    ours = {id(parameter) for parameter in head_parameters(model).values()}
    for name, value in model.named_parameters():
        if id(value) in ours:
            continue
        flat = value.detach().reshape(-1)
        sample = flat[:: max(len(flat) // SAMPLE, 1)].double().cpu().numpy()
        content.update(f"{name} {tuple(value.shape)} {value.dtype}".encode() + sample.tobytes())
    return content.hexdigest()[:16]
