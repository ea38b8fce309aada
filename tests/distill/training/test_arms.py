"""Arms: what each learns from, and how a recipe names them."""

import pytest
from pydantic import ValidationError

from distill.training.arms import ARMS, DISTILL
from distill.training.train_config import TrainConfig

OBJECTIVE = [{"loss": "forward_kl", "temperature": 2.0}, {"loss": "cross_entropy", "weight": 0.1}]


def train_config(**keys):
    return TrainConfig.model_validate({"objective": OBJECTIVE, "lr": 1e-3, **keys})


def test_distilling_trains_by_the_recipe_as_it_is():
    config = train_config()
    assert ARMS[DISTILL].configure(config, "cross_entropy") == config


def test_finetuning_differs_in_its_objective_alone():
    config = train_config(unfreeze={"every": 2, "from": "bottom"}, layer_lr_decay=0.9)
    for loss in ("cross_entropy", "bradley_terry"):  # by the task
        found = ARMS["finetune"].configure(config, loss)
        assert [(term.loss, term.weight) for term in found.objective] == [(loss, 1.0)]
        assert found.model_copy(update={"objective": config.objective}) == config


def test_finetuning_is_the_default_control():
    assert train_config().arms == ["finetune"]


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        (["finetun"], "There is no arm `finetun`.* Did you mean `finetune`"),
        (["distill"], "the arm `distill` is always trained; leave it out of `arms`"),
    ],
)
def test_an_arm_that_cannot_be_chosen_is_refused(arms, says):
    with pytest.raises(ValidationError, match=says):
        train_config(arms=arms)


def test_the_schema_names_the_controls():
    schema = TrainConfig.model_json_schema()["properties"]["arms"]
    assert {"type": "string", "enum": ["finetune", "gold"]} in schema["items"]["oneOf"]


def test_every_arm_is_described():
    for name, arm in ARMS.items():
        assert arm.name == name
        assert len(arm.about) > 10
