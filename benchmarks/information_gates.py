"""What must agree before anything of the information benchmark is timed."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from benchmarks import information_peers as peers
from benchmarks.information_data import numbered
from simcse_fast import information_gain
from simcse_fast.information.counting import How, count_pairs
from simcse_fast.kernels.cooccurrence import reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from simcse_fast.information.ids import Numbered

    Steps = dict[str, Callable[[], Any]]

NEAR = {"rtol": 0, "atol": 1e-10}
PAIRS = 2_000  # that are looked up one by one


def same_gain(steps: Steps) -> None:
    """KL of every word, from all methods."""
    expected = next(iter(steps.values()))()
    for name, step in list(steps.items())[1:]:
        np.testing.assert_allclose(step(), expected, **NEAR, err_msg=name)


def same_tables(first: Any, *others: Any) -> None:
    """Words, counts and values of our tables."""
    for other in others:
        for column in ("word", "count"):
            assert first.arrow[column].equals(other.arrow[column]), column
        values = (table.column("information_gain") for table in (other, first))
        np.testing.assert_allclose(*values, **NEAR)


def same_table(table: Any, words: list[str], counts: Any, gain: Any) -> None:
    """Those of a peer's, in any order."""
    place = {word: row for row, word in enumerate(table.column("word"))}
    assert len(place) == len(words)
    order = [place[word] for word in words]
    np.testing.assert_array_equal(table.column("count")[order], counts)
    np.testing.assert_allclose(table.column("information_gain")[order], gain, **NEAR)


def same_words(ids: Numbered, found: tuple[list[int], dict[str, int], Any]) -> None:
    """The same words at the same places, whatever their numbers."""
    theirs, number, counts = found
    names = np.array([number[word] for word in ids.vocabulary.to_pylist()])
    assert len(names) == len(number)
    np.testing.assert_array_equal(names[ids.ids], theirs)
    np.testing.assert_array_equal([counts[i] for i in names.tolist()], ids.counts)


def same_ids(ids: Numbered, codes: list[Any]) -> None:
    """The same ids at the same places."""
    np.testing.assert_array_equal(list(chain.from_iterable(c.ids for c in codes)), ids.ids)


def matrix(ids: Numbered, **options: Any) -> Any:
    """Ours, in order of the ids."""
    options = {"min_count": 1, "return_counts": True, "progress": False, **options}
    return information_gain((ids.ids, ids.offsets, ids.vocabulary.to_pylist()), **options)[1]


def same_matrix(theirs: dict[tuple[int, int], int], ours: Any) -> None:
    """Counts of all pairs."""
    rows, columns = np.array(list(theirs)).T
    shape = ours.shape
    found = sparse.csr_array((np.array(list(theirs.values())), (rows, columns)), shape)
    assert (found != ours).nnz == 0


def nltk_sentence(lists: list[list[str]], ids: Numbered) -> Steps:
    """Checked, then to be timed."""
    number = {word: i for i, word in enumerate(ids.vocabulary.to_pylist())}
    found = peers.nltk_pairs(lists)
    pairs = {(number[a], number[b]): c for a, of in found.items() for b, c in of.items()}
    same_matrix(pairs, matrix(ids))
    return {"nltk ConditionalFreqDist, counts only": partial(peers.nltk_pairs, lists)}


def nltk_window(lists: list[list[str]], ids: Numbered, width: int) -> Steps:
    """The same; its pairs are ordered."""
    number = {word: i for i, word in enumerate(ids.vocabulary.to_pylist())}
    pairs: dict[tuple[int, int], int] = {}
    for (first, second), c in peers.nltk_window(lists, width).ngram_fd.items():
        a, b = number[first], number[second]
        for pair in ((a, b), (b, a)):
            pairs[pair] = pairs.get(pair, 0) + c
    same_matrix(pairs, matrix(ids, context=width))
    name = "nltk BigramCollocationFinder, counts only"
    return {name: partial(peers.nltk_window, lists, width)}


def gensim(lists: list[list[str]], sets: Numbered) -> Steps:
    """Some thousand of its pairs, then to be timed."""
    count = peers.gensim_accumulator(lists)
    words, ours = sets.vocabulary.to_pylist(), matrix(sets).tocoo()
    found, step = count(), max(1, ours.nnz // PAIRS)
    places = zip(ours.row[::step].tolist(), ours.col[::step].tolist(), strict=True)
    for (a, b), c in zip(places, ours.data[::step].tolist(), strict=True):
        assert found.get_co_occurrences(words[a], words[b]) == c, (words[a], words[b])
    return {"gensim WordOccurrenceAccumulator, counts only": count}


def contexts(texts: Any, windows: tuple[int, ...]) -> None:
    """All contexts against the definition written out."""
    ids, sets = numbered(texts), numbered(texts, presence=True)
    words = len(ids.counts)
    for window in (None, *windows):
        for marginal in (False, True):
            exact = reference.cooccurrence_kl(ids.ids, ids.offsets, words, window, marginal)
            how = How(window or 0, marginal, 1, None, lambda _: None)
            ours = count_pairs(numbered(texts), how).gain  # whose ids are overwritten
            np.testing.assert_allclose(ours, exact, **NEAR)
    exact = reference.cooccurrence_kl(sets.ids, sets.offsets, words)
    table = information_gain(texts, presence=True, min_count=1, progress=False)
    same_table(table, sets.vocabulary.to_pylist(), sets.counts, exact)
    pairs = reference.cooccurrence_counts(ids.ids, ids.offsets, words)
    np.testing.assert_array_equal(matrix(ids).toarray(), pairs)
