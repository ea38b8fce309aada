"""What a run folder keeps of what is finished."""

from pathlib import Path

from tests.runs.test_run import digest

KEPT = ("--set", "train.keep_checkpoints=true")


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
