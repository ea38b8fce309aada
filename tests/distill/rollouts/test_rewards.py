"""What answers are worth: by a verifier, by a reward model, against other answers."""

import numpy as np
import pytest

from attar.errors import RecipeError
from attar.models.sampling import Answer
from distill.data.examples import example_of
from distill.data.tokenize import IGNORE
from distill.rollouts.config import RewardConfig
from distill.rollouts.rewards import answer_text, check_verifier, judge_of, leave_one_out
from distill.rollouts.written import Written


def row(tokenizer, prompt, answer):
    before, after = (tokenizer(one)["input_ids"] for one in (prompt, answer))
    ids = [*before, *after]
    return example_of(ids, [*([IGNORE] * (len(before) - 1)), *after, IGNORE])


def written(tokenizer, prompt, text):
    before, after = (np.asarray(tokenizer(one)["input_ids"]) for one in (prompt, text))
    return Written(before, Answer(after, np.zeros(len(after), np.float32), True))


def test_leave_one_out_is_the_reward_less_the_mean_of_the_others():
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [2.0, 5.0, 2.0, 3.0]])
    wanted = [
        [own - np.mean([*one[:i], *one[i + 1 :]]) for i, own in enumerate(one)]
        for one in rewards.tolist()
    ]
    assert leave_one_out(rewards) == pytest.approx(np.array(wanted))
    assert leave_one_out(rewards).sum(1) == pytest.approx(0)
    assert leave_one_out(np.ones((1, 3))) == pytest.approx(0)


def test_a_verifier_gives_1_to_right_answers(bare_tokenizer):
    judge = judge_of(
        RewardConfig.model_validate({"verifier": {"extract": "number"}}), bare_tokenizer
    )
    example = row(bare_tokenizer, "2 and 3?", " they are 5")
    texts = ["it is 5", "5.0", "it is 6", "I do not know", "3, no: 5"]
    answers = [written(bare_tokenizer, "2 and 3?", text) for text in texts]
    assert judge(example, answers) == [1, 1, 0, 0, 1]
    assert answer_text(bare_tokenizer, example) == " they are 5"


def test_a_verifier_that_no_row_has_an_answer_for_is_refused(bare_tokenizer):
    config = RewardConfig.model_validate({"verifier": {"extract": "number"}})
    words = [row(bare_tokenizer, "who?", "nobody")]
    with pytest.raises(RecipeError, match=r"`here`: no answer in the data.*number"):
        check_verifier(config.verifier, bare_tokenizer, words, "here")
    check_verifier(config.verifier, bare_tokenizer, [*words, row(bare_tokenizer, "?", "7")], "here")


@pytest.mark.parametrize(
    ("keys", "said"),
    [({}, "either"), ({"verifier": {}, "model": "m"}, "either"), ({"model": "m", "kl": -1}, "kl")],
)
def test_a_reward_has_one_judge(keys, said):
    with pytest.raises(ValueError, match=said):
        RewardConfig.model_validate(keys)
