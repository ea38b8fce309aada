"""What a verdict says and warns of."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from distill.objective.terms import TERM_MODELS
from distill.report.measurements import Measurements
from distill.report.paired_difference import at_counts
from distill.report.selection import Tolerance
from distill.stages.report import measurements
from distill.tasks.causal_lm.metrics import CausalLMMetrics
from distill.tasks.causal_lm.report import CausalLMReport
from distill.training.train_config import TrainConfig

KL = TERM_MODELS["forward_kl"]()
PART = {"examples": 2, "tokens": 9}
STATS = {"validation": PART, "held_out": PART, "validation_from": "documents"}


@pytest.fixture
def measure_run(tmp_path):
    """`measure_run(models, base=..., data=..., merged=...)`: what a run without a fine-tuned arm
    measured, specialised on a base.
    """

    def make(models, base="nf4", data=None, merged="merged", adapt=None, source="teacher"):
        (tmp_path / "evaluation").mkdir()
        for name, numbers in models.items():
            (tmp_path / "evaluation" / f"{name}.json").write_text(json.dumps(numbers))
        recipe = SimpleNamespace(
            specialize=SimpleNamespace(base=base, data=data, objective=[]),
            export=SimpleNamespace(tolerance=Tolerance(perplexity=0.02)),
            train=TrainConfig(objective=[KL], arms=[]),
            seed=0,
            teacher=SimpleNamespace(adapt=adapt),
            student=SimpleNamespace(from_=source),
            evaluate=SimpleNamespace(bootstrap=100, baselines=True),
        )
        (tmp_path / "stats.json").write_text(json.dumps(STATS))
        folder = SimpleNamespace(evaluation=tmp_path / "evaluation", data=lambda _: tmp_path)
        task = SimpleNamespace(metrics=CausalLMMetrics())
        run = SimpleNamespace(recipe=recipe, merged_student=merged, folder=folder, task=task)
        return measurements(run, {})

    return make


def models_after(perplexity):
    return {
        "teacher": {"nll": 2.0}, "init": {"nll": 3.0}, "distill": {"perplexity": 20.0},
        "specialized": {"perplexity": perplexity},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("adapt", "source", "teacher"),
    [
        ({"epochs": 3}, "teacher", "the fine-tuned teacher"),
        (None, "teacher", "the teacher"),
        ({"epochs": 3}, "raw", None),
    ],
)
def test_a_control_that_was_cut_out_of_the_teacher_says_so(measure_run, adapt, source, teacher):
    measured = measure_run(models_after(20.0), adapt=adapt, source=source)
    arms = {arm: {"tokens": 1000} for arm in ("distill", "finetune")}
    said = at_counts(replace(measured, costs={"arms": arms}), "texts")
    start = f" and from the same start, which was made of {teacher}" if teacher else ""
    assert said == f"at the same 1,000 texts{start}"


def test_what_corrects_its_base_is_not_for_full_precision(measure_run):
    (said,) = CausalLMReport().verdict(measure_run(models_after(20.5)))["warnings"]
    assert said.startswith("What was specialised corrects the nf4 base")
    assert "(perplexity 20.50 against 20.00)" in said


@pytest.mark.parametrize(
    ("run", "after"),
    [
        ({}, 20.3),  # within the tolerance
        ({"base": "none"}, 25.0),
        ({"data": SimpleNamespace(section="specialize.data")}, 25.0),  # of another text
        ({"merged": None}, 25.0),  # nothing to measure in full precision
    ],
)
def test_else_nothing_is_said(measure_run, run, after):
    assert CausalLMReport().verdict(measure_run(models_after(after), **run))["warnings"] == []


@pytest.mark.parametrize(
    ("stages", "mend"),
    [({}, "adapt it first (`teacher.adapt`)."), ({"adapt-teacher": {}}, "adapt it longer (")],
)
def test_a_teacher_that_knows_no_more_is_to_be_adapted_or_adapted_longer(tmp_path, stages, mend):
    arms = {arm: {"tokens": 9, "seconds": 1.0} for arm in ("distill", "finetune")}
    numbers = {"nll": 3.0, "perplexity": 20.0, "kl_to_teacher": 0.1, "accuracy": 0.5}
    values = np.zeros(40)
    for name in arms:
        right = {"correct": values > 0, "agree": values > 0}
        np.savez(tmp_path / f"{name}.npz", nll=values, kl=values, document=np.arange(40), **right)
    measured = Measurements(
        models=dict.fromkeys((*arms, "teacher"), numbers) | {"init": {**numbers, "nll": 4.0}},
        folder=tmp_path, resamples=100, controls=["finetune"],
        costs={"stages": stages, "arms": arms}, tolerance=Tolerance(),
    )  # fmt: skip
    (said,) = CausalLMReport().verdict(measured)["warnings"]
    assert f"can hold the student back: {mend}" in said


def test_what_learned_without_a_teacher_is_compared_with_its_start(tmp_path):
    before, after = np.full(40, 3.0), np.linspace(2.0, 2.4, 40)
    for name, nll in (("init", before), ("distill", after)):
        np.savez(tmp_path / f"{name}.npz", nll=nll, document=np.arange(40))

    def numbers(nll, share, low, high):
        task = {"accuracy": share, "accuracy_interval": [low, high], "examples": 100}
        return {"nll": nll, "tasks": {"facts": task}}

    models = {"teacher": {"nll": 2.9}, "init": numbers(3.0, 0.25, 0.17, 0.34),
              "distill": numbers(2.2, 0.5, 0.4, 0.6)}  # fmt: skip
    measured = Measurements(
        models=models, folder=tmp_path, resamples=100, controls=[], costs={},
        tolerance=Tolerance(), reads_teacher=False,
    )  # fmt: skip
    verdict = CausalLMReport().verdict(measured)
    assert verdict["helped"] is None
    assert verdict["since_start"]["nll"]["difference"] == pytest.approx(-0.8)
    assert verdict["since_start"]["tasks"]["facts"]["interval"][0] > 0
    assert "nll 2.200 against 3.000 (-0.800, 95% interval" in verdict["sentence"]
    assert "accuracy on facts 50.0% against 25.0% (+25.00 points" in verdict["sentence"]
    other = CausalLMReport().verdict(replace(measured, reads_teacher=True))
    assert "add `train.arms: [finetune]`" in other["sentence"]
