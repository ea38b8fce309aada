"""Whether the data have prompts that a student can answer, asked before any work."""

import pytest

from attar.errors import RecipeError
from distill.data.config import DataConfig
from distill.data.examples import example_of
from distill.data.tokenize import IGNORE
from distill.rollouts.config import RolloutsConfig
from distill.stages.rollouts import _check_prompts, _check_texts_of_the_data
from distill.training.config import LoopConfig


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


def texts_of_the_data(examples, **keys):
    data = DataConfig.model_validate({"train": "a.jsonl", "max_length": 32})
    section = LoopConfig.model_validate(
        {
            "objective": [{"loss": "reverse_kl"}, {"loss": "cross_entropy", "on": "data"}],
            "source": "online", "rollouts": {"new_tokens": 20, **keys},
        }
    )  # fmt: skip
    _check_texts_of_the_data(examples, "train", section, data)


def test_a_term_on_texts_of_the_data_passes_where_some_keep_theirs():
    texts_of_the_data([text(12, 3)], share=0.9)
    texts_of_the_data([text(12, 3), text(0, 20)])  # no prompt
    texts_of_the_data([text(12, 3), text(20, 3)])  # one that leaves no room


def test_a_term_on_texts_of_the_data_is_refused_where_the_student_answers_all():
    with pytest.raises(RecipeError, match=r"objective\[1\].on: data` has no effect .*lower `share"):
        texts_of_the_data([text(12, 3), text(10, 3)])
