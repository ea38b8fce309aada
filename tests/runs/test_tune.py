"""A whole search for the keys of both arms, that is stopped and goes on."""

import json
from pathlib import Path

import pytest
import yaml

from attar.errors import RunError
from distill.run.load import load_recipe
from distill.training.arms import DISTILL
from distill.tune import search
from distill.tune.search import tune

KEYS = {
    "over": {"train.lr": {"low": 1e-6, "high": 1e-2, "log": True}},
    "trials": 4, "rungs": [0.5, 1.0], "halve": 2,
}  # fmt: skip


@pytest.fixture
def tuned(workshop):
    """The workshop's recipe with a section `tune`, in short trainings."""
    pytest.importorskip("optuna")
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    recipe["train"] |= {"max_steps": 4, "evaluate_every": 2}
    Path("recipe.yaml").write_text(yaml.safe_dump({**recipe, "tune": KEYS}))
    return workshop


def test_each_arm_gets_as_many_trials_and_the_best_keys_are_written(tuned):
    said = tuned("tune", "recipe.yaml", "--run-dir", "out", "--write", "tuned.yaml").output
    found = json.loads(Path("out/tune.json").read_text())
    for arm in ("distill", "finetune"):
        one = found["arms"][arm]
        assert [trial["number"] for trial in one["trials"]] == [0, 1, 2, 3]
        trained = [trial for trial in one["trials"] if trial["ended"] == "trained"]
        assert one["value"] == min(trial["value"] for trial in trained)
        stopped = [trial for trial in one["trials"] if trial["ended"] == "stopped"]
        assert all(list(trial["steps"]) == ["2"] for trial in stopped)
    assert len(list(Path("out").rglob("manifest.json"))) == 1, "one cache"
    for arm in ("distill", "finetune"):
        assert "build: up to date" in Path(f"out/trials/{arm}-1/run.log").read_text()
    written = load_recipe("tuned.yaml")
    (entry,) = written.train.arms
    assert (entry.arm, entry.name) == ("finetune", "finetune-tuned")
    assert entry.lr == found["arms"]["finetune"]["keys"]["train.lr"]
    assert written.train.lr == found["arms"]["distill"]["keys"]["train.lr"]
    assert written.tune is None
    assert "name: finetune-tuned" in said
    again = tuned("tune", "recipe.yaml", "--run-dir", "out", "--write", "tuned.yaml", ok=False)
    assert "there is such a file" in again.output
    with pytest.raises(RunError, match="a search by another recipe"):
        tune(load_recipe("recipe.yaml", ("tune.halve=3",)), Path("out"))


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not(tuned, monkeypatch):
    recipe = load_recipe("recipe.yaml", ("tune.arms=[distill]", "tune.trials=3"))
    whole = tune(recipe, Path("whole"))
    advance, calls = search.advance, []

    def stopping(run, step, **more):
        calls.append(step)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return advance(run, step, **more)

    monkeypatch.setattr(search, "advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        tune(recipe, Path("stopped"))
    monkeypatch.setattr(search, "advance", advance)
    assert tune(recipe, Path("stopped")) == whole
    assert len(whole["arms"][DISTILL]["trials"]) == 3
