"""Bootstrap intervals over prompts."""

import pytest

from scripts.lib.data.stats import interval


def test_equal_values_have_no_width():
    assert interval([0.5] * 7, 0.95, 200, 1) == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_one_value_is_its_own_interval():
    assert interval([3.0], 0.95, 100, 1) == {"mean": 3.0, "low": 3.0, "high": 3.0}


def test_two_values_reach_from_one_to_the_other():
    # Both draws are the same value with probability 1/4 each, more than the 2.5 % tails.
    assert interval([0, 1], 0.95, 1000, 1) == {"mean": 0.5, "low": 0.0, "high": 1.0}


def test_the_mean_is_of_the_values_and_not_of_the_resamples():
    assert interval([1.0, 2.0, 6.0], 0.9, 100, 5)["mean"] == 3.0


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = [float(i * i) for i in range(11)]
    assert interval(values, 0.95, 300, 1) == interval(values, 0.95, 300, 1)
    assert interval(values, 0.95, 300, 1) != interval(values, 0.95, 300, 2)


def test_more_confidence_is_a_wider_interval_around_the_narrower():
    values = [float(i) for i in range(20)]
    narrow, wide = interval(values, 0.5, 500, 3), interval(values, 0.99, 500, 3)
    assert wide["low"] < narrow["low"] < narrow["mean"] < narrow["high"] < wide["high"]


def test_shifting_the_values_shifts_the_interval():
    one, other = interval([1.0, 2.0, 4.0], 0.9, 100, 1), interval([11.0, 12.0, 14.0], 0.9, 100, 1)
    assert {key: other[key] - one[key] for key in one} == pytest.approx({"mean": 10, "low": 10, "high": 10})


def test_the_width_is_the_normal_one_for_many_values():
    values = [float(i % 2) for i in range(400)]
    found = interval(values, 0.95, 4000, 1)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)
