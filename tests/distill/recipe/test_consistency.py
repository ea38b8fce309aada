"""Terms on preferences fit the other sections, or say in one sentence what to write."""

import pytest

from attar.errors import RecipeError
from distill.recipe.consistency import check_consistency
from distill.recipe.schema import Recipe
from distill.run.load import check_recipe


def recipe(codec="label", labels=False, **term):
    return Recipe.model_validate(
        {
            "data": {"train": "rows.jsonl"},
            "teacher": {"model": "teacher"},
            "cache": {"codec": {"name": codec}, "labels": labels},
            "student": {"from": "teacher"},
            "train": {"objective": [{"loss": "preference", **term}]},
        }
    )


@pytest.mark.parametrize("source", [None, "reference", "online"])
def test_kto_reads_the_start_or_a_teacher_in_the_step(source):
    check_consistency(recipe(form="kto", source=source))


@pytest.mark.parametrize("codec", ["label", "final_hidden"])
def test_kto_refuses_the_teachers_cache_whatever_its_codec(codec):
    says = r"objective\[0\].source: cache`: `form: kto` .* leave `source` out .* `source: online`"
    with pytest.raises(RecipeError, match=says):
        check_consistency(recipe(codec, form="kto", source="cache"))
    check_consistency(recipe(codec, form="sigmoid", source="cache"))


@pytest.mark.parametrize("codec", ["topk", "nucleus", "hybrid", "sampled"])
def test_the_teachers_cache_is_a_reference_where_it_keeps_labels(codec):
    says = r"objective\[0\].source: cache`: The codec `\w+` .* write `cache.labels: true`, or use"
    with pytest.raises(RecipeError, match=says):
        check_consistency(recipe(codec, form="sigmoid", source="cache"))
    check_consistency(recipe(codec, labels=True, form="sigmoid", source="cache"))


@pytest.mark.parametrize(("codec", "labels"), [("topk", True), ("label", False)])
def test_a_prompt_of_the_teachers_own_serves_a_cache_of_labels_that_no_objective_reads(
    codec, labels
):
    values = recipe(codec, labels).model_dump(exclude_unset=True)
    values["teacher"]["prompt"] = "{hint}"
    values["train"] = {"objective": [{"loss": "cross_entropy"}]}
    check_consistency(Recipe.model_validate(values))
    values["cache"] = {}
    with pytest.raises(RecipeError, match=r"`teacher.prompt` has no effect"):
        check_consistency(Recipe.model_validate(values))


@pytest.mark.parametrize(
    ("task", "adapt", "says"),
    [
        ("causal-lm", {"reference": "other"}, r"`teacher.adapt.reference` has no effect"),
        (
            "sequence-classification",
            {"objective": [{"loss": "preference"}]},
            r"`teacher.adapt.objective\[0\]`: preference .* needs `task: causal-lm`",
        ),
    ],
)
def test_an_adapted_teacher_has_no_reference_without_answers(task, adapt, says):
    values = {
        "task": task,
        "data": {"train": "rows.jsonl"},
        "teacher": {"model": "teacher", "adapt": adapt},
        "student": {"from": "teacher"},
        "train": {"objective": [{"loss": "cross_entropy"}]},
    }
    with pytest.raises(RecipeError, match=says):
        check_recipe(values)


def test_data_of_a_section_are_the_runs_unless_it_has_its_own():
    values = recipe().model_dump(exclude_unset=True)
    own = {"train": "own.jsonl", "max_length": 32}
    found = Recipe.model_validate({**values, "specialize": {"data": own}})
    assert found.data_of("specialize").max_length == 32
    assert found.data_of("train") is found.data_of("teacher.adapt") is found.data
    shared = Recipe.model_validate({**values, "specialize": {}})
    assert shared.data_of("specialize") is shared.data
