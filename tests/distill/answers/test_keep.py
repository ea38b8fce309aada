"""Which written answers are kept: each rule alone, all together, in any order of arrival."""

import random
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from distill.answers.keep import (
    ENOUGH,
    NO_TARGET,
    PASS_RATE,
    SAME,
    Candidate,
    choose,
    geometric_mean,
    repeated_share,
)
from distill.answers.numbers import pass_rate_histogram, refused_words
from distill.data.answers_config import AnswersConfig, KeepConfig

ANSWER = Candidate(0, 0, (5, 6, 7, 8, 2), True, "3 + 4 = 7", ("7",), 0.5)


def keep(**keys):
    return KeepConfig.model_validate(keys)


def fate(answer, config):
    return choose([answer], config).fates[answer.prompt, answer.sample]


@pytest.mark.parametrize(
    ("rule", "changed", "reason"),
    [
        ({}, {"ended": False}, "not ended"),
        ({}, {"text": " \n"}, "empty"),
        ({"length": [2, 4]}, {}, "longer than `length`"),
        ({"length": [6, 9]}, {}, "shorter than `length`"),
        ({"repeats": 0.5}, {"ids": (1,) * 20}, "repeats itself"),
        ({"likely": 0.2}, {"probability": 0.1}, "unlikely under the teacher"),
        ({"likely": 0.2}, {"probability": None}, "its probability is not known"),
        ({"right": "number"}, {"text": "3 + 4 = 8"}, "not right"),
        ({"right": True}, {"targets": ()}, NO_TARGET),
        ({"right": True, "pass_rate": [0.1, 0.9]}, {}, PASS_RATE),
    ],
)
def test_each_rule_refuses_for_its_reason(rule, changed, reason):
    assert fate(replace(ANSWER, **changed), keep(**rule)) == reason


@pytest.mark.parametrize(
    "rule",
    [{"length": [5, 5]}, {"repeats": 0.1}, {"likely": 0.5}, {"right": "number"}, {"right": True},
     {"right": {"extract": r"re:= (\d+)", "stop": "\n"}}, {"right": True, "pass_rate": [0.5, 1]}],
)  # fmt: skip
def test_what_satisfies_a_rule_is_kept(rule):
    assert fate(ANSWER, keep(**rule)) is None


def test_an_answer_is_right_by_any_answer_of_the_data():
    assert fate(replace(ANSWER, targets=("8", "seven is #### 7")), keep(right=True)) is None


def test_of_equal_answers_the_first_is_kept_and_no_more_than_asked():
    answers = [replace(ANSWER, sample=i, ids=(i // 2, 9)) for i in range(6)]
    kept = choose(answers, keep(per_prompt=2))
    assert [kept.fates[0, i] for i in range(6)] == [None, SAME, None, SAME, ENOUGH, ENOUGH]


def test_pass_rates_count_all_answers_of_a_prompt():
    answers = [
        replace(ANSWER, prompt=prompt, sample=i, ids=(i, 2), text="7" if i < right else "8")
        for prompt, right in enumerate((0, 1, 4))
        for i in range(4)
    ]
    kept = choose(answers, keep(right=True, pass_rate=[0.1, 0.9]))
    assert kept.rates == {0: 0.0, 1: 0.25, 2: 1.0}
    assert [(a.prompt, a.sample) for a in kept.answers] == [(1, 0)]
    assert kept.by_reason() == {"not right": 7, PASS_RATE: 4}
    assert pass_rate_histogram(kept) == [1, 0, 1, 0, 0, 0, 0, 0, 0, 1]


def test_the_order_in_which_answers_come_changes_nothing():
    dice = random.Random(0)
    answers = [
        Candidate(p, i, tuple(dice.choices(range(3), k=dice.randint(1, 9))), dice.random() < 0.8,
                  dice.choice("78"), ("7",), dice.random())
        for p in range(5) for i in range(6)
    ]  # fmt: skip
    config = keep(right=True, per_prompt=2, likely=0.1, repeats=0.4, pass_rate=[0.1, 0.9])
    first = choose(answers, config)
    for _ in range(5):
        dice.shuffle(answers)
        again = choose(answers, config)
        assert (again.answers, again.fates) == (first.answers, first.fates)
    assert 0 < len(first.answers) < len(answers)


def test_refusals_are_counted_with_the_first_reason():
    assert refused_words([]) == ""
    assert refused_words(["Too long.", "b"]) == "; 2 requests refused, the first: Too long"


def test_repeated_runs_are_counted_over_all_runs():
    assert repeated_share([1, 2, 3]) == 0.0
    assert repeated_share([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repeated_share([1] * 10) == pytest.approx(6 / 7)


def test_the_mean_probability_is_geometric():
    logprobs = np.log(np.asarray([0.5, 0.125], np.float32))
    assert geometric_mean(logprobs) == pytest.approx(0.25)
    assert geometric_mean(None) is None


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"samples": 2, "temperature": 0}, "writes the same answer 2 times"),
        ({"samples": 2, "keep": {"per_prompt": 2}}, "has no effect with `samples: 2`"),
        ({"samples": 2, "keep": {"pass_rate": [0.1, 0.9]}}, "say with `right`"),
        ({"samples": 2, "keep": {"length": [9, 3]}}, "not a least and a most"),
        ({"samples": 2, "keep": {"length": [9, 30]}, "new_tokens": 8}, "allows no such answer"),
        ({"samples": 2, "keep": {"right": True, "pass_rate": [0.6, 0.9]}}, "is no share of right"),
        ({"samples": 1, "temperature": 0, "top_p": 0.5}, "`top_p` has no effect"),
        ({"samples": 1, "temperature": 0, "top_k": 4}, "`top_k` has no effect"),
        ({"samples": 2, "keep": {"right": "last"}}, "write `number`, `line`"),
        ({}, "Field required"),
    ],
)
def test_keys_without_effect_are_refused(keys, says):
    with pytest.raises(ValidationError, match=says):
        AnswersConfig.model_validate(keys)


def test_a_recipe_that_a_run_wrote_out_is_read_again():
    config = AnswersConfig.model_validate({"samples": 1, "temperature": 0})
    assert AnswersConfig.model_validate(config.model_dump(by_alias=True)) == config
