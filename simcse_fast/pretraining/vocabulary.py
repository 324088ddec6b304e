"""A WordPiece vocabulary learned from the corpus, and the BERT tokenizer that goes by it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from simcse_fast.errors import InputError
from simcse_fast.training.sealed import made, writing
from simcse_fast.training.texts import read_columns
from simcse_fast.training.tokens import alone_in, fingerprint_of, made_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

VERSION = 1  # of what is learned from a corpus; a vocabulary of another version is learned anew
SAMPLE = 400_000  # sentences, spread evenly: more of them change few words and take long
ALPHABET = 400  # letters; rarer ones are unknown, as each costs two entries
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def load_tokenizer(name: str, max_length: int) -> Any:
    """An existing tokenizer, by its name or folder."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # the hub's client raises whatever its transport does
        reason = " ".join(str(error).split())
        raise InputError(f"tokenizer: {name} cannot be loaded ({reason})") from error
    for role in ("mask", "pad"):
        if getattr(tokenizer, f"{role}_token_id") is None:
            raise InputError(f"tokenizer: {name} has no {role} token; expected one as BERT's")
    tokenizer.model_max_length = max_length
    return tokenizer


def learned_tokenizer(
    corpus: Any, size: int, max_length: int, cache: Path, say: Callable[[str], None]
) -> PreTrainedTokenizerFast:
    """A tokenizer of this corpus, from the cache where it holds just this one."""
    made_by = f"vocabulary {VERSION} {size} {max_length} {SAMPLE} {ALPHABET}"
    fingerprint, columns = fingerprint_of(corpus, "corpus", made_by)
    folder = cache / f"vocabulary-{fingerprint[:16]}"
    with made(cache, "cache"), alone_in(cache, say):
        if made_of(folder, fingerprint) is None:
            say("learning the vocabulary")
            (sentences,) = columns or read_columns(corpus, "corpus")
            every = max(len(sentences) // SAMPLE, 1)
            learned = learn(islice(sentences.texts(), 0, None, every), size)
            with writing(folder, {"fingerprint": fingerprint}) as staging:
                as_bert(learned, max_length).save_pretrained(staging)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def learn(texts: Iterable[str], size: int) -> Tokenizer:
    """WordPiece over lower-cased text, as BERT's: the same texts give the same pieces."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        limit_alphabet=ALPHABET,
        special_tokens=list(SPECIAL.values()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def as_bert(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    """With BERT's special tokens around a sentence or a pair."""
    first, last = SPECIAL["cls_token"], SPECIAL["sep_token"]
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_length, **SPECIAL
    )
