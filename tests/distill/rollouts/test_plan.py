"""Which examples have the student's own answer: by the seed alone, as often as the share says."""

import numpy as np
import pytest

from distill.data.examples import CHOSEN, Example, example_of
from distill.data.tokenize import IGNORE
from distill.rollouts.config import RolloutsConfig
from distill.rollouts.plan import RolloutPlan, prompt_of, writable_examples


def config(**keys):
    return RolloutsConfig.model_validate({"new_tokens": 4, **keys})


def plan_of(keys, *, steps=40, size=10, writable=None, seed=0):
    numbers = [[[[s * size + i] for i in range(size)]] for s in range(steps)]
    able = np.ones(steps * size, bool) if writable is None else writable
    return RolloutPlan(numbers, able, config(**keys), seed)


def text(prompt, answer, **keys):
    ids = [*range(5, 5 + prompt + answer)]
    labels = [*([IGNORE] * max(0, prompt - 1)), *ids[max(1, prompt) :], IGNORE]
    return example_of(ids, labels, **keys)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_as_many_are_written_as_the_share_says(share):
    plan = plan_of({"share": share})
    written = sum(len(plan.sources(step)) for step in range(40))
    assert written / 400 == pytest.approx(share, abs=0.08)
    assert written == sum(len(plan.prompts(n)) for n in range(plan.num_rounds))


def test_the_seed_decides_and_later_steps_do_not():
    one, same, other = (plan_of({"share": 0.5}, seed=seed) for seed in (0, 0, 1))
    short = plan_of({"share": 0.5}, steps=8)
    written = [[list(p.sources(step)) for step in range(8)] for p in (one, same, short, other)]
    assert written[0] == written[1] == written[2] != written[3]


def test_rounds_have_their_steps_and_the_last_may_be_shorter():
    plan = plan_of({"every": 3}, steps=8)
    assert plan.num_rounds == 3
    assert [list(plan.steps_of(n)) for n in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert plan.prompts(2) == list(range(60, 80))
    assert [(s.round, s.index) for s in plan.sources(4).values()] == [(1, i) for i in range(10, 20)]


def test_what_cannot_be_answered_keeps_its_text():
    able = np.arange(400) % 2 == 0
    plan = plan_of({}, writable=able)
    assert all(i % 2 == 0 for n in range(plan.num_rounds) for i in plan.prompts(n))
    assert all(place % 2 == 0 for step in range(40) for place in plan.sources(step))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_each_answer_is_learned_from_in_as_many_rounds_as_are_kept(keep):
    plan = plan_of({"keep": keep, "every": 2}, steps=12)
    uses = {}
    for step in range(12):
        for source in plan.sources(step).values():
            uses.setdefault((source.round, source.index), set()).add(plan.round_of(step))
    for (number, _), rounds in uses.items():
        assert min(rounds) == number
        assert max(rounds) < number + keep
    assert uses.keys() == {
        (n, i) for n in range(plan.num_rounds) for i in range(len(plan.prompts(n)))
    }
    written = len(plan.prompts(plan.num_rounds - 1))
    assert written == -(-20 // keep)


def test_a_prompt_is_what_stands_before_the_first_answer():
    assert prompt_of(text(6, 3), config()).tolist() == [*range(5, 11)]
    assert prompt_of(text(0, 9), config()) is None
    assert prompt_of(text(0, 9), config(prompt_tokens=4)).tolist() == [5, 6, 7, 8]
    assert prompt_of(text(0, 4), config(prompt_tokens=4)) is None
    assert prompt_of(text(6, 3, role=CHOSEN), config()) is None
    nothing = Example("a" * 32, np.arange(3), np.full(3, IGNORE))
    assert prompt_of(nothing, config()) is None


def test_a_prompt_that_leaves_no_room_is_not_answered():
    some = [text(6, 3), text(12, 3), text(0, 20)]
    writable, long = writable_examples(some, range(3), config(), 12)
    assert writable.tolist() == [True, False, False]
    assert long == 1


def test_a_prompt_of_the_teachers_leaves_room_in_its_positions():
    some = [text(6, 3, teacher_prompt=list(range(number))) for number in (16, 17)]
    found = [writable_examples(some, range(2), config(), 12, most) for most in (None, 20)]
    assert [one[0].tolist() for one in found] == [[True, True], [True, False]]
    assert [one[1] for one in found] == [0, 1]
