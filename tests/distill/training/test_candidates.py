"""Which trainings a recipe's arms, candidates and seeds come to."""

import pytest
from pydantic import ValidationError

from distill.training.train_config import TrainConfig

HIGH = {"arm": "finetune", "name": "finetune-high", "lr": "1e-3", "epochs": 2}
LOW = {"arm": "distill", "name": "distill-low", "lr": 5e-5}


def train_config(**keys):
    return TrainConfig.model_validate({"lr": 2e-4, **keys})


def test_a_recipe_without_either_has_one_training_an_arm():
    found = train_config().trainings(7)
    assert [(one.name, one.arm, one.seed) for one in found] == [
        ("distill", "distill", 7), ("finetune", "finetune", 7),
    ]  # fmt: skip


def test_every_candidate_is_trained_with_every_seed_the_distilled_ones_first():
    config = train_config(arms=["finetune", HIGH, LOW], seeds=[3, 5])
    found = config.trainings(0)
    assert [one.name for one in found] == [
        "distill", "distill-seed-5", "distill-low", "distill-low-seed-5",
        "finetune", "finetune-seed-5", "finetune-high", "finetune-high-seed-5",
    ]  # fmt: skip
    assert [one.seed for one in found] == [3, 5] * 4
    assert config.distilled(0) == 4
    assert config.controls == ["finetune"]


def test_a_number_of_seeds_goes_on_from_the_recipes():
    assert train_config(seeds=3).seeds_from(2**32 - 2) == [2**32 - 2, 2**32 - 1, 0]


def test_a_candidate_differs_in_its_own_keys_alone():
    config = train_config(arms=[HIGH])
    assert list(config.candidates("finetune")) == ["finetune-high"]
    (_, one) = config.trainings(0)
    found, plain = (each.config(config, "cross_entropy") for each in (one, train_pair(config)))
    assert (found.lr, found.epochs) == (1e-3, 2)
    assert found.model_copy(update={"lr": plain.lr, "epochs": plain.epochs}) == plain
    assert [term.loss for term in found.objective] == ["cross_entropy"]


def train_pair(config):
    """The plain arm beside the candidate."""
    return config.model_copy(update={"arms": ["finetune"]}).trainings(0)[1]


def test_what_is_dumped_is_read_again_as_it_was_written():
    config = train_config(arms=["finetune", HIGH])
    dumped = config.model_dump(mode="json")["arms"]
    assert dumped == ["finetune", {**HIGH, "lr": 1e-3}]
    assert train_config(arms=dumped) == config


@pytest.mark.parametrize("name", ["init", "a b", "../up", "x-seed-2", ""])
def test_a_name_that_is_no_folders_or_another_models_is_refused(name):
    with pytest.raises(ValidationError, match="the name"):
        train_config(arms=[{**HIGH, "name": name}])
