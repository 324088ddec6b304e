"""Encoders and sentences of the attribution benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, BertConfig, BertModel

from benchmarks.training_data import SHAPES, minilm_folder

if TYPE_CHECKING:
    from typing import Any

STS = Path(__file__).resolve().parents[2] / "shared" / "data" / "sts"
SPECIAL = 2  # tokens around a sentence


def encoder(name: str, device: str) -> Any:
    """all-MiniLM-L6-v2, or a pair of random BERT and MiniLM's tokenizer, and its pooling."""
    if name == "minilm":
        return SentenceTransformer(minilm_folder(), device=device)
    layers, width = SHAPES[name]
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=12,
        intermediate_size=4 * width,
    )
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    return BertModel(config, add_pooling_layer=False).to(device).eval(), tokenizer


def parts(model: Any) -> tuple[Any, Any]:
    """The transformer and its tokenizer."""
    return model if isinstance(model, tuple) else (model[0].model, model.tokenizer)


def sentences(split: str, count: int) -> list[str]:
    """Sentences of the STS benchmark, or of random words where it is not beside the project."""
    path = STS / f"stsb_{split}.tsv"
    if not path.exists():
        return [text for length in range(8, 20) for text in of_length(length, count // 12 + 1)]
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    step = max(1, len(lines) // count)
    return [line.split("\t")[2] for line in lines[::step]][:count]


def of_length(tokens: int, count: int) -> list[str]:
    """Sentences of so many tokens, special ones included, one token a word."""
    words = whole_words()
    drawn = torch.randint(len(words), (count, tokens - SPECIAL), generator=_seeded())
    return [" ".join(words[n] for n in row) for row in drawn.tolist()]


def whole_words() -> list[str]:
    """Words that are one token."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    return sorted(word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii())


def of_whole_words(count: int, fewest: int, most: int) -> list[str]:
    """Real sentences of so many words, all of one token."""
    known, found = set(whole_words()) | {".", ","}, []
    for text in sentences("dev", 1500):
        words = text.lower().replace(".", " .").replace(",", " ,").split()
        if fewest <= len(words) <= most and known.issuperset(words):
            found.append(" ".join(words))
    return found[:count]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
