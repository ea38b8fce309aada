"""Where a recipe asks for the models' own answers, and where it does so by itself."""

import pytest

from attar.errors import RecipeError
from distill.evaluation.job import OwnAnswersConfig
from distill.run.load import check_recipe, short_form

SMALL = {"data": {"train": "x"}, "teacher": {"model": "y"}, "student": {}}


def recipe_of(**evaluate):
    return check_recipe({**SMALL, "specialize": {"method": "lora"}, "evaluate": evaluate})


def learning_from_itself(recipe, section):
    changed = getattr(recipe, section).model_copy(update={"rollouts": {"share": 1.0}})
    return recipe.model_copy(update={section: changed})


@pytest.mark.parametrize("section", ["train", "specialize"])
def test_they_are_measured_where_a_student_learns_from_its_own(section):
    assert recipe_of().own_answers() is None
    assert learning_from_itself(recipe_of(), section).own_answers() == OwnAnswersConfig()


def test_null_switches_them_off_and_a_section_on():
    assert learning_from_itself(recipe_of(own_answers=None), "train").own_answers() is None
    found = recipe_of(own_answers={"prompts": 8}).own_answers()
    assert found == OwnAnswersConfig(prompts=8)


@pytest.mark.parametrize("said", [None, "auto", {}, {"prompts": 8}])
def test_what_a_recipe_says_stays_in_its_short_form(said):
    recipe = recipe_of(own_answers=said)
    assert check_recipe(short_form(recipe)) == recipe


def test_other_tasks_have_none():
    for task in ("sequence-classification", "masked-lm", "embedding", "reward"):
        with pytest.raises(RecipeError, match=r"`evaluate\.own_answers` has no effect"):
            check_recipe({**SMALL, "task": task, "evaluate": {"own_answers": {}}})
