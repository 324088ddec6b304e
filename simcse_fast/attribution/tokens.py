"""Sentences as tokens, and the words that the tokens are pieces of."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from simcse_fast.attribution.encoder import Encoder

Unit = Literal["word", "token"]
UNITS = ("word", "token")
NO_WORD = -1


@dataclass(frozen=True)
class Sentence:
    """A sentence in tokens."""

    text: str
    ids: NDArray[np.int64]  # (S,)
    pieces: list[str]  # (S,) as the tokenizer writes them
    spans: list[tuple[int, int]]  # (S,) where they stand in the text; (0, 0) for special tokens
    word: NDArray[np.int64]  # (S,) number of the word, NO_WORD for special tokens

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def special(self) -> NDArray[np.bool_]:
        """(S,) whether a token is none of the text's own."""
        special: NDArray[np.bool_] = self.word == NO_WORD
        return special

    @property
    def words(self) -> int:
        """How many words the text has."""
        return int(self.word.max(initial=NO_WORD)) + 1

    def only(self, keep: NDArray[np.bool_]) -> Sentence:
        """The sentence with some of its tokens only, closed up."""
        return Sentence(self.text, self.ids[keep], [], [], self.word[keep])


@dataclass(frozen=True)
class Units:
    """What gets a score each, and which tokens it is made of."""

    names: list[str]
    spans: list[tuple[int, int]]
    member: NDArray[np.int64]  # (S,) number of the unit, NO_WORD for none

    def add_up(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sum over the tokens of each unit, (S, ...) -> (units, ...)."""
        total = np.zeros((len(self.names), *values.shape[1:]), values.dtype)
        inside = self.member != NO_WORD
        np.add.at(total, self.member[inside], values[inside])
        return total


def check_unit(unit: str) -> None:
    """Refuse what is no name of a unit.

    Raises:
        ValueError: it is none.
    """
    if unit not in UNITS:
        raise ValueError(f'unit: expected "word" or "token", got {unit!r}.')


def units_of(sentence: Sentence, unit: Unit) -> Units:
    """Every token, special ones included; or the words."""
    if unit == "token":
        return Units(sentence.pieces, sentence.spans, np.arange(len(sentence)))
    spans: list[list[tuple[int, int]]] = [[] for _ in range(sentence.words)]
    for number, span in zip(sentence.word.tolist(), sentence.spans, strict=True):
        if number != NO_WORD and span != (0, 0):
            spans[number].append(span)
    ends = [(min(s for s, _ in own), max(e for _, e in own)) for own in spans]
    return Units([sentence.text[a:b] for a, b in ends], ends, sentence.word)


def check_sentences(sentences: Sequence[str] | str, name: str = "sentences") -> list[str]:
    """A list of texts.

    Raises:
        TypeError: they are no list, or one is not a string.
        ValueError: there is none.
    """
    if not isinstance(sentences, Iterable):
        raise TypeError(f"{name}: expected a list of strings, got {type(sentences).__name__}.")
    texts = [sentences] if isinstance(sentences, str) else list(sentences)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}: expected strings, got {type(text).__name__} at row {row}.")
    if not texts:
        raise ValueError(f"{name}: expected at least one, got none.")
    return texts


def tokenize(encoder: Encoder, texts: Sequence[str]) -> list[Sentence]:
    """Tokens and words of texts; those longer than the model allows are cut, with a warning."""
    tokenizer, prompt = encoder.tokenizer, encoder.prompt
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"model: {type(tokenizer).__name__} does not tell which tokens are pieces of one word; "
            "expected a fast tokenizer (AutoTokenizer gives one where there is one)."
        )
    code = tokenizer(
        [prompt + text for text in texts],
        truncation=encoder.longest is not None,
        max_length=encoder.longest,
        padding=False,
        return_attention_mask=False,
    )
    cut = sum(bool(encoding.overflowing) for encoding in code.encodings)
    if cut:
        warnings.warn(
            f"{cut:,} of {len(texts):,} sentences are longer than the model's {encoder.longest} "
            "tokens; the rest was cut off and has no score.",
            stacklevel=4,
        )
    return [
        _sentence(text, encoding, len(prompt))
        for text, encoding in zip(texts, code.encodings, strict=True)
    ]


def _sentence(text: str, encoding: Any, shift: int) -> Sentence:
    """From an encoding of the prompt and the text; tokens of the prompt are special.

    A piece that is only a gap, as byte-level tokenizers make, belongs to its word; without one it
    is special.
    """
    spans, keys, visible = [], [], set()
    parts = zip(encoding.offsets, encoding.word_ids, encoding.special_tokens_mask, strict=True)
    for place, ((start, end), number, special) in enumerate(parts):
        own = not special and (end > shift or start >= shift)
        span = _trimmed(text, max(start - shift, 0), max(end - shift, 0)) if own else (0, 0)
        key = (-1 - place if number is None else number) if own else None
        if span != (0, 0):
            visible.add(key)
        spans.append(span)
        keys.append(key)
    numbers = {key: n for n, key in enumerate(k for k in dict.fromkeys(keys) if k in visible)}
    word = [numbers.get(key, NO_WORD) for key in keys]
    ids = np.array(encoding.ids, np.int64)
    return Sentence(text, ids, list(encoding.tokens), spans, np.array(word, np.int64))


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without white space around; (0, 0) where nothing is left."""
    piece = text[start:end]
    left = len(piece) - len(piece.lstrip())
    length = len(piece.strip())
    return (start + left, start + left + length) if length else (0, 0)
