"""What a search writes into a recipe, what it warns of, and what it refuses."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from attar.errors import RecipeError
from distill.recipe.tune import Range, TuneConfig
from distill.run.load import load_recipe
from distill.tune.outcome import outcome_of, trial_table, tuned_values, write_tuned
from distill.tune.search import check_tune
from distill.tune.trial_runs import base_values, ends_of, trial_recipe

RATES = {"train.lr": {"low": 1e-5, "high": 1e-3, "log": True}}
WEIGHT = "train.objective.0.weight"


def trial(number, value, state="COMPLETE", **params):
    return SimpleNamespace(
        number=number, value=value, params=params, state=SimpleNamespace(name=state),
        user_attrs={"step 4": 2.0 if value is None else value},
    )  # fmt: skip


def study(*trials):
    best = min((one for one in trials if one.value is not None), key=lambda one: one.value)
    return SimpleNamespace(get_trials=lambda deepcopy: list(trials), best_trial=best)


@pytest.fixture
def searched(workshop):
    """A recipe and what was found for it."""
    over = {**RATES, "train.objective[0].weight": [1.0, 2.0]}
    recipe = load_recipe("recipe.yaml")
    config = TuneConfig.model_validate({"over": over})
    studies = {
        "distill": study(
            trial(0, None, "PRUNED", **{"train.lr": 1e-5, WEIGHT: 1.0}),
            trial(1, 1.5, **{"train.lr": 9.87654e-4, WEIGHT: 2.0}),
        ),
        "finetune": study(trial(0, 1.7, **{"train.lr": 1.234567e-4})),
    }
    return recipe, outcome_of(recipe, config, studies)


def test_the_best_keys_become_the_recipes_and_a_candidate(searched):
    _, found = searched
    write_tuned("recipe.yaml", found, Path("tuned.yaml"))
    written = load_recipe("tuned.yaml").train
    assert (written.lr, written.objective[0].weight) == (9.88e-4, 2.0)
    assert [(one.arm, one.lr) for one in written.arms] == [("finetune", 1.23e-4)]
    assert written.batch_size == load_recipe("recipe.yaml").train.batch_size


def test_terms_that_the_recipe_leaves_to_defaults_are_written_out(searched):
    _, found = searched
    values = tuned_values({"train": {"arms": ["gold", "finetune"]}}, found)
    assert values["train"]["objective"][0]["weight"] == 2.0
    assert [one if isinstance(one, str) else one["name"] for one in values["train"]["arms"]] == [
        "gold", "finetune-tuned",
    ]  # fmt: skip


def test_a_best_value_at_the_end_of_its_range_is_warned_of(searched):
    _, found = searched
    (said,) = found["arms"]["distill"]["warnings"]
    assert "The best `train.lr` of `distill`, 0.000988, is at the upper end" in said
    assert found["arms"]["finetune"]["warnings"] == []


def test_the_table_has_the_best_trial_first(searched):
    _, found = searched
    lines = trial_table(found)
    assert [line[:2] + line[-1:] for line in lines[1:]] == [
        ["distill", "1", "best"], ["distill", "0", "stopped"], ["finetune", "0", "best"],
    ]  # fmt: skip


def test_a_trial_of_fine_tuning_learns_by_the_labels_alone(workshop):
    recipe = load_recipe("recipe.yaml", ("train.seeds=3",))
    base = base_values(recipe, {})
    found = trial_recipe(recipe, base, "finetune", {"train.lr": 5e-4})
    assert [term.loss for term in found.train.objective] == ["cross_entropy"]
    assert (found.train.lr, found.train.arms, found.train.seeds) == (5e-4, [], None)
    distilled = trial_recipe(recipe, base, "distill", {WEIGHT: 4.0})
    assert distilled.train.objective[0].weight == 4.0
    assert distilled.train.objective[1:] == recipe.train.objective[1:]


def test_every_choice_and_both_ends_are_checked_before_work():
    over = {"a": Range(low=1, high=2), "b": [7, 8, 9]}
    assert ends_of(over) == [{"a": 1, "b": 7}, {"a": 2, "b": 8}, {"a": 2, "b": 9}]


def test_without_optuna_one_sentence_names_the_extra(workshop, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    recipe = load_recipe("recipe.yaml", ("tune={over: {train.epochs: [1, 2]}}",))
    with pytest.raises(RecipeError, match=r'not installed: pip install "attar\[tune\]"'):
        check_tune(recipe, Path("out"))
