"""The public function: from a model and a file to a trained model in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.errors import InputError
from simcse_fast.training.options import Options, check_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentence_transformers import SentenceTransformer

    from simcse_fast.training.history import History
    from simcse_fast.training.tokens import DataReport


@dataclass(frozen=True)
class TrainingResult:
    """A trained model, how it came about, and where it is."""

    model: SentenceTransformer
    history: History
    folder: Path  # of the model, if it was to be saved
    data: DataReport
    steps: int
    notes: tuple[str, ...]  # what a person should know, a sentence each


def train(
    model: SentenceTransformer | str | Path,
    *,
    unsupervised: Any = None,
    triplets: Any = None,
    output: str | Path,
    pooling: str | None = None,
    temperature: float = 0.05,
    symmetric: bool = False,
    max_length: int | None = None,
    batch_size: int | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    warmup: float = 0.0,
    weight_decay: float = 0.0,
    seed: int = 0,
    bf16: bool = False,
    fp16: bool = False,
    evaluate: Any = None,
    evaluation_steps: int | None = None,
    patience: int | None = None,
    save_steps: int = 500,
    keep_checkpoints: int = 2,
    resume: bool = False,
    duplicates: str = "mask",
    mlm_weight: float = 0.0,
    dropout: float | None = None,
    augmentation: str = "none",
    augmentation_share: float = 0.1,
    loss: str = "info_nce",
    mini_batch_tokens: int | None = None,
    memory_share: float = 0.5,
    cache: str | Path | None = None,
    report_to: str | list[str] = "none",
    device: str | None = None,
    save: bool = True,
    observe: Callable[[SentenceTransformer, int], None] | None = None,
    observe_steps: int = 10,
    say: Callable[[str], None] | None = None,
) -> TrainingResult:
    """Train a sentence encoder by contrast: SimCSE, with batches of any size in bounded memory.

    loss_i = -log( exp(cos(a_i, p_i) / temperature) / sum_j exp(cos(a_i, k_j) / temperature) )

    Unsupervised, a_i and p_i are the same sentence under two dropout masks (for a static model:
    random halves of its words) and the keys are all p_j. Supervised, they are the columns of
    `triplets`, and the keys are all positives and all negatives of the batch. Runs on one device,
    or on several under `torchrun`; from the same seed it comes to the same bits on a CPU, also
    when it was killed and resumed.

    Args:
        model: a SentenceTransformer (trained in place), or the name or folder of one or of a plain
            transformer.
        unsupervised: sentences: a path to .txt (one a line), .tsv, .parquet or .jsonl, a data set
            on the hub, a `datasets.Dataset`, or an iterable of str.
        triplets: (anchor, positive) or (anchor, positive, negative): a path to .tsv, .parquet or
            .jsonl, a data set, a mapping of columns, or an iterable of tuples.
        output: folder for checkpoints, the cache of token ids, and the model, in `final`.
        pooling: "cls" (with SimCSE's head: unsupervised only while training), "cls_before_pooler",
            "avg", "avg_top2" or "avg_first_last"; None keeps what a SentenceTransformer has, and
            gives "cls" to a plain transformer.
        temperature: > 0, of the softmax.
        symmetric: also contrast keys with anchors; for pairs.
        max_length: tokens of a text at most, the rest is cut; 32, for static models no limit.
        batch_size: rows of a step, of all processes together; 64 unsupervised, 512 supervised,
            4096 for static models, or all rows where there are fewer.
        epochs: passes over the data: 1 unsupervised, 3 supervised; or give `steps`.
        steps: optimizer steps.
        learning_rate: at its highest; falls to 0 linearly. 3e-5 unsupervised, 5e-5 supervised,
            5e-3 for static models.
        warmup: share of the steps in which the learning rate rises; SimCSE has none.
        weight_decay: of AdamW.
        seed: of the order of rows, dropout, halves and new weights.
        bf16: mixed precision in bfloat16.
        fp16: mixed precision in float16, with a scaled loss.
        evaluate: sentence pairs with scores, as a path or a data set, for Spearman's correlation;
            the checkpoint that did best is the result.
        evaluation_steps: steps between evaluations; 125.
        patience: stop after so many evaluations without a better one.
        save_steps: steps between checkpoints.
        keep_checkpoints: how many of the newest to keep; the best is kept besides.
        resume: go on from the newest whole checkpoint in `output`.
        duplicates: "mask" leaves keys that equal the row's positive out of its negatives; "keep".
        mlm_weight: of a masked language model's loss on the same sentences, added to the contrast:
            15 % of their tokens are to be guessed by the head that transformers has for this kind
            of encoder, which is not in the result; SimCSE tries 0.1.
        dropout: probability of dropout in all layers of a transformer during this training; None is
            the model's own, which it has again afterwards.
        augmentation: what makes the second view of a sentence, for transformers: "none" (the same
            sentence under another dropout mask), "fixed_mask" (under the same one), "crop" (words
            that stand together), "delete" (without some words) or "delete_one" (without one).
        augmentation_share: of the words that "crop" and "delete" take out, at least one word.
        loss: "info_nce", or "textbook": the same by the matrix of all cosines, to compare with.
        mini_batch_tokens: tokens that a transformer embeds at once; see `GradientCache`.
        memory_share: share of the free memory that embedding a batch may take.
        cache: folder for token ids; by default in `output`.
        report_to: "tensorboard", "wandb", ..., as in transformers.
        device: "cpu", or None for the best there is.
        save: False writes nothing but token ids: for a run whose model is not wanted on the disk.
        observe: called with the model and the step before the first step, every `observe_steps`
            and after the last; in evaluation mode, without graphs, and whatever it draws at random
            changes nothing of the training. Of several processes the first one calls it.
        observe_steps: steps between calls of `observe`.
        say: called with each sentence on what is being done.

    Returns:
        The trained model, saved as a normal SentenceTransformer, with its history.

    Raises:
        ValueError, TypeError: an argument or the data cannot be used; the message says which.
        OSError: a checkpoint or the model cannot be written; the last checkpoint is whole.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved.

    Reference: Gao, Yao and Chen 2021, arXiv 2104.08821.
    """
    options = Options(
        pooling=pooling,
        temperature=temperature,
        symmetric=symmetric,
        max_length=max_length,
        batch_size=batch_size,
        epochs=epochs,
        steps=steps,
        learning_rate=learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        seed=seed,
        bf16=bf16,
        fp16=fp16,
        evaluation_steps=evaluation_steps,
        patience=patience,
        save_steps=save_steps,
        keep_checkpoints=keep_checkpoints,
        duplicates=duplicates,
        mini_batch_tokens=mini_batch_tokens,
        memory_share=memory_share,
        mlm_weight=mlm_weight,
        dropout=dropout,
        augmentation=augmentation,
        augmentation_share=augmentation_share,
        loss=loss,
    )
    check_whole("observe_steps", observe_steps, 1)
    if (unsupervised is None) == (triplets is None):
        given = "neither" if triplets is None else "both"
        raise InputError(f"unsupervised: expected either unsupervised or triplets, got {given}")
    if patience is not None and evaluate is None:
        raise InputError("patience: needs evaluate, the pairs to evaluate on")
    if not save and (resume or evaluate is not None):
        raise InputError("save: resume and evaluate need checkpoints, got save=False")
    run = import_module("simcse_fast.training.run")  # torch's and transformers' imports wait here
    result: TrainingResult = run.run(
        model,
        source=triplets if unsupervised is None else unsupervised,
        argument="triplets" if unsupervised is None else "unsupervised",
        options=options,
        places=run.Places(
            output=Path(output),
            cache=Path(output) / "cache" if cache is None else Path(cache),
            evaluate=evaluate,
            resume=resume,
            report_to=report_to,
            device=device,
            save=save,
            observe=observe,
            observe_steps=observe_steps,
        ),
        say=say or (lambda _: None),
    )
    return result
