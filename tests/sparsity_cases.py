"""Tiny encoders of every family whose units can be removed, and texts for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from train_models import WORDS, save_bert, scored_pairs
from transformers import AutoTokenizer

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = SIZES | {"intermediate_size": 32, "vocab_size": len(WORDS) + 5}
FAMILIES = {
    "Bert": SMALL,
    "Roberta": SMALL | {"max_position_embeddings": 80},
    "XLMRoberta": SMALL | {"max_position_embeddings": 80},
    "Camembert": SMALL | {"max_position_embeddings": 80},
    "Electra": SMALL | {"embedding_size": 16},
    "MPNet": SMALL | {"max_position_embeddings": 80},
    "DistilBert": {
        "dim": 16,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 32,
        "vocab_size": SMALL["vocab_size"],
    },
    "T5": {
        "d_model": 16,
        "d_kv": 4,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": SMALL["vocab_size"],
        "feed_forward_proj": "gated-gelu",
    },
}
TEXTS = ["c1 t1w1", "t2w3 c4 c5 t2w1 t2w2", "c9", "t3w1 t3w2 c8"]


def transformer(family: str) -> torch.nn.Module:
    """With random weights, wide enough apart that each unit matters."""
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    name = "T5EncoderModel" if family == "T5" else f"{family}Model"
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def bert(folder: Path, **options) -> SentenceTransformer:
    """A SentenceTransformer with the mean of a tiny BERT's tokens."""
    base = Transformer(str(save_bert(folder, **options)))
    model = SentenceTransformer(modules=[base, Pooling(16, "mean")], device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model


def pair(folder: Path, family: str) -> tuple[torch.nn.Module, object]:
    """The transformer, and a tokenizer of whole words."""
    save_bert(folder)
    return transformer(family), AutoTokenizer.from_pretrained(folder)


def pairs(count: int = 40, seed: int = 0) -> list[tuple[str, str, float]]:
    """Scored, half of them positive."""
    return scored_pairs(count, seed)
