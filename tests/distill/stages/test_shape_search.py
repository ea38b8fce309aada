"""`student.target` in runs: what is searched, refused, planned, shown and built."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from distill import pipeline
from distill.planning import estimate
from distill.run.context import Run
from distill.run.load import load_recipe
from students.pruning import cost_model
from students.pruning.architectures import sizes_of

TARGET = (
    "--set", "student={from: teacher, target: {parameters: 70%, candidates: 5, tokens: 600}, "
    "calibration_tokens: 600}",
)  # fmt: skip


def test_a_target_is_searched_built_and_learned_from(workshop):
    hidden = ("--set", "train.objective=[{loss: forward_kl}, {loss: hidden_mse}]")
    keep = ("--set", "cache.hidden={layers: [2, 4]}")
    assumed = Run(load_recipe(Path("recipe.yaml"), [TARGET[1]]), Path("out")).student_config
    workshop.upto_train("out", *TARGET, *hidden, *keep)
    pruning = json.loads(Path("out/student/pruning.json").read_text())
    teacher = AutoModelForCausalLM.from_pretrained("teacher")
    student = AutoModelForCausalLM.from_pretrained("out/arms/distill/student")
    counts = [sum(p.numel() for p in model.parameters()) for model in (student, teacher)]
    assert counts[0] <= 0.7 * counts[1] <= pruning["limit"] + 1
    assert pruning["by"] == "search"
    assert pruning["target"]["parameters"] == 0.7
    candidates = pruning["candidates"]
    assert len(candidates) == 5
    assert candidates[0]["divergence"] == min(one["divergence"] for one in candidates)
    sizes = sizes_of(student.config)
    assert candidates[0]["sizes"] == vars(sizes)
    assert candidates[0]["parameters"] == counts[0]
    assert len(pruning["kept"]) == sizes.blocks
    assert sizes_of(assumed).blocks <= 4  # a shape is known for the plan before
    log = Path("out/run.log").read_text()
    assert "KL expected" in log
    assert "chosen" in log
    again = workshop("build", "recipe.yaml", "--run-dir", "out", *TARGET, *hidden, *keep)
    assert "Nothing to do" in again.output
    run = Run(load_recipe(Path("recipe.yaml"), [TARGET[1]]), Path("out"))
    assert sizes_of(run.student_config) == sizes


class Another:
    """A process that is not the first: the first builds while it waits."""

    is_main_process = False

    def wait_for_everyone(self):
        shutil.copytree("built/student", "out/student")


def test_every_process_learns_which_shape_was_found(workshop, monkeypatch):
    monkeypatch.setattr(cost_model, "_step_seconds", clock)
    section = "student={target: {latency: 4s, candidates: 2, tokens: 400}, calibration_tokens: 400}"
    workshop("build", "recipe.yaml", "--run-dir", "built", "--set", section)
    found = sizes_of(AutoModelForCausalLM.from_pretrained("built/student").config)
    run = Run(load_recipe(Path("recipe.yaml"), [section]), Path("out"))
    assert run.student_depth == 4 > found.blocks  # how long anything takes is not known yet
    monkeypatch.setattr(pipeline, "is_alone", lambda: False)
    monkeypatch.setattr(pipeline, "process_state", Another)
    monkeypatch.setattr(pipeline, "_all_see", lambda ask: ask())
    pipeline.run_stages(run, ["build"])
    assert sizes_of(run.student_config) == found
    assert run.layer_map().kept == json.loads(Path("out/student/pruning.json").read_text())["kept"]


def test_finalists_are_healed_before_the_choice(workshop):
    more = "target: {parameters: 70%, candidates: 5, tokens: 600, finalists: 1, heal_steps: 3}"
    section = f"student={{from: teacher, {more}, refit: true, calibration_tokens: 600}}"
    workshop("build", "recipe.yaml", "--run-dir", "out", "--set", section)
    pruning = json.loads(Path("out/student/pruning.json").read_text())
    candidates = pruning["candidates"]
    healed = [one for one in candidates if one["healed"] is not None]
    assert candidates[: len(healed)] == healed == sorted(healed, key=lambda one: one["healed"])
    assert 2 <= len(healed) <= 3  # the best, blocks alone, neurons alone
    assert healed[0]["healed"] < healed[0]["divergence"]
    assert min(candidates, key=lambda one: one["divergence"]) in healed
    plain = [one for one in healed if one["sizes"]["neurons"] == 128]
    assert plain
    assert any(one["sizes"]["blocks"] < 4 for one in plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="models lie on a GPU where there is one")
@pytest.mark.parametrize(
    "cuts",
    [
        "target: {parameters: 70%, candidates: 3, tokens: 600, heal_steps: 2}, refit: true",
        "layers: {keep: [0, 1, 3]}, heads: {keep: 2}, refit: true",
        "layers: {keep: [0, 1, 3]}, hidden: {keep: 48, by: pca}, refit: true",
    ],
    ids=["searched", "refitted", "rotated"],
)
def test_a_student_is_cut_on_a_gpu(workshop, cuts):
    section = f"student={{from: teacher, {cuts}, calibration_tokens: 600}}"
    workshop("build", "recipe.yaml", "--run-dir", "out", "--set", section)
    pruning = json.loads(Path("out/student/pruning.json").read_text())
    assert pruning["refit"] is True
    student = AutoModelForCausalLM.from_pretrained("out/student")
    assert student.config.num_hidden_layers == len(pruning["kept"])


def test_a_dry_run_shows_the_shapes_and_writes_nothing(workshop):
    before = sorted(Path().rglob("*"))
    shown = workshop("build", "recipe.yaml", "--run-dir", "out", "--dry-run", *TARGET).output
    assert sorted(Path().rglob("*")) == before
    (head, chosen, *others) = [line.split() for line in shown.splitlines() if line.strip()][-6:]
    assert head[:5] == ["blocks", "heads", "neurons", "channels", "parameters"]
    assert chosen[0] == "chosen"
    assert len(others) == 4
    workshop("build", "recipe.yaml", "--run-dir", "out", *TARGET)
    pruning = json.loads(Path("out/student/pruning.json").read_text())
    assert str(pruning["candidates"][0]["sizes"]["neurons"]) == chosen[3]


def clock(_step, model):
    """A machine on which time goes by blocks."""
    return 1.0 + len(model.model.layers)


REMOVALS = [
    ("parameters: 80%, axes: [heads, feed_forward]", 0),
    ("parameters: 85%, axes: [layers]", 1),
    ("latency: 80%, axes: [feed_forward, hidden, layers]", 1),
    ("latency: 60%, axes: [feed_forward, hidden, layers]", 2),
]


@pytest.mark.parametrize(("target", "removed"), REMOVALS)
def test_no_more_blocks_are_put_into_an_order_than_may_go(workshop, monkeypatch, target, removed):
    monkeypatch.setattr(cost_model, "_step_seconds", clock)
    section = (
        f"student={{target: {{{target}, candidates: 1, tokens: 400}}, calibration_tokens: 400}}"
    )
    workshop("build", "recipe.yaml", "--run-dir", "out", "--set", section)
    assert Path("out/run.log").read_text().count("removed, calibration loss") == removed


def test_a_plan_counts_the_blocks_that_a_search_removes(workshop, monkeypatch):
    monkeypatch.setattr(estimate, "flops_per_second", lambda dtype: 1e6)
    seconds = []
    for target in (
        "parameters: 80%, axes: [heads, feed_forward, hidden]",
        "parameters: 80%, axes: [heads, feed_forward, layers]",
        "latency: 60%, axes: [heads, feed_forward, layers]",
    ):
        section = f"student={{target: {{{target}}}}}"
        run = Run(load_recipe(Path("recipe.yaml"), [section]), Path("out"))
        (build,) = (line for line in estimate.estimates(run) if line.stage == "build")
        seconds.append(build.seconds)
    assert seconds == sorted(set(seconds))


@pytest.mark.parametrize("target", ["bytes: 60%, form: nf4", "latency: 80%"])
def test_other_targets_are_kept(workshop, monkeypatch, target):
    monkeypatch.setattr(cost_model, "_step_seconds", clock)
    section = (
        f"student={{target: {{{target}, candidates: 3, tokens: 400}}, calibration_tokens: 400}}"
    )
    workshop("build", "recipe.yaml", "--run-dir", "out", "--set", section)
    pruning = json.loads(Path("out/student/pruning.json").read_text())
    assert all(one["cost"] <= 1.01 * pruning["limit"] for one in pruning["candidates"])
    assert (pruning["latency_of_teacher"] is None) == ("bytes" in target)


def test_a_latency_out_of_reach_is_an_error(workshop, monkeypatch):
    monkeypatch.setattr(cost_model, "_step_seconds", clock)
    section = "student={target: {latency: 10%, candidates: 1, tokens: 400}}"
    result = workshop("build", "recipe.yaml", "--run-dir", "out", "--set", section, ok=False)
    assert result.exit_code == 1
    assert "`student.target.latency: 10%` cannot be met: the quickest of" in result.output
    assert "takes 40% of the teacher's time here" in result.output  # one block of four


SEARCH = "student={target: {parameters: 70%, candidates: 2, axes: [layers], tokens: 400}}"


@pytest.mark.parametrize(
    ("trainable", "says", "built"),
    [
        ("layers:0", "", True),  # whatever the search finds has it
        ("layers:3", "`train.trainable: layers:3`", True),  # only the whole teacher has it
        ("layers:9", "`train.trainable: layers:9`", False),  # not even that
    ],
)
def test_what_learns_is_checked_in_the_shape_that_was_found(workshop, trainable, says, built):
    more = ("--set", SEARCH, "--set", f"train.trainable={trainable}")
    result = workshop("build", "recipe.yaml", "--run-dir", "out", *more, ok=not says)
    assert says in result.output
    assert Path("out/student").exists() == built
    later = workshop("train", "recipe.yaml", "--run-dir", "out", *more, ok=False)
    assert (says or "`train` needs `cache`") in later.output


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["--dry-run"], "give `student.target`, for example `student.target.parameters: 60%`"),
        (["--set", "student={target: {parameters: 1%}}"], "cannot be met: the smallest student"),
        (
            ["--set", "student={target: {parameters: 60}}", "--set", "student.from=teacher"],
            "`student.target.parameters: 60` cannot be met: the smallest student",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_before_work(workshop, settings, says):
    result = workshop("build", "recipe.yaml", "--run-dir", "out", *settings, ok=False)
    assert result.exit_code == 1
    assert says in result.output
    assert not Path("out/data").exists()
