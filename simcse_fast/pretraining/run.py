"""One pre-training run, from the corpus to the saved model."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainingArguments, set_seed

from simcse_fast.errors import InputError
from simcse_fast.pretraining.batches import ByLength, Guesses
from simcse_fast.pretraining.held_out import HeldOut, split
from simcse_fast.pretraining.history import History
from simcse_fast.pretraining.model import make_model, with_usual_dropout
from simcse_fast.pretraining.options import VOCABULARY_SIZE
from simcse_fast.pretraining.pretrain import Pretrained
from simcse_fast.pretraining.progress import Progress
from simcse_fast.pretraining.trainer import MlmTrainer, Run
from simcse_fast.pretraining.vocabulary import learned_tokenizer, load_tokenizer
from simcse_fast.training.arguments import check_device, trainer_arguments
from simcse_fast.training.checkpoints import Checkpoints
from simcse_fast.training.interrupts import TrainingInterrupted, stop_on_signals
from simcse_fast.training.masking import Hider
from simcse_fast.training.run import (
    FINAL,
    quiet_transformers,
    told_where_to_go_on,
    where_to_start,
)
from simcse_fast.training.sealed import made, writing
from simcse_fast.training.text_encoder import TextEncoder
from simcse_fast.training.tokens import token_data

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from simcse_fast.pretraining.options import Options
    from simcse_fast.training.interrupts import StopRequest
    from simcse_fast.training.tokens import TokenData

ENDLESS = 1 << 30  # steps, where time ends the run
BETA2 = 0.98  # of AdamW: with a shorter memory than 0.999 short runs with high rates are stable


@dataclass(frozen=True)
class Places:
    """Where things are, and what leaves the trained weights as they are."""

    output: Path
    cache: Path
    resume: bool
    device: str | None


def run(
    corpus: Any,
    *,
    tokenizer: str | Path | None,
    options: Options,
    places: Places,
    say: Callable[[str], None],
) -> Pretrained:
    """Pre-train; see `simcse_fast.pretrain_mlm`."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("pretrain_mlm runs in one process; start it without torchrun")
    check_device(places.device)
    with quiet_transformers(), made(places.output, "output"):
        arguments = training_arguments(options, places)
        if tokenizer is None:
            size = options.vocabulary_size or VOCABULARY_SIZE
            words = learned_tokenizer(corpus, size, options.max_length, places.cache, say)
        else:
            words = load_tokenizer(str(tokenizer), options.max_length)
        say("reading the text")
        ids = TextEncoder(words, options.max_length)
        data = token_data(corpus, "corpus", ids, places.cache, say)
        set_seed(options.seed)  # the weights are drawn
        model = make_model(options, words)
        return carry_out(model, words, data, options, arguments, places, say)


def stuck(history: History, held_out: HeldOut) -> list[str]:
    """Whether nothing was learned but which token is the commonest."""
    if history.evaluations[-1].accuracy > held_out.commonest:
        return []
    share = f"{held_out.commonest:.1%}"
    told = f"the model guesses no better than the commonest token ({share} right): a lower "
    return [told + "learning_rate or a longer warmup may help"]


def training_arguments(options: Options, places: Places) -> Any:
    """The trainer's own arguments."""
    return trainer_arguments(
        TrainingArguments,
        places.output,
        places.device,
        seed=options.seed,
        bf16=options.bf16,
        learning_rate=options.highest_rate,
        weight_decay=options.weight_decay,
        adam_beta2=BETA2,
        save_steps=options.save_steps,
        logging_strategy="no",
        report_to="none",
    )


def carry_out(
    model: Any,
    tokenizer: Any,
    data: TokenData,
    options: Options,
    arguments: Any,
    places: Places,
    say: Callable[[str], None],
) -> Pretrained:
    """Train, and save what came of it."""
    checkpoints = Checkpoints(
        places.output, decisive(options, tokenizer, data), options.keep_checkpoints
    )
    start = where_to_start(checkpoints, resume=places.resume)
    notes = [*checkpoints.told, *data.report.sentences()]
    for note in notes:
        say(note)
    with stop_on_signals() as stop, told_where_to_go_on(checkpoints):
        history = History.load(start) if start else History()
        run_ = assemble(tokenizer, data, options, checkpoints, history, stop)
        arguments.max_steps = run_.order.steps
        trainer = MlmTrainer(run_, model=model, args=arguments)
        trainer.add_callback(Progress(run_))
        if start is None:
            trainer.evaluate()
        torch.manual_seed(options.seed)  # of dropout
        trainer.train_from(start)
        steps = len(history.losses)
        if not run_.is_over():
            raise TrainingInterrupted(
                f"training was stopped; {checkpoints.path(steps)} is whole, resume goes on from it"
            )
        notes += stuck(history, run_.held_out)
        folder = save_final(model, tokenizer, history, places.output)
    return Pretrained(
        folder=folder,
        history=history,
        steps=steps,
        vocabulary_size=len(tokenizer),
        parameters=model.num_parameters(),
        encoder_parameters=sum(p.numel() for p in model.bert.encoder.parameters()),
        data=data.report,
        notes=tuple(notes),
    )


def assemble(
    tokenizer: Any,
    data: TokenData,
    options: Options,
    checkpoints: Checkpoints,
    history: History,
    stop: StopRequest,
) -> Run:
    """Batches, and what they are judged by."""
    rows, held_out = split(data, options.held_out, options.seed)
    special = np.zeros(len(tokenizer), bool)
    special[tokenizer.all_special_ids] = True
    hider = Hider(tokenizer.mask_token_id, special, len(tokenizer))
    guesses = Guesses(data, hider, (tokenizer.pad_token_id, "right"))
    offsets = data.columns[0].offsets

    def by_length(rows: Any) -> ByLength:
        lengths = offsets[rows + 1] - offsets[rows]
        return ByLength(rows, lengths, options.batch_tokens, options.seed)

    order = by_length(rows)
    order.steps = steps_of(order, options)
    return Run(
        order=order,
        guesses=guesses,
        held_out=HeldOut(by_length(held_out), guesses),
        evaluation_steps=options.evaluation_steps,
        checkpoints=checkpoints,
        history=history,
        stop=stop,
        budget=None if options.minutes is None else 60 * options.minutes,
        warmup=options.warmup,
    )


def steps_of(order: ByLength, options: Options) -> int:
    """How many there are at most."""
    if options.minutes is not None:
        return ENDLESS
    return options.steps or max(round((options.epochs or 1.0) * len(order.drawn(0))), 1)


def decisive(options: Options, tokenizer: Any, data: TokenData) -> dict[str, Any]:
    """All that decides what is learned; checkpoints that differ in it do not mix."""
    given = asdict(options)
    for name in ("save_steps", "keep_checkpoints"):
        del given[name]
    return given | {"vocabulary_size": len(tokenizer), "data": data.content}


def save_final(model: Any, tokenizer: Any, history: History, output: Path) -> Path:
    """The model with its head, as transformers saves it; its tokenizer and history beside it."""
    folder = output / FINAL
    with writing(folder) as staging:
        with_usual_dropout(model).save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        history.save(staging)
    return folder
