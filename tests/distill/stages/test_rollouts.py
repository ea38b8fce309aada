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


def asked(prompt, answer, of_teacher):
    own = text(prompt, answer)
    return example_of(own.input_ids, own.labels, teacher_prompt=[*range(5, 5 + of_teacher)])


def check(examples, positions=None, **keys):
    data = DataConfig.model_validate({"train": "a.jsonl", "max_length": 32})
    rollouts = RolloutsConfig.model_validate({"new_tokens": 20, **keys})
    _check_prompts(examples, rollouts, data, "train.rollouts", positions)


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


def test_prompts_of_the_teacher_that_leave_no_positions_are_refused():
    check([asked(12, 3, 60), asked(12, 3, 80)], positions=80)
    with pytest.raises(RecipeError, match=r"no `teacher.prompt` .* in the teacher's 80 positions"):
        check([asked(12, 3, 61), asked(12, 3, 80)], positions=80)


def texts_of_the_data(examples, positions=None, **keys):
    data = DataConfig.model_validate({"train": "a.jsonl", "max_length": 32})
    section = LoopConfig.model_validate(
        {
            "objective": [{"loss": "reverse_kl"}, {"loss": "cross_entropy", "on": "data"}],
            "source": "online", "rollouts": {"new_tokens": 20, **keys},
        }
    )  # fmt: skip
    _check_texts_of_the_data(examples, "train", section, data, positions)


def test_a_term_on_texts_of_the_data_passes_where_some_keep_theirs():
    texts_of_the_data([text(12, 3)], share=0.9)
    texts_of_the_data([text(12, 3), text(0, 20)])  # no prompt
    texts_of_the_data([text(12, 3), text(20, 3)])  # one that leaves no room
    texts_of_the_data([text(12, 3), asked(12, 3, 61)], positions=80)  # nor does the teacher's


def test_a_term_on_texts_of_the_data_is_refused_where_the_student_answers_all():
    with pytest.raises(RecipeError, match=r"objective\[1\].on: data` has no effect .*lower `share"):
        texts_of_the_data([text(12, 3), text(10, 3)])
