"""Terms on preferences fit the other sections, or say in one sentence what to write."""

import pytest

from attar.errors import RecipeError
from distill.recipe.consistency import check_consistency
from distill.recipe.schema import Recipe


def recipe(codec="label", **term):
    return Recipe.model_validate(
        {
            "data": {"train": "rows.jsonl"},
            "teacher": {"model": "teacher"},
            "cache": {"codec": {"name": codec}},
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
