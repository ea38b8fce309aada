"""Whether the data have prompts that a student can answer, asked before any work."""

import pytest

from attar.errors import RecipeError
from distill.data.config import DataConfig
from distill.data.examples import example_of
from distill.data.tokenize import IGNORE
from distill.rollouts.config import RolloutsConfig
from distill.stages.rollouts import _check_prompts


def text(prompt, answer):
    ids = [*range(5, 5 + prompt + answer)]
    return example_of(ids, [*([IGNORE] * max(0, prompt - 1)), *ids[max(1, prompt) :], IGNORE])


def check(examples, **keys):
    data = DataConfig.model_validate({"train": "a.jsonl", "max_length": 32})
    rollouts = RolloutsConfig.model_validate({"new_tokens": 20, **keys})
    _check_prompts(examples, rollouts, data, "train.rollouts")


def test_prompts_that_leave_room_pass():
    check([text(0, 20), text(12, 3)])
    check([text(0, 20)], prompt_tokens=8)


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ([text(0, 20)], "`data.train` has no prompts to answer"),
        ([text(0, 20), text(20, 3)], r"no prompt of `data.train` leaves room.*max_length: 32"),
    ],
)
def test_data_that_leave_nothing_to_write_are_refused(examples, said):
    with pytest.raises(RecipeError, match=said):
        check(examples)
