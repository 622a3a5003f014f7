"""Means, intervals and verdicts."""

import math

import pytest

from prenorm.lab.intervals import Claim, Finding, Interval, exponent, interval


def test_the_interval_is_students():
    found = interval([1.0, 2.0, 3.0])  # a standard deviation of 1, two degrees of freedom: 4.303 / sqrt(3)
    assert (found.mean, found.seeds) == (2.0, 3)
    assert found.high - 2.0 == pytest.approx(2.4843, abs=1e-3)
    assert found.low == pytest.approx(4.0 - found.high)
    assert interval([0.0, 0.0]) == (0.0, 0.0, 0.0, 2)


def test_a_value_that_is_no_number_leaves_none():
    for values in ([1.0, math.nan], [math.nan] * 3, [math.inf, 1.0]):
        found = interval(values)
        assert all(map(math.isnan, found[:3]))
        assert Finding(Claim("", "", -math.inf, math.inf), found).verdict == "cannot tell"


def test_one_seed_has_no_interval_and_proves_nothing():
    found = interval([5.0])
    assert (found.mean, found.low, found.high) == (5.0, -math.inf, math.inf)
    assert str(found) == "5 (1 seed, no interval)"
    assert Finding(Claim("", "", -math.inf, math.inf), found).verdict == "cannot tell"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.3, "agrees"),
        (0.0, 1.0, "agrees"),
        (-0.1, 0.3, "cannot tell"),
        (0.9, 1.1, "cannot tell"),
        (-1.0, 2.0, "cannot tell"),
        (1.1, 1.2, "disagrees"),
        (-0.3, -0.1, "disagrees"),
    ],
)
def test_a_claim_holds_if_all_of_the_interval_is_in_its_range_and_fails_if_none_is(low, high, verdict):
    claim = Claim("between 0 and 1", "nobody", 0.0, 1.0)
    assert Finding(claim, Interval((low + high) / 2, low, high, 3)).verdict == verdict


def test_where_no_number_came_out_nobody_can_tell():
    claim = Claim("", "", 0.0, math.inf)
    assert Finding(claim, None).verdict == "cannot tell"
    assert Finding(claim, Interval(math.nan, math.nan, math.nan, 3)).verdict == "cannot tell"


def test_claims_say_their_range():
    ranges = [Claim("", "", low, high).range for low, high in ((0.0, math.inf), (-math.inf, 1.0), (-0.6, -0.4))]
    assert ranges == ["above 0", "below 1", "from -0.6 to -0.4"]


def test_exponents_are_those_of_powers_and_none_where_a_value_is_missing():
    sizes = (2, 4, 8)
    assert exponent(sizes, [7.0 * size**-0.5 for size in sizes]) == pytest.approx(-0.5)
    assert exponent(sizes, [1.0, None, 1.0]) is None
    assert exponent(sizes, [1.0, 0.0, 1.0]) is None
