"""A sweep decides by what is on disk: in any order of trials, after a stop anywhere, with failures.

Trainings are planted here; whole sweeps are in tests/runs/test_sweep.py.
"""

import logging

import numpy as np
import pytest

from attar.errors import RecipeError, RunError
from distill.recipe.sweep import SweepConfig
from distill.run.load import check_recipe, short_form
from distill.sweep import run_sweep
from distill.sweep.budget import affordable, check_budget, words
from distill.sweep.checks import section_of, warn_of_rates
from distill.sweep.grid import trials_of
from distill.sweep.run_sweep import Sweep
from distill.sweep.state import Rung, TrialState, read_state, write_state
from distill.trials.values import ValidationValues

TOTAL = 100
OVER = {"student.layers.keep": [1, 2, 3], "train.lr": [1e-3, 1e-4]}


def recipe(**keys):
    values = {
        "data": {"train": "text.jsonl"},
        "teacher": {"model": "teacher"},
        "student": {"from": "teacher", "layers": {"keep": 1}},
        "export": {"artifacts": ["bf16"]},
        "sweep": {"over": OVER, "rungs": [0.1, 1.0], "halve": 3, **keys},
    }
    return check_recipe(values)


def quality(run):
    """The planted nll of a trial: more layers and the higher rate are better."""
    return 5.0 - run.recipe.student.layers.keep - 100 * run.recipe.train.lr


@pytest.fixture
def plant(monkeypatch, tmp_path):
    """`plant(fails=..., stop_after=...)`: trainings that say how good their trial is at once."""
    done = []

    def make(fails=lambda run, steps: False, stop_after=None, documents=20, noise=0.01):
        def advance(run, steps):
            if stop_after is not None and len(done) >= stop_after:
                raise KeyboardInterrupt
            if fails(run, steps):
                raise RunError("The loss is not finite.")
            done.append((run.folder.path.name, steps))
            dice = np.random.default_rng(len(run.folder.path.name) + steps)
            nll = quality(run) + noise * dice.standard_normal(40)
            arrays = {"nll": nll, "document": np.arange(40) % documents}
            return ValidationValues(steps, TOTAL, 10 * steps, steps / 10, "nll", arrays)

        def measure(self, state, run):
            keep = run.recipe.student.layers.keep
            state.parameters, state.bytes, state.operations = keep, 4 * keep, 2.0 * keep

        monkeypatch.setattr(run_sweep, "advance", advance)
        monkeypatch.setattr(run_sweep, "total_steps", lambda run: TOTAL)
        monkeypatch.setattr(Sweep, "_measure_costs", measure)
        done.clear()
        return done

    return make


def outcome(left_at):
    """(keep, lr, the rung at which it was left) by the trials' names, without their digests."""
    return {name.rsplit("-", 1)[0]: rung for name, rung in left_at.items()}


def test_the_best_of_every_size_go_on(plant, tmp_path):
    done = plant()
    found = outcome(Sweep(recipe(), tmp_path).climb())
    assert {name for name, rung in found.items() if rung is None} == {
        "keep-1-lr-0.001", "keep-3-lr-0.001",
    }  # fmt: skip
    assert sorted(steps for _, steps in done) == [10] * 6 + [TOTAL] * 2


def test_the_order_of_the_values_is_irrelevant(plant, tmp_path):
    plant()
    backwards = {path: values[::-1] for path, values in reversed(OVER.items())}
    found = []
    for number, over in enumerate((OVER, backwards)):
        sweep = Sweep(recipe(over=over), tmp_path / f"{number}")
        left, runs = sweep.climb(), sweep.runs
        found.append({_shape(runs[name]): rung for name, rung in left.items()})
    assert found[0] == found[1]


def _shape(run):
    return run.recipe.student.layers.keep, run.recipe.train.lr


@pytest.mark.parametrize("budget", [None, 300])
def test_a_sweep_that_is_stopped_anywhere_decides_as_one_that_is_not(
    plant, tmp_path, monkeypatch, budget
):
    monkeypatch.setattr(run_sweep, "planned_seconds", lambda run: {"export": 1.0})
    plant()
    whole = Sweep(recipe(budget=budget), tmp_path / "whole").climb()
    for stop in range(8):
        folder = tmp_path / f"stopped {stop}"
        plant(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            Sweep(recipe(budget=budget), folder).climb()
        plant()
        assert list(Sweep(recipe(budget=budget), folder).climb().values()) == list(whole.values())


def test_trials_that_cannot_be_told_apart_all_go_on(plant, tmp_path):
    plant(documents=3)
    found = Sweep(recipe(), tmp_path).climb()
    assert set(found.values()) == {None}, "three documents say nothing"


def test_a_trial_that_fails_is_left_with_its_reason_and_stays_so(plant, tmp_path):
    plant(fails=lambda run, steps: quality(run) < 2 and steps == TOTAL)
    sweep = Sweep(recipe(), tmp_path)
    found = sweep.climb()
    failed = {name for name, state in sweep.states.items() if state.failed}
    assert outcome({name: found[name] for name in failed}) == {"keep-3-lr-0.001": 1}
    done = plant()
    again = Sweep(recipe(), tmp_path)
    assert again.climb() == found
    assert {again.states[name].failed for name in failed} == {"The loss is not finite."}
    assert (next(iter(failed)), TOTAL) not in done, "its file says that it fails"


def test_a_sweep_in_which_everything_fails_is_one_sentence(plant, tmp_path):
    plant(fails=lambda run, steps: True)
    with pytest.raises(RunError, match=r"Every trial failed; the first, keep-1-lr.*not finite"):
        Sweep(recipe(), tmp_path).climb()


# Trials and their states -------------------------------------------------------------------------


def test_a_trial_is_the_recipe_with_its_values_and_no_control_arm():
    plain = recipe(artifacts=["nf4"])
    shared = {"cache": {"dir": "base/cache"}}
    trials = {trial.name: trial for trial in trials_of(plain, shared)}
    assert len(trials) == 6
    for trial in trials.values():
        assert trial.recipe.sweep is None
        assert trial.recipe.train.arms == []
        assert trial.recipe.cache.dir == "base/cache"
        assert trial.recipe.export.artifacts == ["nf4"]
        assert trial.recipe.train.lr == trial.over["train.lr"]
        assert check_recipe(short_form(trial.recipe)) == trial.recipe
    first = trials_of(plain, {})[0]
    assert first.name not in trials, "another recipe has another folder"
    assert first.words == "keep 1, lr 0.0001"


def test_a_combination_that_is_no_recipe_is_named():
    wrong = recipe(over={"student.layers.kept": [1, 2]})
    with pytest.raises(RecipeError, match=r"`sweep.over`, the trial with `student.layers.kept: 1`"):
        trials_of(wrong, {})


def test_a_state_survives_its_file_and_a_damaged_file_is_a_new_state(tmp_path):
    state = TrialState("a", {"train.lr": 1e-3}, parameters=5, seconds=2.5)
    for step in (20, 10, 20):
        state.reached(Rung(step, 100, 10 * step, 1.0, 2.0))
    write_state(tmp_path / "a.json", state)
    assert read_state(tmp_path / "a.json", "a", state.over) == state
    assert [rung.step for rung in state.rungs] == [10, 20]
    for content in ("", "[]", '{"name": "a"}'):
        (tmp_path / "a.json").write_text(content)
        assert read_state(tmp_path / "a.json", "a", state.over) == TrialState("a", state.over)


# The budget --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("2h", 7200), ("30 s", 30), (60, 60)])
def test_a_budget_is_a_time(text, seconds):
    assert SweepConfig(over=OVER, budget=text).budget == seconds


def test_times_are_shown_as_a_recipe_writes_them():
    assert [words(n) for n in (7.2, 599, 601, 7000, 7260)] == ["8s", "599s", "11m", "117m", "2.1h"]


def test_a_budget_that_does_not_let_one_trial_reach_the_end_is_refused():
    planned = {
        name: {"cache": 10.0, "build": 1.0, "train": 100.0, "evaluate": 50.0} for name in "abc"
    }
    config = SweepConfig(over=OVER, rungs=[0.1, 1.0], budget=182)
    with pytest.raises(RecipeError, match=r"182s.* 43s .* 140s more.*at least 183s"):
        check_budget(config, planned)
    check_budget(config.model_copy(update={"budget": 183.0}), planned)


def test_as_many_go_on_as_the_time_left_is_enough_for():
    states = {n: TrialState(n, {}, seconds=10.0, rungs=[Rung(10, 100, 1, 10.0, 1)]) for n in "abc"}
    planned = {key: {"evaluate": 20.0} for key in "abc"}
    keys = {"over": OVER, "rungs": [0.1, 0.4, 1.0], "halve": 2}

    def going_on(budget):
        return affordable("abc", states, SweepConfig(**keys, budget=budget), 0, planned)

    # 30 s are spent. One takes 30 + 60 + 20; two, of which one goes on to the last rung,
    # 60 + 60 + 20; three, of which two do, 90 + 120 + 40.
    assert going_on(None) == going_on(281) == ["a", "b", "c"]
    assert going_on(279) == going_on(171) == ["a", "b"]
    assert going_on(169) == going_on(1) == ["a"]


def test_rates_on_an_early_rung_are_warned_of(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("distill"), "propagate", True)
    warn_of_rates(section_of(recipe()))
    assert "trials differ in `train.lr`" in caplog.text
    caplog.clear()
    warn_of_rates(section_of(recipe(rungs=[0.5, 1.0])))
    warn_of_rates(section_of(recipe(over={"student.layers.keep": [1, 2]})))
    assert not caplog.text
