"""What the examples run on by default: the spelling alphabet, and a small encoder of its words."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

ALPHABET = (
    "alfa bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar "
    "papa quebec romeo sierra tango uniform victor whiskey xray yankee zulu"
)
WORDS = ALPHABET.split()
Pairs = list[tuple[str, str]]


def pairs(count: int, seed: int = 0) -> Pairs:
    """Texts that belong together: ("m a t", "mike alfa tango")."""
    rng = np.random.default_rng(seed)
    rows = [rng.choice(WORDS, rng.integers(3, 9), replace=False) for _ in range(count)]
    return [(" ".join(word[0] for word in row), " ".join(row)) for row in rows]


def read_lines(path: str) -> list[str]:
    """Lines of a text file; for argparse."""
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from error


def read_pairs(path: str) -> Pairs:
    """Lines of a file, two texts with a tab between them on each; for argparse."""
    lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        if (tabs := line.count("\t")) != 1:
            raise argparse.ArgumentTypeError(
                f"{path}, line {number}: expected 2 tab-separated texts, found {tabs + 1}."
            )
    if len(lines) == 1:
        raise argparse.ArgumentTypeError(f"{path}: expected 2 pairs or more, found 1.")
    return [tuple(line.split("\t")) for line in lines]


def split(rows: Pairs) -> tuple[Pairs, Pairs]:
    """Pairs to train on, and a tenth to measure on."""
    held_out = max(1, len(rows) // 10)
    return rows[:-held_out], rows[-held_out:]


def save_bert(folder: str) -> str:
    """An untrained BERT, 32 wide, that knows letters and the words of the alphabet."""
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    known = [*special.values(), *(word[0] for word in WORDS), *WORDS]
    numbers = {word: number for number, word in enumerate(known)}
    words = Tokenizer(models.WordLevel(numbers, unk_token=special["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, **special).save_pretrained(
        folder
    )
    config = BertConfig(
        vocab_size=len(known),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def accuracy(encoder: nn.Module, embed: Callable, left: Mapping, right: Mapping) -> float:
    """Share of the rows of `left` whose nearest one of `right`, by cosine, is their own."""
    encoder.eval()
    a, b = (F.normalize(x) for x in embed(left, right))
    encoder.train()
    return ((a @ b.T).argmax(1) == torch.arange(len(a), device=a.device)).float().mean().item()
