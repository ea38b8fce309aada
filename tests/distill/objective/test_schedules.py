"""Numbers over steps: the learning rate, and any number of a term."""

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.objective.schedules import Ramp
from distill.objective.terms import TERM_MODELS
from distill.training.lr_schedule import WSD_DECAY, Schedule, learning_rate_factor

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


# Numbers of a term -------------------------------------------------------------------------------


def values(total, schedule, **options):
    """A scheduled number in every step of a run."""
    ramp = Ramp.model_validate({"schedule": schedule, **options})
    return [ramp.at(step, total) for step in range(total)]


@pytest.mark.parametrize("total", [2, 3, 100, 101])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("first", "last"), [(1.0, 0.5), (0.0, 2.0)])
def test_first_step_has_the_first_value_and_the_last_the_last(total, schedule, first, last):
    curve = values(total, schedule, **{"from": first, "to": last})
    assert curve[0] == pytest.approx(first)
    assert curve[-1] == pytest.approx(last)
    assert curve == sorted(curve, reverse=first > last)
    if total % 2:
        assert curve[total // 2] == pytest.approx((first + last) / 2)


def test_linear_and_cosine_values_are_their_formulas():
    shares = [i / 100 for i in range(101)]
    ends = {"from": 3.0, "to": 1.0}
    assert values(101, "linear", **ends) == pytest.approx([3 - 2 * x for x in shares])
    waves = [2 + math.cos(math.pi * x) for x in shares]
    assert values(101, "cosine", **ends) == pytest.approx(waves)


def test_constant_value_is_its_number_in_every_step():
    assert values(7, "constant", to=0.3) == [0.3] * 7


def test_warm_up_rises_from_zero_in_a_tenth_of_the_steps_unless_told_otherwise():
    curve = values(101, "warmup", to=2.0)
    assert curve[:11] == pytest.approx([0.2 * i for i in range(11)])
    assert curve[10:] == pytest.approx([2.0] * 91)
    other = values(101, "warmup", to=2.0, over=[0.5, 1.0], **{"from": 1.0})
    assert other[:51] == pytest.approx([1.0] * 51)
    assert (other[75], other[100]) == pytest.approx((1.5, 2.0))


OVER = [
    ([0.2, 0.8], (20, 80)),
    ([20, 80], (20, 80)),
    ([0, 50], (0, 50)),
    ([0, 0.5], (0, 50)),
    ([1, 50], (1, 50)),
    ([0.5, 1], (50, 100)),
]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("over", "edges"), OVER)
def test_value_rests_outside_the_steps_that_it_goes_over(schedule, over, edges):
    """Shares of the steps, or numbers of steps: the end says which."""
    start, stop = edges
    curve = values(101, schedule, over=over, **{"from": 4.0, "to": 2.0})
    assert curve[: start + 1] == pytest.approx([4.0] * (start + 1))
    assert curve[stop:] == pytest.approx([2.0] * (101 - stop))
    assert curve[start] > curve[(start + stop) // 2] > curve[stop]
    assert curve[start + (stop - start) // 2] == pytest.approx(3.0, abs=0.1)


def test_a_run_of_one_step_has_a_value():
    assert values(1, "linear", **{"from": 4.0, "to": 2.0})[0] in (4.0, 2.0)


@given(
    st.sampled_from(["linear", "cosine", "warmup"]),
    st.floats(0.1, 9), st.floats(0.1, 9), st.integers(1, 200), st.data(),
)  # fmt: skip
def test_no_step_leaves_the_ends_of_its_schedule(schedule, first, last, total, data):
    start = data.draw(st.floats(0, 0.98))
    over = [start, data.draw(st.floats(start + 0.01, 1.0))]
    curve = values(total, schedule, over=over, **{"from": first, "to": last})
    low, high = sorted((first, last))
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in curve)
    assert curve == sorted(curve, reverse=first > last)


@pytest.mark.parametrize("over", [None, [0.2, 0.8], [0, 500], [20, 80]])
def test_a_term_as_it_ends_has_the_last_value_of_every_schedule(over):
    """Evaluations ask for step 1 of 1, and compare only if that is the end."""
    ramp = {"schedule": "linear", "from": 0.75, "to": 0.25, **({"over": over} if over else {})}
    term = TERM_MODELS["skew_kl"](weight=ramp, alpha=ramp)
    assert (term.at(1, 1).weight, term.at(1, 1).alpha) == (0.25, 0.25)


def test_a_term_in_a_step_has_numbers_and_keeps_its_other_keys():
    ramp = {"schedule": "linear", "from": 1.0, "to": 3.0}
    term = TERM_MODELS["jsd"](weight=ramp, temperature=ramp, beta=0.3, source="online")
    middle = term.at(50, 101)
    assert (middle.weight, middle.temperature, middle.beta) == (2.0, 2.0, 0.3)
    assert middle.source == "online"
    assert term.weight.to == 3.0, "the recipe's own term stays as it was"
    plain = TERM_MODELS["jsd"](weight=2.0)
    assert plain.at(3, 10) == plain
