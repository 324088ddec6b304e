"""Shapley values: the weights against all orders, the axioms, and the sampled ones' errors."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from simcse_fast.attribution.coalitions import coalitions

SAMPLED = [
    pytest.param(2, 2, id="two-words-none-but-the-ends"),
    pytest.param(3, 4, id="three"),
    pytest.param(7, 20, id="single-words-and-more"),
    pytest.param(7, 127, id="all-but-one-set"),
    pytest.param(12, 64, id="twelve"),
    pytest.param(30, 128, id="long"),
    pytest.param(200, 512, id="longest"),  # powers of 2 beyond every integer type
]


def by_all_orders(words, value):
    """Mean over all orders of what a word adds to those before it."""
    value, total = cache(value), np.zeros(words)
    orders = list(itertools.permutations(range(words)))
    for order in orders:
        before = frozenset()
        for word in order:
            total[word] += value(before | {word}) - value(before)
            before |= {word}
    return total / len(orders)


def random_game(words, seed):
    """Any number for any set."""
    random = np.random.default_rng(seed)
    table = {
        frozenset(some): random.standard_normal()
        for size in range(words + 1)
        for some in itertools.combinations(range(words), size)
    }
    return table.__getitem__


def values_at(sets, value):
    return np.array([value(frozenset(np.flatnonzero(one).tolist())) for one in sets])


class Interactions:
    """A game of products of signs, whose Shapley values have a closed form."""

    def __init__(self, words, orders, seed):
        random = np.random.default_rng(seed)
        self.words, self.terms = words, []
        for order, size in orders.items():
            for _ in range(3 * words if order > 1 else words):
                members = random.choice(words, order, replace=False)
                self.terms.append((members, size * random.standard_normal()))

    def __call__(self, sets):
        signs = np.where(sets, 1.0, -1.0)
        return sum(size * signs[:, members].prod(1) for members, size in self.terms)

    def shapley(self):
        total = np.zeros(self.words)
        for members, size in self.terms:
            if len(members) % 2:
                total[members] += 2 * size / len(members)
        return total


@pytest.mark.parametrize("words", range(7))
def test_exact_values_are_the_mean_over_all_orders(words):
    game, all_sets = random_game(words, words), coalitions(words, 2**words, 0)
    assert len(all_sets.sets) == 2**words == len({one.tobytes() for one in all_sets.sets})
    assert all_sets.doubt is None
    assert not all_sets.sets[0].any()
    assert all_sets.sets[min(1, 2**words - 1)].all()
    found = all_sets.weights @ values_at(all_sets.sets, game)
    assert_allclose(found, by_all_orders(words, game), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("words", [9, 12], ids=["most-of-auto", "most-of-exact"])
def test_exact_values_of_interactions(words):
    game = Interactions(words, {1: 1.0, 2: 1.0, 3: 1.0, 5: 1.0, 7: 1.0}, seed=1)
    all_sets = coalitions(words, 2**words, 0)
    assert_allclose(all_sets.weights @ game(all_sets.sets), game.shapley(), atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 2**32 - 1), st.data())
def test_axioms(words, seed, data):
    """Efficiency, symmetry, dummy and linearity, of all sets."""
    made, random = coalitions(words, 2**words, 0), np.random.default_rng(seed)
    numbers = made.sets @ (1 << np.arange(words))
    value, other = random.standard_normal((2, 2**words))[:, numbers]
    found = made.weights @ value
    assert found.sum() == pytest.approx(value[1] - value[0], abs=1e-12)
    mixed = made.weights @ (2 * value - 3 * other)
    assert_allclose(mixed, 2 * found - 3 * (made.weights @ other), atol=1e-12)
    one = data.draw(st.integers(0, words - 1))
    place = {number: row for row, number in enumerate(numbers)}
    without = value[[place[number & ~(1 << one)] for number in numbers]]
    assert (made.weights @ without)[one] == pytest.approx(0, abs=1e-13)
    dummy = without + 0.7 * made.sets[:, one]  # adds 0.7 to whatever it joins
    assert (made.weights @ dummy)[one] == pytest.approx(0.7, abs=1e-12)
    two = data.draw(st.integers(0, words - 1))
    swapped = made.sets.copy()
    swapped[:, [one, two]] = made.sets[:, [two, one]]
    partner = value[[place[number] for number in swapped @ (1 << np.arange(words))]]
    alike = made.weights @ (value + partner)
    assert alike[one] == pytest.approx(alike[two], abs=1e-12)


@pytest.mark.parametrize(("words", "samples"), SAMPLED)
def test_sampled_sets(words, samples):
    made = coalitions(words, samples, 0)
    sets = {one.tobytes() for one in made.sets}
    assert len(sets) == len(made.sets) == samples
    assert not made.sets[0].any()
    assert made.sets[1].all()
    complements = sum((~one).tobytes() in sets for one in made.sets)
    assert complements >= len(made.sets) - samples % 2
    if samples >= 2 * words + 2:  # then every word is seen alone, and all others without it
        assert {np.eye(words, dtype=bool)[n].tobytes() for n in range(words)} <= sets
        assert {(~np.eye(words, dtype=bool)[n]).tobytes() for n in range(words)} <= sets


@pytest.mark.parametrize(("words", "samples"), SAMPLED)
@pytest.mark.parametrize("seed", [0, 1])
def test_axioms_of_sampled_values(words, samples, seed):
    """Efficiency and linearity hold whatever is drawn."""
    made = coalitions(words, samples, seed)
    value = np.random.default_rng(seed).standard_normal((len(made.sets), 3))
    found = made.weights @ value
    assert_allclose(found.sum(0), value[1] - value[0], rtol=1e-8, atol=1e-8)
    assert_allclose(made.weights @ (value @ [1, 2, -1]), found @ [1, 2, -1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("words", "samples"),
    # Of an odd number of sets one stands there without its complement.
    [(7, 4), (7, 5), (7, 127), (12, 64), (12, 65), (30, 512)],
    ids="{}".format,
)
def test_a_constant_has_no_influence(words, samples):
    """A target and the same target plus 1 have the same scores."""
    made = coalitions(words, samples, 0)
    assert_allclose(made.weights.sum(1), 0, atol=1e-9)


@pytest.mark.parametrize("words", [2, 5, 12, 40])
def test_words_that_share_the_rest_evenly(words):
    """Of the ends alone nothing tells words apart."""
    made = coalitions(words, 2, 0)
    if len(made.sets) == 2:
        assert_allclose(made.weights @ [1.0, 4.0], np.full(words, 3 / words), rtol=1e-12)


@pytest.mark.parametrize("words", [6, 10, 20])
def test_words_are_alike_where_the_sets_are(words):
    """With all sets of one word and their complements, a permutation of words permutes scores."""
    made = coalitions(words, 2 * words + 2, 0)
    alone = np.random.default_rng(0).standard_normal(words)
    found = made.weights @ (made.sets @ alone)
    order = np.random.default_rng(1).permutation(words)
    assert_allclose(made.weights @ (made.sets @ alone[order]), found[order], atol=1e-6)
    # Of an additive game they are the true ones, drawn towards their mean by one share.
    slope, level = np.polyfit(alone, found, 1)
    assert_allclose(found, level + slope * alone, atol=1e-6)
    assert 0 < slope <= 1 + 1e-6


@pytest.mark.parametrize("words", [5, 8])
def test_nearly_all_sets_are_nearly_exact(words):
    game = Interactions(words, {1: 1.0, 2: 0.5, 3: 0.25}, seed=2)
    made = coalitions(words, 2**words - 2, 0)
    error = made.weights @ game(made.sets) - game.shapley()
    assert np.linalg.norm(error) <= 0.03 * np.linalg.norm(game.shapley())


def errors_of(words, samples, orders, games=12):
    """True and reported errors over the length of the scores."""
    true, told = [], []
    for seed in range(games):
        game = Interactions(words, orders, seed)
        made = coalitions(words, samples, seed % 3)  # whose matrices are kept
        value, exact = game(made.sets), game.shapley()
        found = made.weights @ value
        true.append(np.linalg.norm(found - exact))
        told.append(np.sqrt(value @ made.doubt @ value))
    return np.array(true), np.array(told)


# Games of low order: words that count by themselves, in pairs, in threes.
ORDERS = [
    pytest.param({1: 1.0, 2: 0.2}, id="pairs"),
    pytest.param({1: 1.0, 2: 0.2, 3: 0.1}, id="threes"),
    pytest.param({1: 0.5, 2: 0.5, 3: 0.3}, id="tangled"),
]


@pytest.mark.parametrize("orders", ORDERS)
@pytest.mark.parametrize("words", [11, 16, 24])
def test_errors_shrink_with_the_samples_and_are_told(words, orders):
    medians = []
    for samples in (2 * words + 2, 128, 512):
        true, told = errors_of(words, samples, orders)
        medians.append(np.median(true))
        assert np.mean(true <= 2 * told) >= 0.9  # two standard deviations
        # And not by being enormous, unless both are small: pairs are met far better than told.
        assert np.median(told) <= max(25 * np.median(true), 0.01)
    assert medians[0] > medians[1] > medians[2]


def test_seeds():
    first, again, other = (coalitions(14, 100, seed) for seed in (3, 3, 4))
    assert_array_equal(first.sets, again.sets)
    assert not np.array_equal(first.sets, other.sets)
