"""Tiny models and texts for the tests of training, made from nothing."""

import atexit
import gc
import hashlib
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

# Every training collects garbage; what the imports have made would be looked through each time.
gc.freeze()
atexit.register(gc.unfreeze)

TOPICS, WORDS_OF_A_TOPIC, COMMON = 20, 10, 60
WORDS = [f"t{t}w{w}" for t in range(TOPICS) for w in range(WORDS_OF_A_TOPIC)] + [
    f"c{n}" for n in range(COMMON)
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer(special: list[str]) -> Tokenizer:
    """Whole words in lower case."""
    numbers = {word: number for number, word in enumerate([*special, *WORDS])}
    made = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))  # noqa: S106 - no password
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def save_bert(folder: Path, layers: int = 2, dropout: float = 0.1) -> Path:
    """A plain BERT of transformers with random weights, 16 wide, and 64 positions."""
    made = tokenizer(SPECIAL)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=64, **dict(zip(names, SPECIAL, strict=True))
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


def save_static(folder: Path) -> Path:
    """A static model with random word vectors, 16 wide."""
    made = tokenizer(["[UNK]"])
    vectors = torch.randn(len(WORDS) + 1, 16, generator=torch.Generator().manual_seed(0)) * 0.1
    module = StaticEmbedding(made, embedding_weights=vectors)
    model = SentenceTransformer(modules=[module], device="cpu")
    model.save(str(folder), create_model_card=False)
    return folder


def sentence(topic: int, rng: np.random.Generator, length: int = 0) -> str:
    """Words of one topic between common words."""
    length = length or int(rng.integers(6, 16))
    own = [f"t{topic}w{w}" for w in rng.integers(0, WORDS_OF_A_TOPIC, (length + 1) // 2)]
    common = [f"c{w}" for w in rng.integers(0, COMMON, length // 2)]
    return " ".join(rng.permutation([*own, *common]))


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of all topics in turn."""
    rng = np.random.default_rng(seed)
    return [sentence(row % TOPICS, rng) for row in range(count)]


def triplets(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """Two sentences of a topic, and one of another."""
    rng = np.random.default_rng(seed)
    topics = [(row % TOPICS, row % TOPICS, (row + 1) % TOPICS) for row in range(count)]
    return [tuple(sentence(topic, rng) for topic in row) for row in topics]


def scored_pairs(count: int, seed: int = 0) -> list[tuple[str, str, float]]:
    """Pairs of one topic (score 5) and of two (score 0)."""
    rng = np.random.default_rng(seed)
    rows = [(row % TOPICS, (row + row % 2) % TOPICS) for row in range(count)]
    return [(sentence(a, rng), sentence(b, rng), 5.0 * (a == b)) for a, b in rows]


def write_lines(path: Path, rows: list) -> Path:
    """One row a line, its fields separated by tabs."""
    lines = [row if isinstance(row, str) else "\t".join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def weights_hash(model: torch.nn.Module) -> str:
    """Of all weights, bit for bit."""
    content = hashlib.sha256()
    for name, value in model.state_dict().items():
        content.update(name.encode() + value.numpy().tobytes())
    return content.hexdigest()
