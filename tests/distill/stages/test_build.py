"""A recipe that cuts heads, neurons and channels: planned, built, trained from its own record."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from distill.data.calibration import calibration_rows
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS
from distill.planning.model_cost import model_cost
from distill.run.context import Run
from distill.run.load import load_recipe
from students.pruning.architectures import sizes_of

CUTS = (
    "--set", "student.heads.keep=2",
    "--set", "student.feed_forward.keep=0.5",
    "--set", "student.hidden.keep=48",
    "--set", "student.refit=true",
    "--set", "student.calibration_tokens=600",
)  # fmt: skip


def test_a_narrower_student_is_built_and_learns(workshop):
    workshop.upto_train("out", *CUTS)
    pruning = json.loads(Path("out/student/pruning.json").read_text())
    student = AutoModelForCausalLM.from_pretrained("out/arms/distill/student")
    sizes = sizes_of(student.config)
    assert (sizes.blocks, sizes.heads, sizes.groups, sizes.neurons, sizes.channels) == (
        2, 2, 1, 64, 48,
    )  # fmt: skip
    assert pruning["teacher"] == "teacher"
    assert pruning["layers"] == [*pruning["kept"], 4]
    assert [len(groups) for groups in pruning["groups"]] == [1, 1]
    assert len(pruning["channels"]) == 48
    assert pruning["refit"] is True
    record = json.loads(Path("out/records/build.json").read_text())
    assert record["notes"]["kept"] == pruning["kept"]


def test_the_shape_is_known_before_the_cut(workshop):
    settings = [one for one in CUTS if one != "--set"]
    run = Run(load_recipe(Path("recipe.yaml"), settings), Path("out"))
    workshop("build", "recipe.yaml", "--run-dir", "out", *CUTS)
    student = AutoModelForCausalLM.from_pretrained("out/student")
    assert sizes_of(run.student_config) == sizes_of(student.config)
    counted = sum(parameter.numel() for parameter in student.parameters())
    assert model_cost(run.student_config, run.task.auto).total == counted
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
        (
            "student.layers={keep: [3, 0]}",
            "is [3, 0]; name each block once, in",
        ),
        (
            "student.layers={keep: [0, 0, 3]}",
            "is [0, 0, 3]; name each block once, in",
        ),
        ("student.feed_forward.keep=1000", "`student.feed_forward.keep` is 1000"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_work(workshop, setting, says):
    result = workshop("run", "recipe.yaml", "--run-dir", "out", "--set", setting, ok=False)
    assert result.exit_code == 1
    assert says in result.output
    assert not Path("out/data").exists()


def test_a_little_text_is_enough_to_heal_on(workshop):
    section = "student={target: {parameters: 70%, candidates: 2, heal_steps: 2, tokens: 20}}"
    workshop("build", "recipe.yaml", "--run-dir", "out", "--set", section)
    pruning = json.loads(Path("out/student/pruning.json").read_text())
    assert pruning["candidates"][0]["healed"] is not None


class Lengths:
    """Examples of given lengths, each of its own id."""

    def __init__(self, *lengths):
        self.lengths = torch.tensor(lengths).numpy()

    def __len__(self):
        return len(self.lengths)

    def preferred(self):
        return self

    def __getitem__(self, i):
        return type("Example", (), {"input_ids": torch.full((self.lengths[i],), i).numpy()})


def test_rows_are_as_long_as_most_tokens_need():
    assert calibration_rows(Lengths(3, 300, 280, 290), 512).shape == (2, 256)
    assert calibration_rows(Lengths(*[10] * 9, 40), 1000).shape == (10, 10)
    assert calibration_rows(Lengths(*[10] * 9, 40), 50).shape == (5, 10)
    first_BT = calibration_rows(Lengths(*[10] * 40), 50)
    places = sorted(first_BT[:, 0].tolist())
    assert places[0] < 10
    assert places[-1] >= 30  # from all over the data
    assert max(b - a for a, b in pairwise(places)) <= 16


# Cut, healed, and cut again ----------------------------------------------------------------------


def test_a_healed_student_is_cut_again_and_knows_its_teacher(workshop):
    three = ("--set", "student={from: teacher, layers: {keep: [0, 1, 3]}}")
    workshop.upto_train("first", *three)
    healed = "first/arms/distill/student"
    again = ("--set", f"student={{from: {healed}, layers: {{keep: [0, 2]}}, heads: {{keep: 2}}}}")
    workshop.upto_train("second", *again)
    pruning = json.loads(Path("second/student/pruning.json").read_text())
    assert (pruning["teacher"], pruning["model"]) == ("teacher", healed)
    assert (pruning["kept"], pruning["layers"], pruning["teacher_layers"]) == ([0, 3], [0, 3, 4], 4)
    student = AutoModelForCausalLM.from_pretrained("second/student")
    learned = AutoModelForCausalLM.from_pretrained(healed)
    assert torch.equal(
        student.model.layers[1].mlp.up_proj.weight, learned.model.layers[2].mlp.up_proj.weight
    )
    run = Run(load_recipe(Path("recipe.yaml"), [again[1]]), Path("second"))
    assert run.layer_map().kept == [0, 3]
    shutil.rmtree("first")
    result = workshop("build", "recipe.yaml", "--run-dir", "third", *again, ok=False)
    assert result.exit_code == 1
    assert healed in result.output


def test_another_model_of_the_same_vocabulary_can_be_cut(workshop, make_model, tokenizer):
    other = make_model(3, width=32, layers=3, vocabulary=320)
    other.save_pretrained("other")
    tokenizer.save_pretrained("other")
    section = "student={from: other, target: {parameters: 80%, candidates: 2, tokens: 400}}"
    workshop("build", "recipe.yaml", "--run-dir", "out", "--set", section,
             "--set", "train.objective=[{loss: forward_kl}]")  # fmt: skip
    pruning = json.loads(Path("out/student/pruning.json").read_text())
    assert (pruning["teacher"], pruning["model"]) == (None, "other")
    run = Run(load_recipe(Path("recipe.yaml"), [section]), Path("out"))
    assert run.layer_map().kept is None
    assert run.channel_map() is None
    keep = "student={from: other, layers: {keep: 9}}"
    result = workshop("build", "recipe.yaml", "--run-dir", "out", "--set", keep, ok=False)
    assert "`student.layers.keep` is 9; other has blocks 0 to 2" in result.output


# Fewer ids -------------------------------------------------------------------------------------


def test_a_vocabulary_is_cut_by_command_and_the_run_goes_on_with_it(workshop):
    said = workshop("vocabulary", "teacher", "--data", "text.jsonl", "--out", "smaller").output
    before = AutoModelForCausalLM.from_pretrained("teacher")
    after = AutoModelForCausalLM.from_pretrained("smaller")
    assert after.config.vocab_size < before.config.vocab_size == 320
    assert f"{after.config.vocab_size} of 288 ids" in said
    assert "100.00% of the data's tokens" in said
    workshop("build", "recipe.yaml", "--run-dir", "out", "--set", "teacher.model=smaller")
    student = AutoModelForCausalLM.from_pretrained("out/student")
    assert student.config.vocab_size == after.config.vocab_size
    fewer = workshop("vocabulary", "teacher", "--data", "text.jsonl", "--out", "few", "--most", "9")
    assert "100.00%" not in fewer.output


def test_a_tokenizer_that_cannot_be_cut_is_refused_before_its_corpus_is_read(workshop):
    made = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained("teacher")
    Path("text.jsonl").write_text('{"turns": 1}\n')  # nothing that could be tokenised
    more = ("teacher", "--data", "text.jsonl", "--out", "new")
    result = workshop("vocabulary", *more, ok=False)
    assert "Unigram; only BPE and WordPiece vocabularies can be cut" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "new"], "There is no text to read: add `--data FILE`."),
        (["--out", "teacher", "--data", "text.jsonl"], "teacher exists; name a folder"),
        (["--out", "new", "--data", "no.jsonl"], "no.jsonl"),
    ],
)
def test_a_vocabulary_that_cannot_be_cut_is_refused(workshop, arguments, says):
    result = workshop("vocabulary", "teacher", *arguments, ok=False)
    assert result.exit_code == 1
    assert says in result.output
    assert not Path("new").exists()
