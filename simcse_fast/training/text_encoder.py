"""Ids of many texts at once, by the tokenizer of a model, on all its threads."""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDEST_NARROW = 1 << 16


class TextEncoder:
    """The ids that a model's own `preprocess` makes, without its padding.

    Args:
        tokenizer: of the model: one of `tokenizers` (static models), or one of transformers.
        max_length: longest text in tokens, special ones included; None cuts nothing.
        fewest: tokens that a text needs, special ones aside, to be trained on.
    """

    def __init__(self, tokenizer: Any, max_length: int | None, fewest: int = 1) -> None:
        self.max_length = max_length
        self.special = not isinstance(tokenizer, Tokenizer)  # static models use none
        backend = tokenizer if not self.special else getattr(tokenizer, "backend_tokenizer", None)
        self.slow = tokenizer if backend is None else None
        added = tokenizer.num_special_tokens_to_add() if self.special else 0
        self.fewest = fewest + added
        size = len(tokenizer) if self.special else tokenizer.get_vocab_size()
        self.dtype = np.dtype(np.uint16 if size <= WIDEST_NARROW else np.int32)
        if backend is not None:
            self.fast = Tokenizer.from_str(backend.to_str())  # the model's own stays as it is
            self.fast.no_padding()
            self.fast.no_truncation()
            if max_length is not None:
                side = getattr(tokenizer, "truncation_side", "right")
                self.fast.enable_truncation(max_length, direction=side)

    @property
    def fingerprint(self) -> str:
        """What the ids depend on, besides the texts."""
        state = self.fast.to_str() if self.slow is None else _state(self.slow)
        parts = (state, str(self.max_length), str(self.special), str(self.fewest))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def encode(self, texts: list[str]) -> tuple[NDArray[Any], NDArray[np.int64], int]:
        """Ids one after the other, how many each text has, and how many texts were cut."""
        lists, cut = self._fast(texts) if self.slow is None else self._slow(self.slow, texts)
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        flat = itertools.chain.from_iterable(lists)
        return np.fromiter(flat, self.dtype, int(lengths.sum())), lengths, cut

    def _fast(self, texts: list[str]) -> tuple[list[list[int]], int]:
        codes = self.fast.encode_batch_fast(texts, add_special_tokens=self.special)
        return [code.ids for code in codes], sum(bool(code.overflowing) for code in codes)

    def _slow(self, tokenizer: Any, texts: list[str]) -> tuple[list[list[int]], int]:
        lists: list[list[int]] = tokenizer(texts)["input_ids"]
        cut = 0
        for place, ids in enumerate(lists):
            if self.max_length is not None and len(ids) > self.max_length:
                short = tokenizer(texts[place], truncation=True, max_length=self.max_length)
                lists[place] = short["input_ids"]
                cut += 1
        return lists, cut


def _state(tokenizer: Any) -> str:
    """What the ids of a tokenizer in Python depend on, as far as it says."""
    return repr((sorted(tokenizer.get_vocab().items()), sorted(tokenizer.init_kwargs.items())))
