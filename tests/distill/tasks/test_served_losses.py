"""A loss of another task is refused in every section, and the task that has it is named."""

import pytest

from attar.errors import RecipeError
from distill.run.load import check_recipe

OTHERS = [
    ("causal-lm", "bradley_terry", "reward"),
    ("masked-lm", "preference", "causal-lm"),
    ("masked-lm", "bradley_terry", "reward"),
    ("masked-lm", "rloo", "causal-lm"),
    ("sequence-classification", "preference", "causal-lm"),
    ("sequence-classification", "bradley_terry", "reward"),
]


@pytest.mark.parametrize(
    ("section", "task", "loss", "owner"),
    [
        *(("train", *other) for other in [*OTHERS, ("causal-lm", "similarity", "embedding")]),
        *(("teacher.adapt", *other) for other in OTHERS),
        ("specialize", "causal-lm", "bradley_terry", "reward"),
    ],
)
def test_a_loss_of_another_task_is_refused(section, task, loss, owner):
    learning = {"objective": [{"loss": loss}]}
    values = {
        "task": task,
        "data": {"train": "rows.jsonl"},
        "teacher": {"model": "teacher"},
        "student": {"from": "teacher"},
    }
    if section == "teacher.adapt":
        values["teacher"]["adapt"] = learning
    else:
        values[section] = learning
    with pytest.raises(RecipeError, match=rf"`{section}.objective\[0\]`: {loss} .*`task: {owner}`"):
        check_recipe(values)
