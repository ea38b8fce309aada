"""What is said of a teacher that has been adapted."""

import pytest

from distill.recipe.schema import AdaptConfig
from distill.stages.adapt_teacher import learned_little, ranks_little


@pytest.mark.parametrize(
    ("accuracy", "counts", "little"),
    [
        (0.10, [10, 90 // 2, 45], True),
        (0.101, [5] * 20, True),
        (0.30, [5] * 20, False),
        (0.52, [50, 50], True),
        (0.60, [50, 50], False),
        (0.95, [95, 5], True),
        (0.97, [95, 5], False),
    ],
)
def test_a_teacher_hardly_better_than_the_most_frequent_class_is_warned_of(
    accuracy, counts, little
):
    config = AdaptConfig.model_validate({"lr": 3e-5, "epochs": 3})
    said = learned_little({"validation_accuracy": accuracy}, counts, config, 84)
    assert bool(said) == little
    if little:
        assert "raise `teacher.adapt.lr` (3e-05) or `teacher.adapt.epochs` (3)" in said


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("sigmoid", "ranks 52.0% of the validation pairs right"),
        ("kto", "puts 52.0% of the validation answers on the right side of the baseline"),
    ],
)
def test_rated_answers_are_not_called_pairs(form, words):
    config = AdaptConfig.model_validate({"objective": [{"loss": "preference", "form": form}]})
    assert words in ranks_little({"validation_accuracy": 0.52}, config, 20)
    assert ranks_little({"validation_accuracy": 0.9}, config, 20) == ""
