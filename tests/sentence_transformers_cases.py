"""Models, sentences and options with which drop-ins and originals are compared."""

import itertools
import warnings

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(60)]
OPTIONAL = ["query_to_query", "doc_to_query", "doc_to_doc"]
JOINT = [
    ("query_to_doc", *some)
    for count in range(len(OPTIONAL) + 1)
    for some in itertools.combinations(OPTIONAL, count)
]
DIRECTIONS = [
    *({"directions": directions, "partition_mode": "joint"} for directions in JOINT),
    {"directions": ("query_to_doc",), "partition_mode": "per_direction"},
    # The order in which a user names them, and naming one twice, change nothing.
    {"directions": ("doc_to_query", "query_to_doc"), "partition_mode": "per_direction"},
]
HARDNESS = [
    {},
    *(
        {"hardness_mode": mode, "hardness_strength": 3.0}
        for mode in ("in_batch_negatives", "hard_negatives", "all_negatives")
    ),
]


def name_of(options):
    return "-".join(str(value) for value in options.values()) or "default"


def silent(make, *arguments, **options):
    """An object whose class is deprecated, or whose options make the original log a hint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return make(*arguments, **options)


def word_tokenizer():
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def static_model(dtype=torch.float32):
    torch.manual_seed(0)
    module = StaticEmbedding(word_tokenizer(), embedding_dim=12)
    return SentenceTransformer(modules=[module], device="cpu").to(dtype)


def sentences(columns, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(len(WORDS), (columns, rows, 5), generator=generator)
    numbers[1, :, :3] = numbers[0, :, :3]  # something to learn: a positive shares three words
    return [[" ".join(WORDS[n] for n in row) for row in column.tolist()] for column in numbers]


def texts(columns, rows, seed=0):
    """Sentences of 1 to 17 words; a positive begins as its anchor does."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(columns):
        lengths = torch.randint(1, 18, (rows,), generator=generator).tolist()
        drawn = torch.randint(1, len(WORDS), (rows, 17), generator=generator).tolist()
        found.append(
            [" ".join(WORDS[n] for n in row[:k]) for row, k in zip(drawn, lengths, strict=True)]
        )
    found[1] = [f"{a} {b}" for a, b in zip(found[0], found[1], strict=True)]
    return found


def bert(folder, dtype=torch.float64, dropout=0.0, prompts=None):
    """A SentenceTransformer of two small layers with random weights, by way of a folder."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), pad_token=WORDS[0], unk_token=WORDS[0]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformer = Transformer(str(folder), max_seq_length=32)
    pooling = Pooling(16, include_prompt=prompts is None)
    model = SentenceTransformer(modules=[transformer, pooling], device="cpu", prompts=prompts)
    return model.to(dtype).train()
