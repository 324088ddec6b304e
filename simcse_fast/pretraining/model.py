"""A small BERT, and the loss of the tokens that it is to guess."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM

if TYPE_CHECKING:
    from torch import Tensor

    from simcse_fast.pretraining.options import Options

DROPOUT = 0.1  # of BERT, and of whatever is trained from here on: SimCSE's twins differ by it


def make_model(options: Options, tokenizer: Any) -> BertForMaskedLM:
    """With random weights; as many positions as are trained."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.number_of_heads,
        intermediate_size=4 * options.width,
        max_position_embeddings=options.max_length,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertForMaskedLM(config)


def with_usual_dropout(model: BertForMaskedLM) -> BertForMaskedLM:
    """For who loads it, whatever it was pre-trained with."""
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = DROPOUT
    return model


def logits_of(model: BertForMaskedLM, batch: dict[str, Any]) -> Tensor:
    """(tokens to guess, vocabulary), of these tokens only."""
    states = model.bert(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).last_hidden_state
    logits: Tensor = model.cls(states.flatten(0, 1)[batch["place"]])
    return logits.float()


def loss_of(model: BertForMaskedLM, batch: dict[str, Any]) -> Tensor:
    """Mean over the tokens to guess; 0 where there is none."""
    logits = logits_of(model, batch)
    return F.cross_entropy(logits, batch["guessed"], reduction="sum") / max(len(logits), 1)
