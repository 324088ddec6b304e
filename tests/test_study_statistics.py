"""Regressions of a study: against textbook formulas, and what intervals must cover."""

import numpy as np
import pytest
from scipy.stats import linregress, spearmanr

from simcse_fast.studies import regression
from simcse_fast.studies.words import Word, relative, weights_of, words_of


def points(seed=0, clusters=60, each=5, slope=0.4):
    """Sentences with a level of their own: points of one sentence are not independent."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(clusters), each)
    z = rng.normal(size=len(number))
    x = 0.6 * z + rng.normal(size=len(number))
    y = slope * x + rng.normal(size=len(number)) + rng.normal(size=clusters)[number]
    return x, y, number, z


def test_a_line_is_that_of_least_squares():
    x, y, number, z = points()
    line, _ = regression.fit(x, y, number, z, resamples=10)
    textbook = linregress(x, y)
    assert line.beta == pytest.approx(textbook.slope, rel=1e-10)
    assert line.r_squared == pytest.approx(textbook.rvalue**2, rel=1e-10)
    assert line.spearman == pytest.approx(spearmanr(x, y).statistic, rel=1e-10)
    assert (line.points, line.clusters) == (300, 60)


def test_what_information_adds_is_the_drop_of_the_residual_variance():
    x, y, number, z = points()
    line, _ = regression.fit(x, y, number, z, resamples=10)

    def rest(*columns):
        design = np.column_stack([np.ones(len(y)), *columns])
        residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
        return residual @ residual

    expected = 1 - rest(x, z) / rest(z)
    assert line.partial_r_squared == pytest.approx(expected, rel=1e-8)
    assert np.isnan(regression.fit(x, y, number, resamples=10)[0].partial_r_squared)


def test_the_error_of_the_slope_is_the_sandwich_over_clusters():
    x, y, number, _ = points()
    design = np.column_stack([np.ones(len(y)), x])
    bread = np.linalg.inv(design.T @ design)
    residual = y - design @ (bread @ design.T @ y)
    meat = np.zeros((2, 2))
    for cluster in range(60):
        pull = design[number == cluster].T @ residual[number == cluster]
        meat += np.outer(pull, pull)
    scale = 60 / 59 * 299 / 298
    expected = np.sqrt(scale * (bread @ meat @ bread)[1, 1])
    found = regression.fit(x, y, number, resamples=10)[0].beta_error
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_resample_is_the_line_of_the_points_that_were_drawn():
    x, y, number, z = points()
    _, resampled = regression.fit(x, y, number, z, resamples=7, seed=3)
    drawn = regression.draws(60, 7, 3)
    ranks = [np.argsort(np.argsort(column)).astype(float) for column in (x, y)]
    for row, times in enumerate(drawn):
        again = np.repeat(np.arange(300), times[number])
        textbook = linregress(x[again], y[again])
        assert resampled.values["beta"][row] == pytest.approx(textbook.slope, rel=1e-9)
        assert resampled.values["r_squared"][row] == pytest.approx(textbook.rvalue**2, rel=1e-9)
        order = np.corrcoef(ranks[0][again], ranks[1][again])[0, 1]
        assert resampled.values["spearman"][row] == pytest.approx(order, rel=1e-9)


def test_draws_come_in_parts_of_any_size(monkeypatch):
    x, y, number, _ = points()
    whole = regression.fit(x, y, number, resamples=50)[1].values["beta"]
    monkeypatch.setattr(regression, "AT_ONCE", 60 * 7)
    regression.draws.cache_clear()
    parts = regression.fit(x, y, number, resamples=50)[1].values["beta"]
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


def test_intervals_cover_the_true_slope_as_often_as_they_say():
    inside = 0
    for seed in range(200):
        x, y, number, _ = points(seed, clusters=40)
        line, _ = regression.fit(x, y, number, resamples=200, seed=seed)
        low, high = line.intervals["beta"]
        inside += low <= 0.4 <= high
    # 95 % of 200 with a deviation of 3; percentiles of 40 clusters are a little narrow.
    assert 178 <= inside <= 199


def test_constant_columns_have_no_line():
    x, y, number, _ = points()
    line, _ = regression.fit(np.ones_like(x), y, number, resamples=5)
    assert np.isnan([line.r_squared, line.beta, line.beta_error, line.spearman]).all()
    assert np.isnan(line.intervals["beta"]).all()


@pytest.mark.parametrize(
    ("points_", "clusters", "known"), [(30, 15, True), (29, 29, False), (300, 14, False)]
)
def test_few_points_or_sentences_are_not_enough(points_, clusters, known):
    assert regression.enough(np.arange(points_) % clusters) is known


def test_words_are_those_of_the_corpus():
    text = "Naïve  cafe\u0301s don't_know 3.5!"
    found = words_of(text)
    assert [word.text for word in found] == ["naïve", "cafe\u0301s", "don", "t", "know", "3", "5"]
    assert all(
        "Naïve  cafe\u0301s don't_know 3.5!"[w.start : w.end].lower() == w.text for w in found
    )
    assert words_of("...") == []


def test_pieces_add_up_to_words():
    words = [Word("storms", 0, 6), Word("sing", 7, 11), Word("well", 12, 16), Word("known", 17, 22)]
    spans = [
        (0, 0),  # special
        (0, 5), (5, 6),  # two pieces of one word
        (7, 11),
        (12, 22),  # one piece of two words: neither is its own
        (22, 23),  # punctuation
    ]  # fmt: skip
    scores = np.array([9.0, 0.5, 0.25, -0.125, 7.0, 3.0])
    found = weights_of(words, spans, scores)
    np.testing.assert_array_equal(found, [0.75, -0.125, np.nan, np.nan])
    # A piece that begins with the white space before its word, and a word beyond the longest text.
    found = weights_of(words[:2], [(0, 6), (6, 8)], np.array([1.0, 2.0]))
    np.testing.assert_array_equal(found, [1.0, 2.0])
    np.testing.assert_array_equal(weights_of(words[:2], [(0, 6)], np.array([1.0])), [1.0, np.nan])


def test_weights_are_relative_to_an_even_share():
    found = relative(np.array([3.0, -1.0, np.nan, 2.0]))
    np.testing.assert_allclose(found, [1.5, -0.5, np.nan, 1.0])
    assert np.abs(found[[0, 1, 3]]).mean() == 1
    assert np.isnan(relative(np.full(2, np.nan))).all()
    assert np.isnan(relative(np.zeros(2))).all()  # nothing says how they share
