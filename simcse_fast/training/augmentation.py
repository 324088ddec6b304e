"""The second view of a sentence without some of its words, made of its token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_fast.training.tokens import mixed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]

CONTINUES = "##"  # of WordPiece: the token goes on with a word
BEGINS = ("\u2581", "\u0120")  # of SentencePiece and of byte-level BPE: it begins one


@dataclass(frozen=True)
class Shortener:
    """Takes words out of texts; one at least stays.

    Args:
        kind: "crop" keeps words that stand together, "delete" and "delete_one" take out any.
        share: of the words to take out, at least one word; "delete_one" always takes one.
        begins: (ids of the tokenizer,) True where a token begins a word.
        special: (ids,) True for those that stay: what the tokenizer puts around a text.
    """

    kind: str
    share: float
    begins: NDArray[np.bool_]
    special: NDArray[np.bool_]

    def __call__(self, ids: Ids, lengths: Ids, rows: Ids, key: int) -> tuple[Ids, Ids]:
        """Ids and lengths of what is left.

        What a text loses depends on its row and the key alone, not on the batch around it.
        """
        text = np.repeat(np.arange(len(lengths)), lengths)
        inside = ~self.special[ids]
        before = np.concatenate([[False], inside[:-1] & (text[1:] == text[:-1])])
        begin = inside & (self.begins[ids] | ~before)
        words = np.bincount(text[begin], minlength=len(lengths))
        kept = self.kept(words, mixed(rows.astype(np.uint64) + np.uint64(key)))
        # A token before the first word has the number -1.
        stays = ~inside | np.append(kept, True)[np.cumsum(begin) - 1]
        return ids[stays], np.bincount(text[stays], minlength=len(lengths))

    def kept(self, words: Ids, seed: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which words stay, of texts of so many words, one text after the other."""
        share = 0.0 if self.kind == "delete_one" else self.share
        removed = np.rint(share * words).astype(np.int64).clip(1).clip(max=words - 1)
        place = np.arange(words.sum()) - np.repeat(np.cumsum(words) - words, words)
        if self.kind == "crop":
            first = (mixed(seed) % (removed + 1).clip(1).astype(np.uint64)).astype(np.int64)
            place = place - np.repeat(first, words)
            inside: NDArray[np.bool_] = (place >= 0) & (place < np.repeat(words - removed, words))
            return inside
        random = mixed(np.repeat(seed, words) + place.astype(np.uint64))
        rank = np.empty_like(place)
        rank[np.lexsort([random, np.repeat(np.arange(len(words)), words)])] = place
        left: NDArray[np.bool_] = rank >= np.repeat(removed, words)
        return left


def shortener(tokenizer: Any, kind: str, share: float) -> Shortener:
    """For the tokenizer of a transformer."""
    vocabulary = tokenizer.get_vocab()
    begins = np.ones(max(vocabulary.values()) + 1, bool)
    if any(token.startswith(CONTINUES) for token in vocabulary):
        begins[[n for token, n in vocabulary.items() if token.startswith(CONTINUES)]] = False
    elif any(token.startswith(BEGINS) for token in vocabulary):
        begins[[n for token, n in vocabulary.items() if not token.startswith(BEGINS)]] = False
    special = np.zeros(len(begins), bool)
    special[tokenizer("")["input_ids"]] = True
    return Shortener(kind, share, begins, special)
