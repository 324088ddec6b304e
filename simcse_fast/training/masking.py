"""The masked language model beside the contrast: which tokens are hidden, and what guesses them.

A masked sentence goes through the same model as any other and comes back as one number, the sum of
its hidden tokens' losses. So the gradient cache takes it like an embedding of width 1: memory,
random numbers, precision and the processes' synchronisation are minded there.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoModelForMaskedLM
from transformers.utils import logging

from simcse_fast.errors import InputError
from simcse_fast.training.encoders import OnlyWhileTraining

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from simcse_fast.training.encoders import Encoder

# As BERT has it: so many tokens are to be guessed; of these so many are hidden, so many of the
# others replaced by any token, the rest left as they are.
GUESSED, HIDDEN, REPLACED = 0.15, 0.8, 0.5
TARGETS = "targets"


@dataclass(frozen=True)
class Hider:
    """Hides tokens of a batch.

    Args:
        mask: the id that hides a token.
        special: (ids of the model,) True for those that are never hidden.
        size: of the tokenizer's vocabulary; a model may have more ids, which nobody ever sees.
    """

    mask: int
    special: NDArray[np.bool_]
    size: int

    def __call__(
        self, ids: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids with some of them hidden; and of those to guess what they were, plus 1, else 0.

        0 says that nothing is to be guessed, because it is what mini-batches fill rows up with.
        """
        guessed = (rng.random(len(ids)) < GUESSED) & ~self.special[ids]
        place = np.flatnonzero(guessed)
        hidden = rng.random(len(place)) < HIDDEN
        replaced = ~hidden & (rng.random(len(place)) < REPLACED)
        shown = ids.copy()
        shown[place[hidden]] = self.mask
        shown[place[replaced]] = rng.integers(0, self.size, int(replaced.sum()))
        return shown, np.where(guessed, ids + 1, 0)


class MaskedHead(OnlyWhileTraining):
    """The head of a masked language model, at the end of a SentenceTransformer.

    Args:
        language_model: of transformers, with the encoder in its place; keeps all but the encoder,
            whose word embeddings its last layer may share.
    """

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        setattr(language_model, language_model.base_model_prefix, Reached())
        self.language_model = language_model
        self.targets: Tensor | None = None

    @contextmanager
    def guessing(self, targets: Tensor | None) -> Iterator[None]:
        """Within, the model returns losses of tokens; without targets it is as ever.

        Args:
            targets: (rows, width) id + 1 of each token to guess, 0 for all others.
        """
        self.targets = targets
        try:
            yield
        finally:
            self.targets = None

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """(rows, 1) sums of the losses of the tokens to guess, in place of embeddings."""
        if self.targets is None:
            return features
        layers = features.get("all_layer_embeddings")  # a pooling may have changed what follows
        states = features["token_embeddings"] if layers is None else layers[-1]
        guessed = self.targets > 0
        logits = self.logits(states[guessed])  # of these only: a vocabulary wide
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(logits, self.targets[guessed] - 1, reduction="none")
        by_token = losses.new_zeros(guessed.shape).masked_scatter(guessed, losses)
        # Nothing else: what DistributedDataParallel finds in its output must be used.
        return {"sentence_embedding": by_token.sum(1, keepdim=True)}

    def logits(self, states: Tensor) -> Tensor:
        """(tokens, width) -> (tokens, vocabulary)."""
        model = self.language_model
        reached = getattr(model, model.base_model_prefix)
        reached.states = states[None]
        try:
            ids = torch.zeros((1, len(states)), dtype=torch.int64, device=states.device)
            logits: Tensor = model(input_ids=ids).logits[0]
        finally:
            reached.states = None
        return logits


class Reached(nn.Module):
    """Stands where a language model has its encoder, and returns what another one has reached."""

    def __init__(self) -> None:
        super().__init__()
        self.states: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> States:
        """The states, whatever the input."""
        return States(self.states)


class States:
    """What heads read of an encoder's output: the last states come first, all else is missing."""

    def __init__(self, states: Tensor | None) -> None:
        self.states = states

    def __getitem__(self, _: object) -> Tensor | None:
        return self.states

    def __getattr__(self, _: str) -> None:
        return None


@dataclass(frozen=True)
class Masking:
    """The masked language model of a run."""

    head: MaskedHead
    hider: Hider
    weight: float
    fresh: str | None  # a sentence, where the head begins with random weights


def add_masking(encoder: Encoder, weight: float) -> Masking | None:
    """Give an encoder the head that its kind has in transformers; None for a weight of 0.

    Raises:
        InputError: its kind has none, or its tokenizer has nothing to hide tokens with.
    """
    if not weight:
        return None
    said = f"mlm_weight: got {weight:g}, but {encoder.name}"
    if encoder.static:
        raise InputError(f"{said} is a static model, which cannot guess tokens; leave it out")
    module, tokenizer = encoder.model[0], encoder.model.tokenizer
    config = module.model.config
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or config.is_encoder_decoder:
        raise InputError(
            f"{said} is of the kind {config.model_type}, for which transformers has no masked "
            "language model; leave it out"
        )
    if getattr(tokenizer, "mask_token_id", None) is None:
        raise InputError(f"{said} has a tokenizer without a mask token; leave it out")
    special = np.zeros(config.vocab_size, bool)
    special[[number for number in tokenizer.all_special_ids if number < len(special)]] = True
    language_model, whole = load_language_model(config)
    head = with_encoder(language_model, module.model)
    try:
        with torch.no_grad():
            head.logits(next(head.parameters()).new_zeros(1, module.get_embedding_dimension()))
    except Exception as error:  # whatever a head does that is no function of each state alone
        raise InputError(
            f"{said} has a masked language model whose head does not work apart from it; leave "
            "it out"
        ) from error
    encoder.model.append(head)
    fresh = f"{encoder.name} holds no masked language model's head: it begins with random weights"
    hider = Hider(tokenizer.mask_token_id, special, min(len(tokenizer), len(special)))
    return Masking(head, hider, weight, None if whole else fresh)


def with_encoder(language_model: Any, encoder: nn.Module) -> MaskedHead:
    """The head alone; where its last layer is the word embeddings, it is this encoder's."""
    setattr(language_model, language_model.base_model_prefix, encoder)
    language_model.tie_weights()
    head = MaskedHead(language_model)
    like = next(encoder.parameters())
    return head.to(like.device, like.dtype)


def load_language_model(config: Any) -> tuple[Any, bool]:
    """The masked language model of a configuration, and whether the checkpoint has its head."""
    told = logging.get_verbosity()
    logging.set_verbosity_error()  # it would list what is missing; a note says so
    try:
        model = stored_language_model(config)
        if model is not None:
            return model, True
        return AutoModelForMaskedLM.from_config(copy.deepcopy(config)), False
    finally:
        logging.set_verbosity(told)


def stored_language_model(config: Any) -> Any:
    """The one of the checkpoint that a configuration came from; None without a whole head.

    What is missing there stays without values in some models of transformers (Longformer's bias).
    """
    try:
        model, about = AutoModelForMaskedLM.from_pretrained(
            config.name_or_path,
            config=copy.deepcopy(config),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError):  # made in memory, or not there any more
        return None
    lacking = [*about["missing_keys"], *(key for key, *_ in about["mismatched_keys"])]
    whole = all(key.startswith(f"{model.base_model_prefix}.") for key in lacking)
    return model if whole else None
