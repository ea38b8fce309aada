"""How far two models say the same, and what is timed."""

import pytest

from distill.data import Example
from distill.runtimes import Source
from distill.runtimes.hugging_face import Transformers
from distill.speed import agreement, continuations, measure_speed


def test_agreement_counts_until_the_first_difference():
    found = agreement([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 9, 4], [5, 6, 7, 8]])
    assert found == {"prompts": 2, "tokens": 4, "same_until": 3.0, "same": 7 / 8, "equal": 0.5}


@pytest.fixture
def runtime(make_model, tokenizer, tmp_path):
    make_model(0, vocabulary=320).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return Transformers(Source(str(tmp_path)))


def test_a_model_agrees_with_itself_and_stays_within_its_positions(runtime, make_examples):
    examples: list[Example] = make_examples(3, vocabulary=320, shortest=18)
    mine = continuations(runtime, examples, 2, 500)
    assert [len(ids) for ids in mine] == [128 - 16] * 2
    assert agreement(mine, continuations(runtime, examples, 2, 500))["equal"] == 1.0
    assert continuations(runtime, examples, 0, 8) is None


def test_speed_is_measured_with_a_sample(runtime):
    found = measure_speed(runtime, [5, 6, 7], prefill_tokens=32, generate_tokens=4)
    assert found["tokens_per_second"]["prefill"] > 0
    assert found["tokens_per_second"]["generate"] > 0
    assert found["seconds_to_first_token"] > 0
    assert found["sample"]


def test_a_runtime_that_cannot_generate_has_no_such_numbers(runtime):
    runtime.can_generate = False
    found = measure_speed(runtime, [5, 6, 7], prefill_tokens=32, generate_tokens=4)
    assert found["tokens_per_second"]["generate"] is None
    assert found["seconds_to_first_token"] is None
    assert found["tokens_per_second"]["prefill"] > 0
