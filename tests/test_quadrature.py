"""Rules of integration on [0, 1], and their weights made exact for a known integral."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from simcse_fast.kernels.path_integral.quadrature import (
    RULES,
    calibrated,
    gauss_legendre,
    mapped,
    midpoint,
    nested,
)

NODES = [
    pytest.param(1, id="one"),
    pytest.param(2, id="two"),
    pytest.param(3, id="first-with-a-nested-rule"),
    pytest.param(15, id="auto-begins-with-for-self"),
    pytest.param(23, id="auto-begins-with"),
    pytest.param(64, id="even"),
    pytest.param(255, id="many"),
]
# Functions of which every integral over [0, 1] is known, none of a rule's own kind.
ANALYTIC = [
    pytest.param(np.exp, np.e - 1, id="exp"),
    pytest.param(lambda a: 1 / (1 + a), np.log(2), id="reciprocal"),
    pytest.param(lambda a: np.cos(5 * a), np.sin(5) / 5, id="cosine"),
    pytest.param(
        lambda a: 1 / np.cosh(8 * (a - 0.4)) ** 2,
        (np.tanh(4.8) + np.tanh(3.2)) / 8,
        id="bend-of-an-encoder",
    ),
]


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_nodes_lie_inside_in_order_and_weights_are_positive(rule, nodes):
    made = rule(nodes)
    assert made.alpha.shape == made.weight.shape == (nodes,)
    assert made.alpha.dtype == made.weight.dtype == np.float64
    assert made.alpha[0] > 0
    assert made.alpha[-1] < 1
    assert (np.diff(made.alpha) > 0).all()
    assert (made.weight > 0).all()


@pytest.mark.parametrize(
    "nodes",
    [pytest.param(n, id=name) for n, name in [(1, "one"), (2, "two"), (5, "odd"), (24, "even")]],
)
def test_gauss_legendre_integrates_polynomials(nodes):
    made = gauss_legendre(nodes)
    for power in range(2 * nodes):
        assert made.weight @ made.alpha**power == pytest.approx(1 / (power + 1), abs=1e-14)
    power = 2 * nodes  # and no further: the error of the rule is known
    missing = 1 / (power + 1) - made.weight @ made.alpha**power
    assert missing > 0 or nodes > 12  # where it is below rounding


def test_midpoint_by_hand():
    assert_allclose(midpoint(4).alpha, [0.125, 0.375, 0.625, 0.875], atol=0)
    assert_allclose(midpoint(4).weight, [0.25] * 4, atol=0)
    for nodes in (1, 7, 64):  # lines exactly; squares short of 1 / 12 nodes^2
        made = midpoint(nodes)
        assert made.weight @ made.alpha == pytest.approx(0.5, abs=1e-15)
        assert 1 / 3 - made.weight @ made.alpha**2 == pytest.approx(1 / 12 / nodes**2, abs=1e-15)


@pytest.mark.parametrize(("function", "integral"), ANALYTIC)
def test_rules_integrate_analytic_functions(function, integral):
    for rule, nodes, tolerance in [
        (midpoint, 511, 2e-5),  # of second order
        (gauss_legendre, 47, 1e-11),  # of every order
        (mapped, 511, 8e-5),  # its density has a vertical tangent at 0
    ]:
        made = rule(nodes)
        assert made.weight @ function(made.alpha) == pytest.approx(integral, rel=tolerance)


@pytest.mark.parametrize(
    ("nodes", "tolerance"),
    # What 1 lacks shrinks with the nodes; `calibrated` makes up for it.
    [
        pytest.param(15, 0.031, id="auto-begins-with-for-self"),
        pytest.param(31, 9e-4, id="twice-that"),
        pytest.param(127, 5e-5, id="far-on"),
        pytest.param(511, 9e-6, id="auto-ends-with"),
    ],
)
def test_mapped_weights_add_up_to_nearly_one(nodes, tolerance):
    assert mapped(nodes).weight.sum() == pytest.approx(1, abs=tolerance)


def test_mapped_looks_most_where_encoders_change():
    alpha = mapped(511).alpha
    counts = np.histogram(alpha, bins=4, range=(0, 1))[0]
    assert counts[0] > counts[1] > counts[2] > counts[3]
    assert np.median(alpha) < 0.4


@pytest.mark.parametrize("nodes", NODES)
def test_nested_nodes_are_every_other(nodes):
    fine = mapped(2 * nodes + 1)
    assert_array_equal(nested(nodes), np.arange(2 * nodes + 1) % 2 == 1)
    assert_allclose(fine.alpha[nested(nodes)], mapped(nodes).alpha, atol=1e-15, rtol=0)


def test_rules_are_made_once():
    for rule in RULES.values():
        assert rule(31) is rule(31)


def test_calibrated_by_hand():
    # Rule says 0.5 * 1 + 0.5 * 3 = 2, truth is 3: each weight grows with its own slope.
    weight = calibrated(np.array([0.5, 0.5]), np.array([1.0, 3.0]), np.array(3.0))
    assert_allclose(weight, 0.5 * (1 + np.array([1.0, 3.0]) / 5), rtol=1e-15)


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1.0, 1e160, 1e300], ids="{:g}".format)
def test_calibrated_neither_overflows_nor_vanishes(size):
    slope = np.array([0.2, -0.7, 1.0, 0.3])
    weight = midpoint(4).weight
    with np.errstate(all="raise"):
        found = calibrated(weight, slope * size, np.array(0.4 * size))
    assert_allclose(found, calibrated(weight, slope, np.array(0.4)), rtol=1e-12)
    assert found @ (slope * size) == pytest.approx(0.4 * size, rel=1e-12)


def test_a_slope_of_zero_keeps_the_rule():
    weight = mapped(7).weight
    slope = np.zeros((7, 3))
    slope[:, 1] = np.linspace(1, 2, 7)
    with np.errstate(all="raise"):
        found = calibrated(weight, slope, np.array([0.0, 5.0, 1.0]))
    assert_array_equal(found[:, 0], weight)
    assert_array_equal(found[:, 2], weight)  # nothing could make it 1
    assert found[:, 1] @ slope[:, 1] == pytest.approx(5, rel=1e-14)


def test_slopes_that_are_not_finite_reach_the_result():
    slope = np.array([[1.0, 1.0], [np.nan, 2.0]])
    found = calibrated(np.array([0.5, 0.5]), slope, np.array([1.0, 2.0]))
    assert np.isnan((found * slope).sum(0)[0])
    assert (found * slope).sum(0)[1] == pytest.approx(2)


numbers = st.floats(-1e3, 1e3).filter(lambda x: x == 0 or abs(x) > 1e-6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_calibrated_is_the_least_change(data):
    """Among all weights with the right integral, none is nearer in chi-square."""
    nodes = data.draw(st.integers(1, 12))
    rule = RULES[data.draw(st.sampled_from(sorted(RULES)))](nodes)
    slope = np.array(data.draw(st.lists(numbers, min_size=nodes, max_size=nodes)))
    change = data.draw(numbers)
    found = calibrated(rule.weight, slope, np.array(change))
    if not slope.any():
        assert_array_equal(found, rule.weight)
        return
    scale = np.abs(found * slope).sum()
    assert found @ slope == pytest.approx(change, abs=1e-12 * scale + 1e-12 * abs(change))
    # Lagrange: the change over the rule's own weight is a multiple of the slope.
    step = (found / rule.weight - 1) / np.abs(slope).max()
    multiple = step @ slope / (slope @ slope)
    assert_allclose(step, multiple * slope, atol=1e-12 * (1 + np.abs(step).max()))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_calibrated_of_many_dimensions_is_one_by_one(nodes, dimensions, seed):
    random = np.random.default_rng(seed)
    slope = random.standard_normal((nodes, dimensions)) * 10.0 ** random.integers(-9, 9, dimensions)
    slope[:, random.random(dimensions) < 0.2] = 0
    change = random.standard_normal(dimensions)
    weight = mapped(nodes).weight
    together = calibrated(weight, slope, change)
    assert together.shape == slope.shape
    for own in range(dimensions):
        assert_allclose(
            together[:, own], calibrated(weight, slope[:, own], change[own]), rtol=1e-9, atol=1e-300
        )


@settings(max_examples=40, deadline=None)
@given(st.floats(0.1, 20), st.floats(0.05, 0.95), st.floats(-2, 2))
def test_rules_agree_on_smooth_functions(steepness, bend, level):
    """With many nodes every rule goes to the same integral, a bend of any steepness."""

    def slope(alpha):
        return level + 1 / np.cosh(steepness * (alpha - bend)) ** 2

    ends = np.tanh(steepness * (np.array([1.0, 0.0]) - bend)) / steepness
    integral = level + ends[0] - ends[1]
    for rule in RULES.values():
        made = rule(127 if rule is gauss_legendre else 511)
        assert made.weight @ slope(made.alpha) == pytest.approx(integral, abs=2e-4)
