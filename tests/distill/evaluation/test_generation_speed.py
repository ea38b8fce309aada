"""How far two models say the same, and what is timed."""

import pytest

from distill.data.batching import plan_in_order
from distill.data.examples import Example
from distill.evaluation.generation_speed import agreement, continuations, measure_speed
from distill.evaluation.text_speed import measure_text_speed
from distill.evaluation.timing import Timer
from distill.runtimes.hugging_face import Transformers
from distill.runtimes.runtime import ModelSource


def test_agreement_counts_until_the_first_difference():
    found = agreement([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 9, 4], [5, 6, 7, 8]])
    assert found == {"prompts": 2, "tokens": 4, "same_until": 3.0, "same": 7 / 8, "equal": 0.5}


@pytest.fixture
def runtime(make_model, tokenizer, tmp_path):
    make_model(0, vocabulary=320).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return Transformers(ModelSource(str(tmp_path)))


def test_a_model_agrees_with_itself_and_stays_within_its_positions(runtime, make_examples):
    examples: list[Example] = make_examples(3, vocabulary=320, shortest=18)
    mine = continuations(runtime, examples, 2, 500)
    assert [len(ids) for ids in mine] == [128 - 16] * 2
    assert agreement(mine, continuations(runtime, examples, 2, 500))["equal"] == 1.0
    assert continuations(runtime, examples, 0, 8) is None


def test_speed_is_measured_with_a_sample(runtime):
    found = measure_speed(runtime, [5, 6, 7], 32, 4, Timer())
    assert found["tokens_per_second"]["prefill"] > 0
    assert found["tokens_per_second"]["generate"] > 0
    assert found["seconds_to_first_token"] > 0
    low, high = found["tokens_per_second_range"]["generate"]
    assert low <= found["tokens_per_second"]["generate"] <= high
    assert found["sample"]


def test_a_runtime_that_cannot_generate_has_no_such_numbers(runtime):
    runtime.can_generate = False
    found = measure_speed(runtime, [5, 6, 7], 32, 4, Timer())
    assert found["tokens_per_second"]["generate"] is None
    assert found["seconds_to_first_token"] is None
    assert found["tokens_per_second"]["prefill"] > 0


def texts_timed(examples, batch_size):
    """(lengths of texts that are timed in batches, of those timed alone), of one call."""
    batches = plan_in_order([len(e.input_ids) for e in examples], batch_size)
    seen = []

    def read(batch):
        seen.append(batch.counts)

    numbers = [[i for row in rows for i in row] for rows in batches]
    found = measure_text_speed(read, examples, numbers, Timer())
    for key in ("texts_per_second", "seconds_a_text"):
        assert found[f"{key}_range"][0] <= found[key] <= found[f"{key}_range"][1]
    many = [counts for counts in seen if len(counts) > 1][1:]  # the first warms up
    lone = [counts[0] for counts in seen if len(counts) == 1][1:]
    return [n for counts in many[: len(many) // 3] for n in counts], lone[: len(lone) // 3]


def test_texts_are_timed_at_all_lengths_whatever_the_batches(make_examples):
    examples = make_examples(1000, longest=60)
    (many, lone), (others, same) = texts_timed(examples, 8), texts_timed(examples, 20)
    assert len(many) == 256
    assert abs(len(others) - 256) <= 20
    assert same == lone
    lengths = sorted((len(e.input_ids) for e in examples), reverse=True)
    assert len(lone) == 16
    assert lone == sorted(lone, reverse=True)
    assert (lone[0], lone[-1]) == (lengths[0], lengths[-1])
    middle = sum(lengths) / len(lengths)
    assert abs(sum(many) / len(many) - middle) < 0.05 * middle
    assert abs(sum(lone) / len(lone) - middle) < 0.1 * middle


def test_few_texts_are_all_timed(make_examples):
    many, lone = texts_timed(make_examples(10), 4)
    assert (len(many), len(lone)) == (10, 10)
