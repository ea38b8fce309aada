"""How far two models say the same, and what is timed."""

import numpy as np
import pytest

from distill.data.batching import plan_in_order
from distill.data.examples import Example
from distill.data.tokenize import IGNORE
from distill.evaluation.generation_speed import agreement, continuations, measure_speed
from distill.evaluation.text_speed import measure_text_speed
from distill.evaluation.timing import Timer
from distill.runtimes.hugging_face import Transformers
from distill.runtimes.runtime import ModelSource


def test_agreement_counts_until_the_first_difference():
    found = agreement([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 9, 4], [5, 6, 7, 8]])
    assert found == {"prompts": 2, "tokens": 4, "same_until": 3.0, "same": 7 / 8, "equal": 0.5}


def test_agreement_counts_up_to_the_end_of_the_answer():
    ended_early, went_on = [1, 0], [1, 2, 3, 4]
    found = agreement([ended_early, went_on], [[1, 2, 0], [1, 0]])
    assert (found["tokens"], found["same_until"], found["equal"]) == (2.5, 1.0, 0.0)
    assert found["same"] == 2 / 5
    assert agreement([[1, 0]], [[1, 0]])["same_until"] == 2


@pytest.fixture
def runtime(make_model, tokenizer, tmp_path):
    make_model(0, vocabulary=320).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return Transformers(ModelSource(str(tmp_path)))


class Held(list):
    """Examples in memory, each a document."""

    @property
    def documents(self):
        return np.arange(len(self))


def text(first, length=40):
    ids = np.arange(first, first + length)
    return Example("", ids, np.append(ids[1:], IGNORE))


def answer(question):
    """A system message of 20 ids that all have, a question, and an answer of 3 ids."""
    ids = np.array([*range(20), question, 61, 62, 63])
    return Example("", ids, np.array([*[IGNORE] * 20, 61, 62, 63, IGNORE]))


def test_a_model_agrees_with_itself_and_stays_within_its_positions(runtime):
    examples = Held([text(0), text(50), text(100)])
    mine = continuations(runtime, examples, 2, 500, ())
    assert [len(ids) for ids in mine] == [128 - 20] * 2
    assert agreement(mine, continuations(runtime, examples, 2, 500, ()))["equal"] == 1.0
    assert continuations(runtime, examples, 0, 8, ()) is None


def test_answers_to_distinct_prompts_are_compared_up_to_their_end(runtime, monkeypatch):
    asked = []

    def generate(ids, new, stop_ids=()):
        asked.append((ids, stop_ids))
        return [7]

    monkeypatch.setattr(runtime, "generate", generate)
    examples = Held([answer(31), answer(31), answer(32), answer(33)])
    assert len(continuations(runtime, examples, 2, 8, (5,))) == 2
    assert asked == [([*range(20), 31], (5,)), ([*range(20), 32], (5,))]


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
