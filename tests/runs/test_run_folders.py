"""What a run folder keeps of what is finished, and what a changed recipe may replace in it."""

import json
import shutil
from pathlib import Path

import pytest

from tests.runs.test_run import digest

KEPT = ("--set", "train.keep_checkpoints=true")
ANOTHER = ("--set", "student.layers.keep=3")


def checkpoints(folder):
    """Names of what a training could go on from."""
    names = ("last", "previous", "best.safetensors")
    return {path.name for path in Path(folder).glob("arms/*/*") if path.name in names}


def on(command, *more):
    return (*command.split(), "recipe.yaml", "--run-dir", "out", *more)


# Checkpoints -------------------------------------------------------------------------------------


def test_a_finished_training_keeps_its_student_and_no_optimiser(workshop):
    workshop.finished("out")
    assert checkpoints("out") == set()
    result = workshop(*on("train"))
    assert "Nothing to do" in result.output
    assert "All is well" in workshop("verify", "out").output


def test_checkpoints_are_kept_where_the_recipe_says_so_and_change_nothing_else(workshop):
    workshop.finished("out", "train", *KEPT)
    workshop.finished("without")
    assert checkpoints("out") == {"last", "best.safetensors"}
    for arm in ("distill", "finetune"):
        part = f"arms/{arm}/student"
        assert digest(f"out/{part}") == digest(f"without/{part}")
    assert "Nothing to do" in workshop(*on("train")).output  # it is no input of the stage


def test_a_kill_before_checkpoints_are_deleted_leaves_them_to_the_next_command(workshop):
    workshop.finished("out", "train", *KEPT)
    workshop(*on("run", "--set", "train.keep_checkpoints=false"))
    assert checkpoints("out") == set()


def test_an_arm_that_is_finished_loses_its_checkpoints_before_the_next_one_is(
    workshop, monkeypatch
):
    from distill.stages import train

    workshop.finished("out", "build")
    seen = []

    def trained(run, arm, inputs):
        seen.append(checkpoints("out"))
        was(run, arm, inputs)

    was = train._train_arm
    monkeypatch.setattr(train, "_train_arm", trained)
    workshop(*on("train"))
    assert seen == [set(), set()]


# Another recipe ----------------------------------------------------------------------------------


def test_another_run_in_the_folder_is_refused_and_writes_nothing(workshop):
    workshop.finished("out")
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    for command in ("run", "build", "train", "doctor"):
        result = workshop(*on(command, *ANOTHER), ok=False)
        assert result.exit_code == 1
        assert "Error: out holds trained models (arms/distill ...) of another run" in result.output
        assert "differs in `student.layers.keep` (2, now 3). Choose another folder" in result.output
        assert "--overwrite" in result.output
    after = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    log = Path("out/run.log")
    before.pop(log), after.pop(log)
    assert after == before
    assert (
        "`distill run` will refuse: out holds trained models"
        in workshop(*on("plan", *ANOTHER)).output
    )


def test_another_run_may_replace_the_first_where_that_is_asked_for(workshop):
    workshop.finished("out")
    result = workshop(*on("build", *ANOTHER, "--overwrite"))
    assert "build: finished before, and made again: the recipe has changed in" in result.output
    assert json.loads(Path("out/student/config.json").read_text())["num_hidden_layers"] == 3
    workshop(*on("build", *ANOTHER))


def test_a_folder_whose_recipe_is_gone_is_not_taken_over(workshop):
    workshop.finished("out")
    Path("out/recipe.yaml").unlink()
    result = workshop(*on("train", "--set", "train.lr=3e-3"), ok=False)
    assert result.exit_code == 1
    assert "which recipe made them cannot be known: There is no out/recipe.yaml." in result.output


def test_a_changed_training_goes_on_and_says_what_it_makes_again(workshop):
    workshop.finished("out")
    result = workshop(*on("train", "--set", "train.lr=3e-3", "--quiet"))
    assert result.output == (
        "train: finished before, and made again: the recipe has changed in `train.lr` (0.001, now "
        "0.003)\n"
    )


def test_a_stage_whose_files_changed_is_named_without_keys(workshop):
    workshop.finished("out", "build")
    with Path("text.jsonl").open("a") as file:
        file.write(json.dumps({"text": "light falls on water"}) + "\n")
    result = workshop(*on("build", "--quiet"))
    assert "build: finished before, and made again: files or packages" in result.output


def test_before_anything_is_trained_the_recipe_may_change_in_all(workshop):
    workshop.finished("out", "build")
    result = workshop(*on("build", *ANOTHER))
    assert "build: finished before, and made again" in result.output


@pytest.mark.parametrize("change", ["export.artifacts=[bf16, nf4]", "evaluate.tokens=100"])
def test_changes_of_later_stages_name_none_that_stays(workshop, change):
    workshop.finished("out")
    result = workshop(*on("train", "--set", change))
    assert "Nothing to do" in result.output
    assert "made again" not in result.output


def test_a_stopped_training_of_another_run_is_not_thrown_away(workshop):
    workshop.finished("out", "build")
    shutil.copytree("out/student", "out/arms/distill/last")
    result = workshop(*on("train", *ANOTHER), ok=False)
    assert result.exit_code == 1
    assert "holds trained models (arms/distill ...) of another run" in result.output
