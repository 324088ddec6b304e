"""The public function: from a corpus to a small encoder in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_fast.errors import InputError
from simcse_fast.pretraining.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable

    from simcse_fast.pretraining.history import Evaluation, History
    from simcse_fast.training.tokens import DataReport


@dataclass(frozen=True)
class Pretrained:
    """A pre-trained encoder, how it came about, and where it is."""

    folder: Path  # of the model and its tokenizer
    history: History
    steps: int
    vocabulary_size: int
    parameters: int  # of the masked language model
    encoder_parameters: int  # of these in the layers alone, without embeddings and head
    data: DataReport
    notes: tuple[str, ...]  # what a person should know, a sentence each

    @property
    def before(self) -> Evaluation:
        """On the held-out sentences, with random weights."""
        return self.history.evaluations[0]

    @property
    def after(self) -> Evaluation:
        """On the same, at the end."""
        return self.history.evaluations[-1]


def pretrain_mlm(
    corpus: Any,
    *,
    output: str | Path,
    tokenizer: str | Path | None = None,
    vocabulary_size: int | None = None,
    layers: int = 4,
    width: int = 192,
    heads: int | None = None,
    max_length: int = 64,
    batch_tokens: int = 4096,
    epochs: float | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    learning_rate: float | None = None,
    warmup: float = 0.05,
    weight_decay: float = 0.01,
    dropout: float = 0.1,
    bf16: bool = False,
    seed: int = 0,
    held_out: int | None = None,
    evaluation_steps: int = 500,
    save_steps: int = 500,
    keep_checkpoints: int = 2,
    resume: bool = False,
    cache: str | Path | None = None,
    device: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Pretrained:
    """Pre-train a small BERT from nothing on sentences, as a masked language model.

    loss = -mean over hidden tokens of log p(token | the sentence without them)

    15 % of the tokens are to be guessed; of these 80 % are hidden, 10 % replaced by any token and
    10 % left. Batches hold sentences of similar length. From the same seed it comes to the same
    bits on a CPU, also when it was killed and resumed; a run that `minutes` end does not, because
    its steps and its learning rate go by the clock. It runs in one process on one device.

    Args:
        corpus: sentences: a path to .txt (one a line), .tsv, .parquet or .jsonl, a data set on the
            hub, a `datasets.Dataset`, or an iterable of str.
        output: folder for checkpoints, the caches, and the model with its tokenizer, in `final`.
        tokenizer: name or folder of an existing one; None learns WordPiece, in lower case, from
            the corpus (from 400,000 sentences where it has twice as many or more).
        vocabulary_size: entries to learn, special tokens included; 16,000.
        layers: of the encoder.
        width: of its states; the feed-forward layers are four times as wide.
        heads: of attention in each layer; heads 64 wide by default.
        max_length: tokens of a sentence at most, special ones included; the rest is cut, and the
            model has no more positions.
        batch_tokens: of one step, padding included.
        epochs: passes over the corpus, 1 by default; or give `steps` or `minutes`.
        steps: optimizer steps.
        minutes: of training, its evaluations and checkpoints included; what comes before, learning
            the vocabulary and making ids, is on top.
        learning_rate: at its highest; falls to 0 linearly. By default 1e-3 to a width of 192, and
            in inverse proportion to the width beyond.
        warmup: share of the run in which the learning rate rises.
        weight_decay: of AdamW; not of biases and normalisations.
        dropout: while pre-training; the saved model's own is always BERT's 0.1.
        bf16: mixed precision in bfloat16.
        seed: of weights, order, hidden tokens and dropout.
        held_out: different sentences that are never trained on; 2,000, or one in 20 of a small
            corpus. The vocabulary is learned with them.
        evaluation_steps: steps between evaluations on these; there is one before and one after.
        save_steps: steps between checkpoints.
        keep_checkpoints: how many of the newest to keep.
        resume: go on from the newest whole checkpoint in `output`.
        cache: folder for vocabularies and token ids; by default in `output`.
        device: "cpu", or None for the best there is.
        say: called with each sentence on what is being done.

    Returns:
        Where the model is, and how well it guesses held-out tokens. It loads with transformers'
        `AutoModelForMaskedLM` and `AutoModel`, with SentenceTransformer, and in `train`.

    Raises:
        ValueError, TypeError: an argument or the data cannot be used; the message says which.
        OSError: a checkpoint or the model cannot be written; the last checkpoint is whole.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved.

    Reference: Devlin et al. 2019, arXiv 1810.04805.

    Example:
        >>> rhymes = [f"cat {n} sat on mat {n}" for n in range(100)]
        >>> small = {"layers": 1, "width": 16, "vocabulary_size": 100, "device": "cpu"}
        >>> result = pretrain_mlm(rhymes, output="mlm", steps=3, **small)
        >>> result.steps, result.folder.as_posix(), len(result.history.losses)
        (3, 'mlm/final', 3)
    """
    options = Options(
        vocabulary_size=vocabulary_size,
        layers=layers,
        width=width,
        heads=heads,
        max_length=max_length,
        batch_tokens=batch_tokens,
        epochs=epochs,
        steps=steps,
        minutes=minutes,
        learning_rate=learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        dropout=dropout,
        bf16=bf16,
        seed=seed,
        held_out=held_out,
        evaluation_steps=evaluation_steps,
        save_steps=save_steps,
        keep_checkpoints=keep_checkpoints,
    )
    if tokenizer is not None and vocabulary_size is not None:
        raise InputError("vocabulary_size: the tokenizer that was given has one; leave it out")
    run = import_module(
        "simcse_fast.pretraining.run"
    )  # torch's and transformers' imports wait here
    result: Pretrained = run.run(
        list(corpus) if isinstance(corpus, Iterator) else corpus,  # it is read more than once
        tokenizer=tokenizer,
        options=options,
        places=run.Places(
            output=Path(output),
            cache=Path(output) / "cache" if cache is None else Path(cache),
            resume=resume,
            device=device,
        ),
        say=say or (lambda _: None),
    )
    return result
