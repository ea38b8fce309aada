"""A training that pauses at steps of its schedule ends as one that never did."""

import logging
from pathlib import Path

import pytest

from attar.errors import RecipeError, RunError
from distill.run.context import Run
from distill.run.load import load_recipe
from distill.trials.advance import advance, total_steps
from distill.trials.values import difference
from tests.helpers import classifying, embedding

ALONE = "train.arms=[]"


def opened(folder, *changes):
    return Run(load_recipe("recipe.yaml", (ALONE, *changes)), Path(folder))


def weights(folder):
    return Path(folder, "arms/distill/student/model.safetensors").read_bytes()


def test_rung_after_rung_equals_straight(workshop, caplog):
    total = total_steps(opened("rungs"))
    with caplog.at_level(logging.INFO, logger="distill"):
        first, last = [advance(opened("rungs"), step) for step in (3, total)]
    straight = advance(opened("straight"), total + 5)
    assert (first.step, first.total, last.step, straight.step) == (3, total, total, total)
    assert weights("rungs") == weights("straight")
    assert first.tokens < last.tokens == straight.tokens
    for name, values in straight.arrays.items():
        assert (values == last.arrays[name]).all(), name
    workshop("run", "recipe.yaml", "--run-dir", "rungs", "--set", ALONE)  # nothing is trained again
    assert weights("rungs") == weights("straight")
    log = Path("rungs/run.log").read_text()
    assert "distill: going on from step 3" in log
    assert "train: up to date" in log


def test_values_are_read_again_and_compared_paired(workshop):
    run = opened("out")
    before, after = advance(run, 2), advance(run, 6)
    again = advance(opened("out"), 2)  # though the training is beyond it
    assert again.mean == before.mean
    assert again.tokens == before.tokens
    assert (again.arrays["document"] == after.arrays["document"]).all()
    found = difference(after, before, 200)
    assert found["difference"] == pytest.approx(after.mean - before.mean)
    assert not list(Path("out/arms/distill").glob("paused*"))
    with pytest.raises(RunError, match="is at step 6 already and cannot pause at step 4"):
        advance(opened("out"), 4)
    advance(opened("out"), 10_000)
    with pytest.raises(RunError, match="is trained to the end and cannot pause at step 4"):
        advance(opened("out"), 4)


def test_classes_and_vectors_are_measured_by_their_own_numbers(whole_stages, tmp_path, monkeypatch):
    for module, name in ((classifying, "nll"), (embedding, "similarity_error")):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        module.fill_workshop()
        keys = {"max_steps": 6, "evaluate_every": 2, "arms": []}
        module.write_recipe(train=keys)
        before, after = (advance(opened("out"), step) for step in (0, 4))
        assert (before.name, before.tokens) == (name, 0)
        assert after.mean != before.mean
        assert before.arrays["document"].tolist() == after.arrays["document"].tolist()
    assert Path("out/arms/distill/values/teacher").is_dir()


# No steps ----------------------------------------------------------------------------------------


def test_a_student_that_learns_nothing_stays_as_it_was_built(workshop):
    lora = "{method: lora, rank: 2, max_steps: 2, batch_size: 4, precision: float32}"
    changes = ["train={max_steps: 0, arms: []}", "cache={}", f"specialize={lora}"]
    options = [word for change in changes for word in ("--set", change)]
    workshop("run", "recipe.yaml", "--run-dir", "out", *options)
    built, trained = (
        Path("out", name, "model.safetensors") for name in ("student", "arms/distill/student")
    )
    assert built.read_bytes() == trained.read_bytes()
    report = workshop.report("out")
    assert report["verdict"]["sentence"].startswith("The student was not trained")
    assert report["training"]["distill"]["steps"] == 0 < report["training"]["specialized"]["steps"]
    assert not Path("out/cache").exists()  # nothing learns from the teacher
    said = workshop("plan", "recipe.yaml", "--run-dir", "new", *options).output
    assert "no steps: the student stays as it was built" in said


@pytest.mark.parametrize("keys", ["", ", arms: [], reinitialize: head"])
def test_keys_of_a_training_without_steps_are_refused(workshop, keys):
    with pytest.raises(RecipeError, match=r"write `arms: \[\]`|`reinitialize` has no effect"):
        load_recipe("recipe.yaml", (f"train={{max_steps: 0{keys}}}",))
