"""One training run, from the loaded model to the saved one."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from transformers import set_seed
from transformers.utils import logging

from simcse_fast.errors import InputError
from simcse_fast.training.arguments import check_device, check_reports, trainer_arguments
from simcse_fast.training.augmentation import shortener
from simcse_fast.training.batches import Collator, Order
from simcse_fast.training.checkpoints import Checkpoints
from simcse_fast.training.encoders import drop_heads, load_encoder, with_dropout
from simcse_fast.training.history import History
from simcse_fast.training.identity import decisive
from simcse_fast.training.interrupts import TrainingInterrupted, stop_on_signals
from simcse_fast.training.masking import add_masking
from simcse_fast.training.objective import Contrast, Objective
from simcse_fast.training.observer import Watch
from simcse_fast.training.options import EVALUATION_STEPS, MAX_LENGTH, SHORTENED
from simcse_fast.training.progress import Progress
from simcse_fast.training.sealed import made, writing
from simcse_fast.training.text_encoder import TextEncoder
from simcse_fast.training.texts import read_scored_pairs
from simcse_fast.training.tokens import token_data
from simcse_fast.training.train import TrainingResult
from simcse_fast.training.trainer import Run, SimCSETrainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

    from simcse_fast.training.encoders import Encoder
    from simcse_fast.training.interrupts import StopRequest
    from simcse_fast.training.masking import Masking
    from simcse_fast.training.observer import Observe
    from simcse_fast.training.options import Options
    from simcse_fast.training.tokens import TokenData

FINAL = "final"
LOGGING_STEPS = 10
TIMEOUT = 6 * 3600  # seconds that processes wait for the one that tokenizes


@dataclass(frozen=True)
class Places:
    """Where things are, and what leaves the trained weights as they are."""

    output: Path
    cache: Path
    evaluate: Any
    resume: bool
    report_to: str | list[str]
    device: str | None
    save: bool
    observe: Observe | None
    observe_steps: int


@dataclass(frozen=True)
class Plan:
    """The options with their defaults filled in."""

    encoder: Encoder
    masking: Masking | None
    data: TokenData
    options: Options
    supervised: bool
    batch_size: int
    steps: int
    learning_rate: float


def run(
    model: Any,
    *,
    source: Any,
    argument: str,
    options: Options,
    places: Places,
    say: Callable[[str], None],
) -> TrainingResult:
    """Train; see `simcse_fast.train`."""
    check_device(places.device)
    with quiet_transformers(), made(places.output, "output"):
        arguments = training_arguments(options, places)
        evaluator = evaluator_of(places.evaluate)
        say("loading the model")
        set_seed(options.seed)  # the head is drawn
        encoder = load_encoder(
            model,
            pooling=options.pooling,
            supervised=argument == "triplets",
            device=places.device,
        )
        try:
            masking = add_masking(encoder, options.mlm_weight)
            with arguments.main_process_first(local=False, desc="tokenizing"):  # for all machines
                say("reading the text")
                ids = text_encoder(encoder, options, argument)
                data = token_data(source, argument, ids, places.cache, say)
            supervised, processes = argument == "triplets", arguments.world_size
            plan = make_plan(encoder, masking, data, options, supervised, processes)
            with with_dropout(encoder, options.dropout):
                return carry_out(plan, arguments, evaluator, places, say)
        finally:
            drop_heads(encoder.model)  # a model that was passed in may be trained again


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars for loading and saving weights; ours is enough."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def training_arguments(options: Options, places: Places) -> SentenceTransformerTrainingArguments:
    """The trainer's own arguments that are known before the data; its processes start here."""
    arguments = trainer_arguments(
        SentenceTransformerTrainingArguments,
        places.output,
        places.device,
        seed=options.seed,
        bf16=options.bf16,
        fp16=options.fp16,
        warmup_steps=options.warmup,
        weight_decay=options.weight_decay,
        save_strategy="steps" if places.save else "no",
        save_steps=options.save_steps,
        eval_strategy="no" if places.evaluate is None else "steps",
        eval_steps=options.evaluation_steps or EVALUATION_STEPS,
        logging_steps=LOGGING_STEPS,
        report_to=places.report_to,
        ddp_timeout=TIMEOUT,
    )
    check_reports(arguments.report_to)
    return arguments


def evaluator_of(source: Any) -> EmbeddingSimilarityEvaluator | None:
    """Spearman of cosines with gold scores."""
    if source is None:
        return None
    first, second, scores = read_scored_pairs(source)
    return EmbeddingSimilarityEvaluator(
        first, second, scores, batch_size=64, main_similarity="cosine", write_csv=False
    )


def text_encoder(encoder: Encoder, options: Options, argument: str) -> TextEncoder:
    """How texts become ids for this model."""
    asked = options.max_length
    if asked is None and not encoder.static:
        asked = MAX_LENGTH
    fewest = 2 if encoder.static and argument == "unsupervised" else 1  # one word a half
    return TextEncoder(encoder.model.tokenizer, encoder.longest(asked), fewest)


def make_plan(
    encoder: Encoder,
    masking: Masking | None,
    data: TokenData,
    options: Options,
    supervised: bool,
    processes: int,
) -> Plan:
    """Fill in defaults, and refuse batches that do not fit the data or the processes."""
    rows = data.report.rows
    if options.symmetric and len(data.columns) > 2:  # noqa: PLR2004 - anchors and positives
        raise InputError("symmetric: needs pairs, the data has negatives too")
    check_views(encoder, options, supervised, processes)
    if options.batch_size is not None and options.batch_size > rows:
        raise InputError(f"batch_size: got {options.batch_size}, the data has {rows} rows")

    def recipe(name: str) -> Any:
        return options.recipe(name, static=encoder.static, supervised=supervised)

    batch_size = min(recipe("batch_size"), rows)
    if batch_size < processes:
        raise InputError(
            f"batch_size: expected at least one row for each of {processes} processes, got "
            f"{batch_size}"
        )
    per_epoch = rows // batch_size
    return Plan(
        encoder=encoder,
        masking=masking,
        data=data,
        options=options,
        supervised=supervised,
        batch_size=batch_size,
        steps=options.steps or max(round(recipe("epochs") * per_epoch), 1),
        learning_rate=recipe("learning_rate"),
    )


def check_views(encoder: Encoder, options: Options, supervised: bool, processes: int) -> None:
    """Refuse ways to make views, and to contrast them, that are not for this model or data."""
    if options.augmentation != "none" and (supervised or encoder.static):
        own = "triplets have" if supervised else "a static model has"
        what = "their positives" if supervised else "halves of the words"
        raise InputError(f"augmentation: {own} {what} as views, got {options.augmentation!r}")
    if options.loss == "textbook" and processes > 1:
        raise InputError(f"loss: textbook is for one process, got {processes}")


def carry_out(
    plan: Plan,
    arguments: Any,
    evaluator: EmbeddingSimilarityEvaluator | None,
    places: Places,
    say: Callable[[str], None],
) -> TrainingResult:
    """Train by the plan, and save what came of it."""
    arguments.max_steps = plan.steps
    arguments.learning_rate = plan.learning_rate
    arguments.per_device_train_batch_size = plan.batch_size // arguments.world_size
    # A transformer's own pooler is there and not used; looking for such parameters takes time.
    arguments.ddp_find_unused_parameters = not plan.encoder.static
    checkpoints = Checkpoints(
        places.output,
        decisive(plan, evaluator, arguments.world_size),
        plan.options.keep_checkpoints,
    )
    start = where_to_start(checkpoints, resume=places.resume)
    notes = [*checkpoints.told, *plan.data.report.sentences()]
    if plan.masking and plan.masking.fresh and start is None:
        notes.append(plan.masking.fresh)
    for note in notes:
        say(note)
    with stop_on_signals() as stop, told_where_to_go_on(checkpoints):
        run_ = assemble(plan, arguments, checkpoints, evaluator, start, stop, places)
        trainer = SimCSETrainer(run_, model=plan.encoder.model, args=arguments)
        trainer.add_callback(Progress(run_.history))
        if evaluator is not None and start is None:
            trainer.evaluate()
        # Other dropout for other rows: the trainer gives all processes one seed.
        torch.manual_seed(plan.options.seed + arguments.process_index)
        trainer.train_from(start, plan.steps)
        steps = len(run_.history.losses)
        if stop.asked and not trainer.is_over(plan.steps):
            kept = f"{checkpoints.path(steps)} is whole, resume goes on from it"
            raise TrainingInterrupted(
                f"training was stopped; {kept if places.save else 'nothing was to be saved'}"
            )
        trainer.load_best()
        folder = finish(plan.encoder.model, places, first=trainer.is_world_process_zero())
        trainer.accelerator.wait_for_everyone()
    return TrainingResult(
        plan.encoder.model, run_.history, folder, plan.data.report, steps, tuple(notes)
    )


def where_to_start(checkpoints: Checkpoints, *, resume: bool) -> Path | None:
    """The checkpoint to go on from, if one was asked for and is there."""
    if not resume:
        checkpoints.refuse_others()
        return None
    start = checkpoints.newest()
    if start is None:
        told = f"no whole checkpoint in {checkpoints.folder}: starting from the beginning"
    else:
        told = f"resumed from {start}"
    checkpoints.told.append(told)
    return start


@contextmanager
def told_where_to_go_on(checkpoints: Checkpoints) -> Iterator[None]:
    """A second signal stops in the middle of a step: what is whole is older."""
    try:
        yield
    except TrainingInterrupted:
        raise
    except KeyboardInterrupt as stop:
        raise TrainingInterrupted(
            "training was stopped at once; resume goes on from "
            f"{checkpoints.whole() or 'the beginning'}"
        ) from stop


def assemble(
    plan: Plan,
    arguments: Any,
    checkpoints: Checkpoints,
    evaluator: EmbeddingSimilarityEvaluator | None,
    start: Path | None,
    stop: StopRequest,
    places: Places,
) -> Run:
    """Batches and loss of a run."""
    options, encoder = plan.options, plan.encoder
    contrast = Contrast(
        options.temperature,
        options.symmetric,
        options.mini_batch_tokens,
        options.memory_share,
        arguments.world_size,
        options.loss,
    )
    shorten = watch = None
    if places.observe is not None:
        watch = Watch(encoder.model, places.observe, places.observe_steps)
    if options.augmentation in SHORTENED:
        share = options.augmentation_share
        shorten = shortener(encoder.model.tokenizer, options.augmentation, share)
    return Run(
        order=Order(plan.data.rows, plan.batch_size, options.seed),
        collate=Collator(
            plan.data,
            static=encoder.static,
            twins=not plan.supervised,
            padding=encoder.padding(),
            mask_duplicates=options.duplicates == "mask",
            share=(arguments.process_index, arguments.world_size),
            hider=None if plan.masking is None else plan.masking.hider,
            shorten=shorten,
            one_mask=options.augmentation == "fixed_mask",
        ),
        objective=Objective(encoder.model, contrast, static=encoder.static, masking=plan.masking),
        checkpoints=checkpoints,
        evaluator=evaluator,
        patience=options.patience,
        history=History.load(start) if start else History(),
        stop=stop,
        save=places.save,
        watch=watch,
    )


def finish(model: SentenceTransformer, places: Places, *, first: bool) -> Path:
    """The model without its training head, saved as sentence-transformers does if it is to be."""
    folder = places.output / FINAL
    drop_heads(model)
    model.eval()
    if not places.save:
        return folder
    # Without the first tag the card of a model that was loaded would be saved as it is.
    model.model_card_data.add_tags(["generated_from_trainer", "simcse"])
    if first:
        with writing(folder) as staging:
            model.save_pretrained(str(staging))
    return folder
