"""A recipe that cuts heads, neurons and channels: planned, built, trained from its own record."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from distill.calibration import calibration_rows
from distill.objective import Learner
from distill.plan import shape_of
from distill.recipe import load_recipe
from distill.run import Run
from distill.terms import TERM_MODELS
from students.families import sizes_of

CUTS = (
    "--set", "student.heads.keep=2",
    "--set", "student.feed_forward.keep=0.5",
    "--set", "student.hidden.keep=48",
    "--set", "student.refit=true",
    "--set", "student.calibration_tokens=600",
)  # fmt: skip


def test_a_narrower_student_is_built_and_learns(workshop):
    workshop.upto_train("out", *CUTS)
    surgery = json.loads(Path("out/student/surgery.json").read_text())
    student = AutoModelForCausalLM.from_pretrained("out/arms/distill/student")
    sizes = sizes_of(student.config)
    assert (sizes.blocks, sizes.heads, sizes.groups, sizes.neurons, sizes.channels) == (
        2, 2, 1, 64, 48,
    )  # fmt: skip
    assert surgery["teacher"] == "teacher"
    assert surgery["layers"] == [*surgery["kept"], 4]
    assert [len(groups) for groups in surgery["groups"]] == [1, 1]
    assert len(surgery["channels"]) == 48
    assert surgery["refit"] is True
    record = json.loads(Path("out/records/build.json").read_text())
    assert record["notes"]["kept"] == surgery["kept"]


def test_the_shape_is_known_before_the_cut(workshop):
    settings = [one for one in CUTS if one != "--set"]
    run = Run(load_recipe(Path("recipe.yaml"), settings), Path("out"))
    workshop("build", "recipe.yaml", "--run-dir", "out", *CUTS)
    student = AutoModelForCausalLM.from_pretrained("out/student")
    assert sizes_of(run.student_config) == sizes_of(student.config)
    counted = sum(parameter.numel() for parameter in student.parameters())
    assert shape_of(run.student_config, run.student_depth).total == counted
    assert "parameters" in workshop("plan", "recipe.yaml", *CUTS).output


def test_projectors_start_as_the_channels_that_were_kept(make_model):
    term = TERM_MODELS["hidden_mse"].model_validate({"loss": "hidden_mse"})
    student, kept = make_model(0, width=8), [0, 2, 3, 5, 7, 8, 10, 11]
    learner = Learner(
        student, [term], vocabulary=97, dtype=torch.float32, chunk=8,
        pairs={0: [(1, 1)]}, teacher_width=12, channel_map=torch.eye(12)[:, kept],
    )  # fmt: skip
    (projector,) = learner.projectors.values()
    hidden = torch.randn(3, 8)
    with torch.no_grad():
        assert torch.equal(projector(hidden)[:, kept], hidden)
        assert not projector(hidden)[:, [1, 4, 6, 9]].any()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("student.heads.keep=3", "`student.heads.keep` is 3"),
        ("student.hidden.keep=50", "keep 48 or 52 channels"),
        ("student.layers.keep=9", "`student.layers.keep` is 9"),
        ("student.feed_forward.keep=1000", "`student.feed_forward.keep` is 1000"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_work(workshop, setting, says):
    result = workshop("run", "recipe.yaml", "--run-dir", "out", "--set", setting, ok=False)
    assert result.exit_code == 1
    assert says in result.output
    assert not Path("out/data").exists()


class Lengths:
    """Examples of given lengths, each of its own id."""

    def __init__(self, *lengths):
        self.lengths = torch.tensor(lengths).numpy()

    def __iter__(self):
        for i, length in enumerate(self.lengths):
            yield type("Example", (), {"input_ids": torch.full((int(length),), i).numpy()})


def test_rows_are_as_long_as_most_tokens_need():
    assert calibration_rows(Lengths(3, 300, 280, 290), 512).shape == (2, 256)
    assert calibration_rows(Lengths(*[10] * 9, 40), 1000).shape == (10, 10)
    assert calibration_rows(Lengths(*[10] * 9, 40), 50).shape == (5, 10)
