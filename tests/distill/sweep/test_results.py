"""sweep.json and sweep.html from what trials and finalists left."""

import json

from distill.run.load import check_recipe
from distill.sweep.grid import trials_of
from distill.sweep.results import write_results
from distill.sweep.state import Rung, TrialState, steps_at
from distill.sweep.tables import front_table, trial_table
from distill.tasks.causal_lm.report import CausalLMReport

RECIPE = {
    "data": {"train": "text.jsonl"},
    "teacher": {"model": "teacher<b>"},
    "student": {"from": "teacher", "layers": {"keep": 1}},
    "sweep": {"over": {"student.layers.keep": [1, 2, 3, 4]}, "rungs": [0.1, 1.0]},
}
PERPLEXITY = {1: 8.0, 2: 4.0, 3: 4.5, 4: 2.0}  # 3 is no better than the smaller 2


def numbers(keep, size, ships=True):
    found = {"perplexity": PERPLEXITY[keep], "nll": 1.0, "bytes": size, "parameters": size}
    fit = {"ships": ships, "reason": "worse", "perplexity_change": 0.01, "accuracy_lost": {}}
    return {**found, "runtime": "transformers", "fit": fit}


def finished(folder):
    """A sweep of four trials on disk: one that was left, two finalists, and one that failed."""
    recipe = check_recipe(RECIPE)
    trials = {trial.over["student.layers.keep"]: trial for trial in trials_of(recipe, {})}
    states, left_at = {}, {}
    for keep, trial in trials.items():
        state = states[trial.name] = TrialState(trial.name, trial.over, parameters=keep * 10**6)
        left_at[trial.name] = {1: 0, 2: None, 3: None, 4: None}[keep]
        state.reached(Rung(5, 50, 100, 1.0, 2.5))
        if keep > 1:
            state.reached(Rung(50, 50, 1000, 9.0, 2.0))
            artifacts = {"bf16": numbers(keep, keep * 10**6), "nf4": {"failed": "no room"}}
            (folder / "trials" / trial.name).mkdir(parents=True)
            file = folder / "trials" / trial.name / "report.json"
            file.write_text(json.dumps({"artifacts": artifacts}))
    states[trials[3].name].failed = "The disk is full."
    by_name = {trial.name: trial for trial in trials.values()}
    return write_results(recipe, folder, by_name, states, left_at)


def test_the_front_is_of_all_finalists_and_every_size_has_its_sentence(tmp_path):
    found = finished(tmp_path)
    assert found["advice"] == [
        "Without a limit on size: take keep 4, as bf16 (perplexity 2.00, 4.00 MB).",
        "Under 4.00 MB: take keep 2, as bf16 (perplexity 4.00, 2.00 MB).",
    ]
    assert json.loads((tmp_path / "sweep.json").read_text()) == found
    assert found["training"] == {"tokens": 3100, "whole": 4000, "share": 0.775}


def test_tables_show_what_became_of_every_trial(tmp_path):
    found = finished(tmp_path)
    trials = {row[0]: row[1:] for row in trial_table(found)[1:]}
    assert trials["keep 4"] == ["4", "2.5000", "2.0000", "1,000", "0", "finalist"]
    assert trials["keep 1"] == ["1", "2.5000", "", "100", "0", "left at 10%"]
    assert trials["keep 3"][-1] == "failed: The disk is full."
    rows = {row[0]: row[1:] for row in front_table(found, CausalLMReport.artifact_columns)[1:]}
    assert rows["keep 2, nf4"][0] == "failed"
    assert "keep 3, bf16" not in rows


def test_the_page_has_two_plots_and_no_markup_of_others(tmp_path):
    finished(tmp_path)
    page = (tmp_path / "sweep.html").read_text()
    assert page.count("<svg") == 2
    assert "teacher<b>" not in page
    assert "1 failed; the reason is in its row." in page


def test_a_rung_is_a_share_of_the_steps():
    assert [steps_at(share, 100) for share in (0.001, 0.11, 0.335, 1.0)] == [1, 11, 34, 100]
