"""Mistakes in a recipe are told together, and in words of the recipe."""

import pytest

from attar.errors import RecipeError
from distill.run.load import check_recipe


def set_in(path, value):
    """A good recipe's values with one key changed; the path is a list of keys."""
    values = {
        "data": {"train": "train.jsonl"},
        "teacher": {"model": "teacher"},
        "student": {},
        "train": {},
    }
    here = values
    for key in path[:-1]:
        here = here.setdefault(key, {})
    here[path[-1]] = value
    return values


def test_several_mistakes_are_told_together_and_many_are_counted():
    values = set_in(["train", "lr"], "fast")
    values["data"]["max_lenght"] = 3
    with pytest.raises(
        RecipeError, match=r"`data\.max_lenght`.* And `train\.lr`: must be a number"
    ):
        check_recipe(values)
    values["data"].update({f"key{i}": i for i in range(4)})
    with pytest.raises(RecipeError, match="3 more"):
        check_recipe(values)


def test_a_value_that_may_be_of_several_kinds_is_one_mistake():
    with pytest.raises(RecipeError) as caught:
        check_recipe(set_in(["data", "held_out"], [0.1]))
    assert str(caught.value) == "`data.held_out`: must be a number or text (found [0.1])."
    with pytest.raises(RecipeError) as caught:
        check_recipe(set_in(["data", "train"], ["a.jsonl", 3]))
    assert str(caught.value) == "`data.train[1]`: must be text (found 3)."


def test_no_mistake_is_told_in_words_of_the_library_that_found_it():
    for path, value in (
        (["train"], 3), (["train", "arms"], "finetune"), (["train", "lr"], None),
        (["data", "packing"], "perhaps"), (["train", "betas"], [1]), (["seed"], "one"),
        (["train", "epochs"], 0), (["export"], {"artifacts": 3}), (["teacher", "model"], 3),
        (["train", "objective"], []), (["train", "objective"], "forward_kl"),
        (["train", "warmup"], -1), (["cache", "hidden"], {"layers": "all"}),
    ):  # fmt: skip
        with pytest.raises(RecipeError) as caught:
            check_recipe(set_in(path, value))
        said = str(caught.value).lower()
        assert not any(word in said for word in ("input should", "valid ", "field required")), said
