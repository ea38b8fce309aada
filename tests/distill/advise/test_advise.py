"""What is advised before anything runs, for classes and for text."""

import json

import pytest

from attar.errors import RecipeError, RunError
from distill.advise.advise import advise, arm_rows, question_rows, read_comparison, refusals
from distill.advise.arm_costs import arm_costs
from distill.advise.guide import QUESTIONS, SOME, Known, number_of_labels
from distill.advise.subject import Subject
from distill.run.load import check_recipe
from tests.helpers.classifying import write_rows
from tests.helpers.compared_folder import fill_folder, tiny_decoder, values

BLOCK = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32  # parameters of a block of the model


@pytest.fixture
def recipe(tmp_path):
    """`recipe(**changes)`: a recipe of classes; `task="causal-lm"` one of questions and answers."""
    fill_folder(tmp_path)

    def make(task="sequence-classification", **changes):
        found = values(tmp_path, **changes)
        found["compare"].pop("labels")
        if task == "causal-lm":
            found |= {"task": task, "data": {"train": str(tmp_path / "sums.jsonl")}}
            del found["teacher"]["adapt"]
            rows = [{"prompt": f"the film was {i}", "response": f"#### {i}"} for i in range(60)]
            write_rows(tmp_path / "sums.jsonl", rows)
        return check_recipe(found)

    return make


@pytest.fixture
def costs(recipe, tmp_path):
    """`costs(limit)`: by arm, of the recipe of classes."""

    def make(limit=None, **changes):
        found = arm_costs(Subject(recipe(**changes), tmp_path / "rows"), limit)
        return {one.arm: one for one in found}

    return make


def test_what_learns_is_counted(costs):
    found = costs()
    head, total = 32 * 2, sum(p.numel() for p in tiny_decoder().model.parameters())
    assert found["head"].trained == head
    assert found["full"].trained == total + head
    assert found["last-2"].trained == pytest.approx(2 * BLOCK + head, abs=100)
    assert found["zero-shot"].trained == found["majority"].trained == 0
    assert 0 < found["prompt-tuning"].trained < found["lora"].trained < found["full"].trained


def test_more_that_learns_takes_more_memory_and_more_a_task(costs):
    found = costs()
    memory = [found[name].memory for name in ("zero-shot", "head", "last-2", "full", "distill")]
    assert memory == sorted(memory)
    assert found["full"].task_bytes == 4 * found["full"].trained
    assert found["few-shot"].query_tokens > found["zero-shot"].query_tokens
    assert found["lora"].mixes
    assert found["head"].shares
    assert not found["full"].shares


def test_arms_above_the_memory_do_not_fit(costs):
    assert all(one.fits for one in costs(1e12).values() if one.refused is None)
    assert not any(one.fits for one in costs(1e3).values())


def test_arms_that_do_not_fit_the_recipe_say_why(costs):
    found = costs()
    assert "no chosen and rejected" in found["preference"].refused
    assert found["preference"].memory is None


@pytest.mark.parametrize(
    ("task", "kind", "arm"),
    [("sequence-classification", "2 of them", "tf-idf"), ("causal-lm", "exact", "distill-answers")],
)
def test_every_question_is_answered(recipe, task, kind, arm):
    found = advise(recipe(task), 1e12, None)
    assert len(found.answers) == len(QUESTIONS)
    assert kind in found.answers[0].answer
    assert arm in found.answers[0].arms
    names = {one.arm for one in found.costs if one.refused is None}
    assert all(set(one.arms) <= names for one in found.answers)
    assert found.measured
    assert found.numbers()["labels"] == found.labels
    json.dumps(found.numbers())


def test_few_and_many_labels_are_answered_differently(recipe, tmp_path):
    subject = Subject(recipe(), tmp_path / "rows")
    known = Known(subject, {one.arm: one for one in arm_costs(subject, None)}, None)
    few = number_of_labels(known).arms[0]
    subject.cell = type(subject.cell)(SOME, 0)
    assert (few, number_of_labels(known).arms[0]) == ("prompt", "full")


def test_unlabelled_rows_are_counted(recipe, tmp_path):
    one = recipe()
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"text": "water and light", "label": null}\n' * 3)
    assert Subject(one, tmp_path / "rows").unlabelled == 3


def test_a_comparison_of_these_rows_comes_first(recipe, tmp_path):
    written = {
        "sizes": [8], "points": {"8": {"recommended": "lora"}},
        "advice": [{"constraint": "with 8 labels", "sentence": "With 8 labels: lora."}],
    }  # fmt: skip
    (tmp_path / "comparison.json").write_text(json.dumps(written))
    found = advise(recipe(), None, tmp_path)
    assert found.sentences() == ["With 8 labels: lora."]
    assert found.answers[1].arms == ["lora"]
    assert found.answers[1].sure == "measured here"


def test_a_folder_without_a_comparison_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"There is no comparison\.json"):
        read_comparison(tmp_path)


def test_tasks_that_cannot_be_compared_are_refused(recipe, tmp_path):
    changed = recipe().model_copy(update={"task": "embedding"})
    with pytest.raises(RecipeError, match="not embedding"):
        Subject(changed, tmp_path)


def test_tables_have_a_row_an_arm_and_a_question(recipe):
    found = advise(recipe(), 8e9, None)
    arms, questions = arm_rows(found), question_rows(found)
    assert len(arms) + len(refusals(found)) == 1 + len(found.costs)
    assert len(questions) == 1 + len(found.answers)
    assert {len(line) for line in arms} == {8}
