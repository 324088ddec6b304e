"""The tokenizer "words" written out. The oracle of the tests; never optimised.

A word is a longest run of word characters, lower-cased. A word character is a letter or number of
any script (`str.isalnum`) or a combining mark (general categories Mn, Mc, Me). Everything else
separates: white space, punctuation, the underscore, symbols, control characters. So "Don't" is
"don" and "t", "naïve" is one word in both normal forms (which stay different words), and a text
in a script without spaces is one word up to its next punctuation mark.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import chain, groupby

import numpy as np
from numpy.typing import NDArray


def is_word_character(character: str) -> bool:
    """Letters, numbers and the marks that combine with them."""
    return character.isalnum() or unicodedata.category(character)[0] == "M"


def split_words(text: str) -> list[str]:
    """The words of a text in order; lower-cased one by one, after splitting."""
    return ["".join(run).lower() for keep, run in groupby(text, is_word_character) if keep]


def number_words(
    texts: Iterable[str],
) -> tuple[NDArray[np.uint32], NDArray[np.int64], list[str]]:
    """Ids by frequency (ties in code-point order), offsets of the texts, and the vocabulary."""
    split = [split_words(text) for text in texts]
    words = list(chain.from_iterable(split))
    counts = Counter(words)
    vocabulary = sorted(counts, key=lambda word: (-counts[word], word))
    number = {word: i for i, word in enumerate(vocabulary)}
    offsets = np.cumsum([0, *map(len, split)])
    return np.array([number[word] for word in words], np.uint32), offsets, vocabulary
