"""Axes: limits that hold all values, and few ticks in plain numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.report.ticks import (
    LEAST_SPAN,
    MOST_TICKS,
    axis_limits,
    spans_decades,
    tick_values,
    tick_words,
)

VALUES = st.lists(st.floats(1e-4, 1e9), min_size=1, max_size=12)


@given(VALUES, st.booleans())
def test_limits_hold_all_values_and_ticks_are_few_and_told_apart(values, log):
    low, high = axis_limits(values, log=log)
    assert low <= min(values) <= max(values) <= high
    assert low >= 0
    ticks = tick_values(low, high, log=log)
    assert 2 <= len(ticks) <= MOST_TICKS + 2
    assert all(low <= tick <= high for tick in ticks)
    words = tick_words(ticks)
    assert len(set(words)) == len(words)
    assert max(map(len, words)) <= 12


def test_nearly_equal_values_look_nearly_equal():
    low, high = axis_limits([91.0, 91.02])
    assert high - low >= LEAST_SPAN * 91
    assert axis_limits([0.0])[1] > 0


@pytest.mark.parametrize(
    ("ticks", "words"),
    [
        ([0.1, 0.2, 0.30000000000000004], ["0.1", "0.2", "0.3"]),
        ([3.95, 4.0, 4.05], ["3.95", "4.00", "4.05"]),
        ([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"]),
        ([0, 1000, 2000], ["0", "1,000", "2,000"]),
        ([1e6, 2.5e6], ["1 M", "2.5 M"]),
    ],
)
def test_ticks_are_plain_numbers(ticks, words):
    assert tick_words(ticks) == words


def test_only_values_far_apart_need_a_log_axis():
    assert spans_decades([1.0, 30.0])
    assert not spans_decades([1.0, 3.0])
    assert not spans_decades([0.0, 30.0])
