"""What is advised before anything runs, for classes and for text."""

import copy
import json

import pytest

from attar.errors import RecipeError, RunError
from distill.advise.advise import Advice, advise, arm_rows, question_rows, read_comparison, refusals
from distill.advise.arm_costs import arm_costs
from distill.advise.guide import QUESTIONS, SOME, Known, number_of_labels
from distill.advise.subject import Subject
from distill.run.load import check_recipe
from tests.helpers.classifying import write_rows
from tests.helpers.compared_folder import fill_folder, tiny_decoder, values

BLOCK = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32  # parameters of a block of the model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with labelled rows, and with questions and answers; read only."""
    made = tmp_path_factory.mktemp("advise")
    fill_folder(made)
    rows = [{"prompt": f"the film was {i}", "response": f"#### {i}"} for i in range(60)]
    write_rows(made / "sums.jsonl", rows)
    return made


@pytest.fixture(scope="module")
def recipe(folder):
    """`recipe(task)`: a recipe of classes, or of questions and answers."""

    def make(task="sequence-classification", **changes):
        found = values(folder, **changes)
        found["compare"].pop("labels")
        if task == "causal-lm":
            found |= {"task": task, "data": {"train": str(folder / "sums.jsonl")}}
            del found["teacher"]["adapt"]
        return check_recipe(found)

    return make


@pytest.fixture(scope="module")
def subject(recipe, tmp_path_factory):
    """The recipe of classes, looked at."""
    return Subject(recipe(), tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def costs(subject):
    """By arm, of the recipe of classes."""
    return {one.arm: one for one in arm_costs(subject, None)}


def test_what_learns_is_counted(costs):
    found = costs
    head, total = 32 * 2, sum(p.numel() for p in tiny_decoder().model.parameters())
    assert found["head"].trained == head
    assert found["full"].trained == total + head
    assert found["last-2"].trained == pytest.approx(2 * BLOCK + head, abs=100)
    assert found["zero-shot"].trained == found["majority"].trained == 0
    assert 0 < found["prompt-tuning"].trained < found["lora"].trained < found["full"].trained


def test_more_that_learns_takes_more_memory_and_more_a_task(costs):
    found = costs
    memory = [found[name].memory for name in ("zero-shot", "head", "last-2", "full", "distill")]
    assert memory == sorted(memory)
    assert found["full"].task_bytes == 4 * found["full"].trained
    assert found["few-shot"].query_tokens > found["zero-shot"].query_tokens
    assert found["lora"].mixes
    assert found["head"].shares
    assert not found["full"].shares


def test_arms_above_the_memory_do_not_fit(subject, costs):
    limit = (costs["head"].memory + costs["full"].memory) / 2
    found = {one.arm: one.fits for one in arm_costs(subject, limit)}
    assert found["head"]
    assert found["full"] is False
    assert found["preference"] is None


def test_arms_that_do_not_fit_the_recipe_say_why(costs):
    found = costs
    assert "no chosen and rejected" in found["preference"].refused
    assert found["preference"].memory is None


@pytest.mark.parametrize(
    ("task", "kind", "arm"),
    [("sequence-classification", "2 of them", "tf-idf"), ("causal-lm", "exact", "distill-answers")],
)
def test_every_question_and_arm_is_in_the_tables(recipe, task, kind, arm):
    found = advise(recipe(task), 1e12, None)
    assert len(question_rows(found)) == 1 + len(QUESTIONS)
    assert kind in found.answers[0].answer
    assert arm in found.answers[0].arms
    names = {one.arm for one in found.costs if one.refused is None}
    assert all(set(one.arms) <= names for one in found.answers)
    assert found.measured
    assert len(arm_rows(found)) + len(refusals(found)) == 1 + len(found.costs)
    assert {len(line) for line in arm_rows(found)} == {8}
    assert json.loads(json.dumps(found.numbers()))["labels"] == found.labels


def test_few_and_many_labels_are_answered_differently(subject, costs):
    known = Known(subject, costs, None)
    few = number_of_labels(known).arms[0]
    many = copy.copy(subject)
    many.cell = type(subject.cell)(SOME, 0)
    known = Known(many, costs, None)
    assert (few, number_of_labels(known).arms[0]) == ("prompt", "full")


def test_unlabelled_rows_are_counted(tmp_path):
    fill_folder(tmp_path)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"text": "water and light", "label": null}\n' * 3)
    assert Subject(check_recipe(values(tmp_path)), tmp_path / "rows").unlabelled == 3


def test_a_comparison_of_these_rows_comes_first(subject, costs, tmp_path):
    written = {
        "sizes": [8], "points": {"8": {"recommended": "lora"}},
        "advice": [{"constraint": "with 8 labels", "sentence": "With 8 labels: lora."}],
    }  # fmt: skip
    (tmp_path / "comparison.json").write_text(json.dumps(written))
    comparison = read_comparison(tmp_path)
    answer = number_of_labels(Known(subject, costs, None, comparison))
    assert (answer.arms, answer.sure) == (["lora"], "measured here")
    found = Advice([], [], [], None, 8, 1, comparison)
    assert found.sentences() == ["With 8 labels: lora."]


def test_a_folder_without_a_comparison_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"There is no comparison\.json"):
        read_comparison(tmp_path)


def test_tasks_that_cannot_be_compared_are_refused(recipe, tmp_path):
    changed = recipe().model_copy(update={"task": "embedding"})
    with pytest.raises(RecipeError, match="not embedding"):
        Subject(changed, tmp_path)
