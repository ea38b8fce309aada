"""Answers as examples, as a file, and in numbers."""

import numpy as np
import pytest

from attar.models.sampling import Answer
from distill.data.examples import WRITTEN, example_of
from distill.data.teacher_prompts import as_teacher_reads
from distill.rollouts.written import (
    Round,
    Written,
    example_of_answer,
    read_round,
    text_measures,
    write_round,
)


def answer(*ids, ended=True):
    return Answer(np.array(ids), np.linspace(-1, -2, len(ids), dtype=np.float32), ended)


def test_exactly_the_answer_counts_with_its_end():
    example = example_of_answer(Written(np.array([5, 6, 7]), answer(8, 9, 2)))
    assert example.role == WRITTEN
    assert example.input_ids.tolist() == [5, 6, 7, 8, 9, 2]
    assert example.labels.tolist() == [-100, -100, 8, 9, 2, -100]
    assert example.rollout.logprob == pytest.approx(-4.5)


def test_only_the_first_tokens_count_where_the_recipe_says_so():
    written = Written(np.array([5, 6, 7]), answer(8, 9, 2))
    example = example_of_answer(written, count_tokens=2)
    assert example.counted_labels.tolist() == [8, 9]
    assert example.rollout.logprob == pytest.approx(-2.5)
    assert example.key != example_of_answer(written).key


def test_an_answer_has_the_teachers_prompt_of_the_example_that_it_answers():
    ids, labels = [5, 6, 7, 8], [-100, 7, 8, -100]
    asked = example_of(ids, labels, teacher_prompt=[1, 2, 3])
    example = example_of_answer(Written(asked.prompt, answer(9, 2)), asked=asked)
    read = as_teacher_reads(example)
    assert read.input_ids.tolist() == [1, 2, 3, 9, 2]
    assert read.counted_labels.tolist() == example.counted_labels.tolist() == [9, 2]
    longer = Written(np.array([5, 6, 7]), answer(9, 2))  # the answer's first token is given
    read = as_teacher_reads(example_of_answer(longer, asked=asked))
    assert read.input_ids.tolist() == [1, 2, 3, 7, 9, 2]
    plain = example_of_answer(Written(asked.prompt, answer(9, 2)), asked=example_of(ids, labels))
    assert plain.teacher_prompt is None
    assert plain.key != example.key


def test_a_round_is_read_as_it_was_written(tmp_path):
    first = [Written(np.array([5, 6]), answer(8, 2), 1.0), Written(np.array([5, 6]), answer(9))]
    second = [Written(np.array([7]), answer(3, 4, ended=False), 0.25)]
    file = tmp_path / "rollouts" / "00000.arrow"
    write_round(file, Round([first, [], second], {"tokens": 5 / 3}))
    found = read_round(file)
    assert found.record == {"tokens": 5 / 3}
    assert [len(one) for one in found.answers] == [2, 0, 1]
    for one, other in zip((*first, *second), (*found.answers[0], *found.answers[2]), strict=True):
        assert one.prompt.tolist() == other.prompt.tolist()
        assert one.answer.ids.tolist() == other.answer.ids.tolist()
        assert one.answer.logprobs.tolist() == other.answer.logprobs.tolist()
        assert (one.answer.ended, one.reward) == (other.answer.ended, other.reward)


def test_a_file_that_is_missing_or_damaged_is_no_round(tmp_path, caplog):
    file = tmp_path / "00000.arrow"
    assert read_round(file) is None
    assert not caplog.records
    write_round(file, Round([[Written(np.array([5]), answer(8))]], {}))
    whole = file.read_bytes()
    for data in (whole[:-20], whole[:50], b"", b"no arrow file at all, but some text"):
        file.write_bytes(data)
        assert read_round(file) is None
    assert "is written again" in caplog.text


def test_measures_of_answers():
    found = text_measures([answer(1, 2, 3, 4, 1, 2, 3, 4), answer(5, 6, ended=False)])
    assert found["answers"] == 2
    assert found["tokens"] == 5
    assert found["ended"] == 0.5
    assert found["repeated"] == pytest.approx(1 / 5)
    assert found["logprob"] == pytest.approx((-12 - 3) / 10)
    assert text_measures([])["tokens"] == 0
