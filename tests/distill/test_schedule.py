"""The learning rate over steps: rises, stays, falls to its floor."""

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.schedule import WSD_DECAY, Schedule, learning_rate_factor

every_schedule = pytest.mark.parametrize("schedule", get_args(Schedule))
falling = [schedule for schedule in get_args(Schedule) if schedule != "constant"]


def factors(schedule, total=100, warmup=0.1, floor=0.0):
    return [learning_rate_factor(i, total, schedule, warmup, floor) for i in range(total + 1)]


@every_schedule
@pytest.mark.parametrize("warmup", [0.1, 10])
def test_warm_up_rises_in_equal_steps_from_above_zero(schedule, warmup):
    curve = factors(schedule, warmup=warmup)
    assert curve[0] > 0
    assert curve[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert curve[10] == pytest.approx(1.0)
    assert max(curve) == pytest.approx(1.0)


@every_schedule
def test_without_warm_up_the_first_step_has_the_full_rate(schedule):
    assert factors(schedule, warmup=0.0)[0] == 1.0


@pytest.mark.parametrize("schedule", falling)
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_ends_at_the_floor_and_never_goes_below(schedule, floor):
    curve = factors(schedule, floor=floor)
    assert curve[-1] == pytest.approx(floor, abs=1e-12)
    assert min(curve[10:]) >= floor - 1e-12
    assert curve[10:] == sorted(curve[10:], reverse=True)


def test_constant_stays():
    assert set(factors("constant", floor=0.5)[10:]) == {1.0}


def test_wsd_is_level_until_its_decay_then_falls_in_a_line():
    curve = factors("wsd", warmup=0.0)
    level = round(100 * (1 - WSD_DECAY))
    assert curve[: level + 1] == pytest.approx([1.0] * (level + 1))
    assert curve[level:] == pytest.approx([1 - i / (100 - level) for i in range(101 - level)])


def test_linear_and_cosine_are_their_formulas():
    halfway = [i / 100 for i in range(101)]
    assert factors("linear", warmup=0.0) == pytest.approx([1 - x for x in halfway])
    assert factors("cosine", warmup=0.0) == pytest.approx(
        [(1 + math.cos(math.pi * x)) / 2 for x in halfway], abs=1e-12
    )


@given(
    st.integers(1, 300),
    st.sampled_from(get_args(Schedule)),
    st.one_of(st.floats(0, 0.999), st.integers(1, 400).map(float)),
    st.floats(0, 1),
    st.data(),
)
def test_every_step_of_every_run_has_a_rate_between_zero_and_the_peak(
    total, schedule, warmup, floor, data
):
    step = data.draw(st.integers(0, total - 1))
    assert 0 < learning_rate_factor(step, total, schedule, warmup, floor) <= 1 + 1e-12
