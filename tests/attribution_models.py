"""Tiny encoders with curved paths, their tokenizers, and Integrated Gradients written out."""

from __future__ import annotations

import tempfile
from functools import cache
from types import SimpleNamespace

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

WIDTH, POSITIONS = 32, 40
VOCABULARY = (
    "the a cat dog bird chase watch sleep red blue old quick house river green over very small "
    "large sing run jump quiet storm query : , . ! ##s ##ing ##ed ##er ##ly ##est un ##like"
)
# One word and many, words in pieces, words twice, a comma, an unknown word.
TEXTS = [
    "the cat watched a quick bird",
    "quietly singing storms",
    "storm",
    "the old dog chased the old cat over the river",
    "large birds sleep, small birds jump",
    "a zebra runs!",
    "very quick",
    "red house, blue house, green river.",
]
KNOWN = ["bert", "roberta", "xlm-roberta", "camembert", "mpnet", "distilbert"]
UNKNOWN = ["electra", "modernbert"]
POOLINGS = ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "mpnet": "MPNet",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "modernbert": "ModernBert",
}
BERT_SPECIAL = {
    "pad": "[PAD]",
    "unk": "[UNK]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
}
# Padding is token 1: positions are counted from behind it.
ROBERTA_SPECIAL = {
    "cls": "<s>",
    "pad": "<pad>",
    "sep": "</s>",
    "unk": "<unk>",
    "mask": "<mask>",
}


def word_pieces(special):
    names = [*special.values(), *VOCABULARY.split(), "[rare]"]
    made = Tokenizer(
        models.WordPiece({name: n for n, name in enumerate(names)}, unk_token=special["unk"])
    )
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return made


def byte_pairs(special):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # Gaps join the letter behind them first: only before other characters do they stand alone.
    letters = [f" {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] * 99
    words = [f" {word.strip('#')}" for word in VOCABULARY.split()] * 2
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(letters + words, trainer)
    return made


def unigrams():
    pieces = [(name, 0.0) for name in ROBERTA_SPECIAL.values()]
    pieces += [("\u2581" + word, -2.0) for word in VOCABULARY.split() if "#" not in word]
    pieces += [(word[2:], -3.0) for word in VOCABULARY.split() if "#" in word]
    pieces += [(letter, -9.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz,.!:"]
    made = Tokenizer(models.Unigram(pieces, unk_id=3))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    return made


@cache
def tokenizer_of(family, special_tokens=True, **kept_out):
    """The tokenizer of a family, in its own style; `mask=None` leaves its mask token out."""
    roberta = family in {"roberta", "xlm-roberta", "camembert", "mpnet"}
    special = ROBERTA_SPECIAL if roberta else BERT_SPECIAL
    if family in {"roberta", "modernbert"}:
        made = byte_pairs(special)
    elif family in {"xlm-roberta", "camembert"}:
        made = unigrams()
    else:
        made = word_pieces(special)
    ends = special["cls"], special["sep"]
    if family == "roberta":  # offsets without the space before a word
        made.post_processor = processors.RobertaProcessing(
            *((name, made.token_to_id(name)) for name in reversed(ends)), add_prefix_space=False
        )
    elif special_tokens:  # ModernBERT's offsets include it
        made.post_processor = processors.TemplateProcessing(
            single=f"{ends[0]} $A {ends[1]}",
            special_tokens=[(name, made.token_to_id(name)) for name in ends],
        )
    named = {f"{name}_token": token for name, token in special.items() if name not in kept_out}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=POSITIONS, **named)


@cache
def transformer_of(family, dtype=torch.float64, dropout=0.0, **config):
    """Two layers with random weights, large enough to bend the path."""
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": len(tokenizer_of(family)),
        "max_position_embeddings": POSITIONS + 2 * (family not in {"bert", "electra"}),
        "pad_token_id": tokenizer_of(family).pad_token_id,
        "attention_dropout": dropout,
    }
    if family == "distilbert":
        sizes |= {"dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "dropout": dropout}
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            sizes.pop(name)  # other names of the same
    elif family == "modernbert":
        sizes |= dict.fromkeys(("embedding_dropout", "mlp_dropout"), dropout)
        sizes |= {"local_attention": 4, "reference_compile": False}
        ids = tokenizer_of(family)
        sizes |= {"bos_token_id": ids.cls_token_id, "cls_token_id": ids.cls_token_id}
        sizes |= {"eos_token_id": ids.sep_token_id, "sep_token_id": ids.sep_token_id}
    else:
        sizes |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        sizes |= {"embedding_size": WIDTH} if family == "electra" else {}
    name = CLASSES[family]
    made = getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name}Config")(**sizes | config)
    )
    return shaken(made).to(dtype).eval()


def shaken(module, size=0.3, seed=0):
    """The module with other weights in every place, also where all begin at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            centre = parameter.mean().round() if parameter.ndim == 1 else 0.0
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator) + centre)
    return module


def pair_of(family="bert", dtype=torch.float64, **options):
    """A transformer with its tokenizer."""
    return transformer_of(family, dtype, **options), tokenizer_of(family)


@cache
def module_of(family, dtype):
    """The same as the first module of a SentenceTransformer, by way of a folder."""
    with tempfile.TemporaryDirectory() as folder:
        transformer_of(family, torch.float64).save_pretrained(folder)
        tokenizer_of(family).save_pretrained(folder)
        module = Transformer(folder)
    return module.to(dtype).eval()


def dense():
    """A layer behind the pooling that bends the embedding once more, to 20 dimensions."""
    return shaken(Dense(WIDTH, 20, activation_function=nn.Tanh()), seed=1).double()


def sentence_transformer(
    *tail, pooling="mean", family="bert", dtype=torch.float64, include_prompt=True, **options
):
    """A SentenceTransformer, `tail` standing behind its pooling."""
    pool = Pooling(WIDTH, pooling_mode=pooling, include_prompt=include_prompt)
    modules = [module_of(family, dtype), pool, *tail]
    return SentenceTransformer(modules=modules, device="cpu", **options).to(dtype).eval()


class Toy(nn.Module):
    """Last states that are a polynomial of the word embeddings: integrals have closed forms.

    degree 1: state_j = A x_j; degree 2: state_j = (A sum_k x_k)^2 in each dimension.
    """

    def __init__(self, degree, width=6, seed=0, dtype=torch.float64):
        super().__init__()
        self.degree = degree
        self.config = transformers.BertConfig(hidden_size=width, num_hidden_layers=1)
        self.words = nn.Embedding(len(tokenizer_of("bert")), width)
        self.map = nn.Linear(width, width, bias=False)
        shaken(self, seed=seed).to(dtype)

    def get_input_embeddings(self):
        return self.words

    def forward(self, inputs_embeds, attention_mask=None, **_):
        if self.degree == 2:
            mask = 1 if attention_mask is None else attention_mask[:, :, None]
            together = (inputs_embeds * mask).sum(1, keepdim=True)
            return BaseModelOutput(
                last_hidden_state=self.map(together).square().expand_as(inputs_embeds)
            )
        return BaseModelOutput(last_hidden_state=self.map(inputs_embeds))


class WithoutEmbeddings(Toy):
    """Takes token ids only."""

    def forward(self, input_ids, attention_mask=None):
        return super().forward(self.words(input_ids), attention_mask)


def pooled(states, mode):
    """(S, H) -> (D,), as sentence-transformers' manual describes each mode."""
    tokens = len(states)
    if mode == "weightedmean":
        weight = torch.arange(1, tokens + 1, dtype=states.dtype)
        return weight @ states / weight.sum()
    return {
        "cls": lambda: states[0],
        "lasttoken": lambda: states[-1],
        "max": lambda: states.max(0).values,
        "mean": lambda: states.sum(0) / tokens,
        "mean_sqrt_len_tokens": lambda: states.sum(0) / tokens**0.5,
    }[mode]()


def parts_of(model, pooling=None):
    """Table of word embeddings, tokenizer, and embeddings (D,) of word embeddings (S, H).

    `embed` is the embedding before a final Normalize, `finish` what comes behind.
    """
    if isinstance(model, tuple):
        transformer, tokenizer = model
        tail, finish = [], lambda e: e
        mode = pooling or "mean"
    else:
        transformer, tokenizer = model[0].model, model.tokenizer
        mode, tail = model[1].pooling_mode, list(model)[2:]
        ends = bool(tail) and isinstance(tail[-1], Normalize)
        tail = tail[:-1] if ends else tail
        finish = (lambda e: F.normalize(e, dim=-1)) if ends else (lambda e: e)

    def embed(words):
        states = transformer(inputs_embeds=words[None]).last_hidden_state[0]
        features = {"sentence_embedding": pooled(states, mode)}
        for module in tail:
            features = module(features)
        return features["sentence_embedding"]

    table = transformer.get_input_embeddings()
    return SimpleNamespace(table=table, tokenizer=tokenizer, embed=embed, finish=finish)


def special_of(parts, text):
    """(S,) ids, and which tokens are not of the text."""
    code = parts.tokenizer(text, return_special_tokens_mask=True)
    return torch.tensor(code["input_ids"]), torch.tensor(code["special_tokens_mask"]).bool()


def ends_of(parts, text, baseline, special="fixed"):
    """Word embeddings of the text and of its baseline, (S, H) each."""
    ids, fixed = special_of(parts, text)
    words = parts.table(ids).detach()
    stays = fixed[:, None] if special == "fixed" else torch.zeros_like(fixed)[:, None]
    return words, torch.where(stays, words, baseline)


def looks(embed, value, words, start, nodes):
    """What tokens add to the slope of `value` at midpoints, one node at a time: (K, S)."""
    found = []
    for node in range(nodes):
        point = start + (node + 0.5) / nodes * (words - start)
        point.requires_grad_()
        (gradient,) = torch.autograd.grad(value(embed(point)), point)
        found.append(((words - start) * gradient).sum(1))
    return torch.stack(found)


def written_out(embed, value, words, start, nodes):
    """Scores (S,) by the midpoint rule, its weights changed least so that they are complete."""
    slopes = looks(embed, value, words, start, nodes)
    whole = slopes.sum(1)
    with torch.no_grad():
        missing = value(embed(words)) - value(embed(start)) - whole.mean()
    weight = (1 + missing * whole / whole.square().mean()) / nodes
    return weight @ slopes


def named_baseline(parts, name):
    """The word embedding that a name means."""
    if isinstance(name, torch.Tensor):
        return name
    if name == "zero":
        return torch.zeros(parts.table.weight.shape[1], dtype=parts.table.weight.dtype)
    if name == "mean":
        return parts.table.weight.detach().mean(0)
    return parts.table.weight.detach()[getattr(parts.tokenizer, f"{name}_token_id")]
