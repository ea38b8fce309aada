"""Which trials go on: fronts, crowding, and those that cannot be told from the last one kept."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.sweep.halving import crowding, fronts, ranked, survivors

# quality (less is better), bytes: two fronts, and one that is worse than all
PLANTED = {
    "small": (3.0, 10.0), "middle": (2.0, 20.0), "large": (1.0, 40.0), "near": (1.9, 22.0),
    "small bad": (3.5, 11.0), "large bad": (1.5, 41.0), "worst": (9.0, 50.0),
}  # fmt: skip


def never(one, other):
    return False


def beaten(one, points):
    """By the definition: some other point is no worse anywhere, and better somewhere."""
    mine = points[one]
    return any(
        all(a <= b for a, b in zip(its, mine, strict=True)) and its != mine
        for its in points.values()
    )


def test_fronts_are_those_that_nothing_beats():
    assert fronts(PLANTED) == [
        ["large", "middle", "near", "small"], ["large bad", "small bad"], ["worst"]
    ]  # fmt: skip


def test_of_a_front_its_ends_and_what_has_room_come_first():
    front = fronts(PLANTED)[0]
    room = crowding(front, PLANTED)
    assert room["small"] == room["large"] == math.inf
    assert room["middle"] == pytest.approx((3 - 1.9) / 2 + (22 - 10) / 30)
    assert ranked(PLANTED)[:4] == ["large", "small", "near", "middle"]


def test_one_of_so_many_goes_on_rounded_up():
    assert survivors(PLANTED, 3, never) == ["large", "small", "near"]
    assert survivors(PLANTED, 7, never) == ["large"]
    assert survivors({"only": (1.0, 1.0)}, 3, never) == ["only"]


def test_the_whole_front_goes_on_where_the_recipe_keeps_it():
    assert survivors(PLANTED, 7, never, keep_front=True) == ["large", "small", "near", "middle"]
    assert len(survivors(PLANTED, 1, never, keep_front=True)) == len(PLANTED)


def test_a_trial_that_cannot_be_told_from_the_last_one_kept_is_never_dropped():
    def overlaps(one, other):
        return abs(PLANTED[one][0] - PLANTED[other][0]) < 0.5

    kept = survivors(PLANTED, 3, overlaps)
    assert kept == ["large", "small", "near", "middle", "large bad"]
    dropped = PLANTED.keys() - set(kept)
    assert not any(overlaps(name, "near") for name in dropped)


def test_a_small_and_bad_trial_of_a_later_front_does_not_go_before_a_good_one():
    points = {"best": (1.0, 10.0), "small bad": (9.0, 10.0), "large": (1.5, 20.0)}
    assert survivors(points, 2, never) == ["best", "large"]


numbers = st.integers(0, 4).map(float)
planted = st.dictionaries(st.text("abc", min_size=1), st.tuples(numbers, numbers), min_size=1)


@given(planted)
def test_fronts_agree_with_the_definition_and_with_any_order(points):
    found = fronts(points)
    assert sorted(itertools.chain(*found)) == sorted(points)
    assert set(found[0]) == {name for name in points if not beaten(name, points)}
    backwards = dict(reversed(points.items()))
    assert ranked(backwards) == ranked(points)
    assert set(survivors(points, 2, never)) <= set(points)
