"""Keys of rollouts that would do nothing, or something else than they say, are refused."""

import pytest

from attar.errors import RecipeError
from distill.run.load import check_recipe

REWARD = {"verifier": {"extract": "number"}}
RLOO = {"objective": [{"loss": "rloo"}], "rollouts": {"samples": 2, "reward": REWARD}}
KL = {"objective": [{"loss": "reverse_kl"}], "source": "online", "rollouts": {}}


def check(train, **more):
    check_recipe(
        {
            "data": {"train": "rows.jsonl", **more},
            "teacher": {"model": "teacher"},
            "student": {"from": "teacher"},
            "train": train,
        }
    )


def with_rollouts(train, **keys):
    return {**train, "rollouts": {**train["rollouts"], **keys}}


def test_what_fits_passes():
    check(RLOO)
    check(with_rollouts(KL, temperature=0.7, top_p=0.9))
    check({**with_rollouts(RLOO, every=2), "objective": [{"loss": "rloo", "clip": 0.1}]})
    check({**with_rollouts(KL, every=2), "source": "cache"})


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (with_rollouts(RLOO, temperature=0.7), "temperature: 0.7`: rloo learns from answers"),
        (with_rollouts(RLOO, top_p=0.9), "top_p: 0.9"),
        ({**RLOO, "objective": [{"loss": "rloo", "clip": 0.1}]}, "clip` has no effect"),
        (
            {
                **with_rollouts(KL, share=0.5),
                "objective": [
                    {"loss": "reverse_kl", "on": "rollouts"},
                    {"loss": "forward_kl", "on": "data", "source": "cache"},
                ],
            },
            "would load the teacher for every step",
        ),
        ({**KL, "keep": "best", "objective": [{"loss": "jsd", "on": "rollouts"}]}, "keep: best"),
    ],
)
def test_what_does_not_is_refused(train, said):
    with pytest.raises(RecipeError, match=said):
        check(train)


def test_rewards_do_not_compare_with_written_answers():
    with pytest.raises(RecipeError, match="compares with the rows' own answers"):
        check(RLOO, answers={"samples": 2})
