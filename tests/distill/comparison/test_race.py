"""Who runs, who is dropped, what a budget allows, and what other arms have to do with it."""

import json

import pytest

from attar.errors import RecipeError, UserError
from distill.comparison.race import check_budget
from distill.comparison.summary import summary_of
from tests.helpers.classifying import sentences, write_rows
from tests.helpers.compared_folder import NAMES, fill_folder, open_comparison
from tests.helpers.comparing import plant, planted, race_of


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with rows enough for all parts."""
    monkeypatch.chdir(tmp_path)
    fill_folder(tmp_path)
    rows = [{"text": text, "label": NAMES[good]} for text, good in sentences(400)]
    write_rows(tmp_path / "train.jsonl", rows)
    return tmp_path


def test_an_arm_is_dropped_only_where_its_interval_is_below_the_leaders(folder, monkeypatch):
    arms = {"best": planted(0.9), "near": planted(0.85), "far": planted(0.3)}
    plant(monkeypatch, arms)
    race = race_of(folder, arms)
    assert set(race.dropped) == {"far"}
    assert race.dropped["far"]["leader"] == "best"
    assert race.dropped["far"]["interval"][1] < 0
    assert set(race.outcomes[8]) == {"best", "near"}
    assert summary_of(race, 8)["arms"]["far"]["dropped"]["labels"] == 4


def test_a_ceiling_leads_nothing_and_is_never_dropped(folder, monkeypatch):
    arms = {
        "teacher": planted(1.0, family="ceiling"), "low": planted(0.1, family="ceiling"),
        "best": planted(0.8),
    }  # fmt: skip
    plant(monkeypatch, arms)
    race = race_of(folder, arms)
    assert race.dropped == {}
    assert summary_of(race, 8)["recommended"] == "best"


def test_nothing_is_dropped_where_the_section_says_so(folder, monkeypatch):
    arms = {"best": planted(0.9), "far": planted(0.1)}
    plant(monkeypatch, arms)
    assert race_of(folder, arms, drop=False).dropped == {}


def test_adding_an_arm_changes_no_others_number(folder, monkeypatch):
    arms = {"best": planted(0.9), "near": planted(0.8)}
    plant(monkeypatch, arms)
    before = summary_of(race_of(folder / "one", arms), 4)["arms"]
    arms = {"more": planted(0.7), **arms}
    plant(monkeypatch, arms)
    after = summary_of(race_of(folder / "two", arms), 4)["arms"]
    measured = {name: (one["selection"], one["test"]) for name, one in before.items()}
    assert measured == {name: (after[name]["selection"], after[name]["test"]) for name in before}


@pytest.fixture(autouse=True)
def own_files(folder):
    """Comparisons of a test in folders of their own read the same files."""
    for name in ("one", "two"):
        (folder / name).mkdir()
        for path in ("train.jsonl", "model"):
            (folder / name / path).symlink_to(folder / path)


def test_the_order_of_arms_is_irrelevant(folder, monkeypatch):
    arms = {"a": planted(0.9, 3.0), "b": planted(0.6, 1.0), "c": planted(0.2, 2.0)}
    plant(monkeypatch, arms)
    found = []
    for name, order in (("one", arms), ("two", reversed(arms))):
        race = race_of(folder / name, dict.fromkeys(order))
        found.append((race.dropped.keys(), summary_of(race, 8)["recommended"]))
    assert found[0] == found[1]


def test_a_failed_arm_is_a_row_with_its_reason_and_is_tried_again(folder, monkeypatch):
    arms = {"best": planted(0.9), "broken": planted(0.5, fails=UserError("no room for it"))}
    plant(monkeypatch, arms)
    race = race_of(folder, arms)
    assert summary_of(race, 4)["arms"]["broken"] == {"failed": "no room for it"}
    arms["broken"] = planted(0.5)
    plant(monkeypatch, arms)
    assert "test" in summary_of(race_of(folder, arms), 4)["arms"]["broken"]


def test_where_every_arm_fails_the_first_reason_is_an_error(folder, monkeypatch):
    arms = {"broken": planted(0.5, fails=UserError("no room for it"))}
    plant(monkeypatch, arms)
    with pytest.raises(RecipeError, match="No arm could be run; broken failed: no room for it"):
        race_of(folder, arms)


def test_what_was_measured_is_not_measured_again(folder, monkeypatch):
    arms = {"best": planted(0.9), "near": planted(0.8)}
    plant(monkeypatch, arms)
    race_of(folder, arms)
    arms = {name: planted(0.0, fails=UserError("was run again")) for name in arms}
    plant(monkeypatch, arms)
    race = race_of(folder, arms)
    assert not any(one.failed for found in race.outcomes[8].values() for one in found)
    changed = race_of(folder, arms, settings={"near": {"lr": 1.0}})
    assert changed.outcomes[8]["near"][0].failed == "was run again"
    assert changed.outcomes[8]["best"][0].failed is None


def test_a_damaged_outcome_is_made_again(folder, monkeypatch):
    arms = {"best": planted(0.9)}
    plant(monkeypatch, arms)
    race_of(folder, arms)
    file = folder / "compared" / "cells" / "n4-seed0" / "best" / "result.json"
    file.write_text(json.dumps({"arm": "best", "inputs": "of old"}))
    assert race_of(folder, arms).outcomes[4]["best"][0].failed is None


def test_a_budget_leaves_the_dear_arms_out_and_says_so(folder, monkeypatch):
    arms = {"cheap": planted(0.6, 1.0), "dear": planted(0.9, 100.0)}
    plant(monkeypatch, arms)
    race = race_of(folder, arms, lambda arm, cell: 1.0 if arm == "cheap" else 100.0, budget=10)
    assert set(race.outcomes[4]) == {"cheap"}
    assert (
        race.not_run[4]["dear"]
        == "about 100 s, and 4 s of the budget were left for this number of rows"
    )
    assert race.spent == 2.0


def test_a_budget_that_not_even_the_cheapest_arm_fits_is_refused(folder):
    comparison = open_comparison(folder, compare={"budget": "2s"})
    with pytest.raises(RecipeError, match=r"`compare.budget` is 2 s, and the cheapest arm, tf-idf"):
        check_budget(comparison, {"tf-idf": 4.0, "full": 80.0})


def test_equal_arms_are_told_apart_by_what_they_cost(folder, monkeypatch):
    arms = {"dear": planted(0.9, 9.0), "cheap": planted(0.9, 1.0)}
    plant(monkeypatch, arms)
    assert summary_of(race_of(folder, arms), 8)["recommended"] == "cheap"


def test_several_seeds_widen_what_can_be_told(folder, monkeypatch):
    arms = {"best": planted(0.9), "near": planted(0.7)}
    plant(monkeypatch, arms)
    one = summary_of(race_of(folder / "one", arms), 4)["arms"]["near"]["against_leader"]
    several = race_of(folder / "two", arms, seeds=[0, 1, 2])
    found = summary_of(several, 4)["arms"]["near"]["against_leader"]
    assert (one["test"]["seeds"], found["test"]["seeds"]) == (1, 3)
    assert found["test"]["difference"] == pytest.approx(one["test"]["difference"])
    assert len(several.outcomes[4]["best"]) == 3


def test_weights_are_deleted_but_the_leaders(folder, monkeypatch):
    arms = {"best": planted(0.9), "near": planted(0.8)}
    for arm in arms.values():
        work = arm.work

        def with_run(self, job, work=work):
            (job.folder / "run").mkdir(parents=True)
            (job.folder / "run" / "recipe.yaml").write_text("task: x")
            return work(self, job)

        arm.work = with_run
    plant(monkeypatch, arms)
    race_of(folder, arms)
    cell = folder / "compared" / "cells" / "n8-seed0"
    assert (cell / "best" / "run").is_dir()
    assert not (cell / "near" / "run").exists()
    assert (cell / "near" / "recipe.yaml").read_text() == "task: x"
