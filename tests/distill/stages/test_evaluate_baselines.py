"""A baseline that cannot be made leaves its reason, and takes nothing else with it."""

import json
from types import SimpleNamespace

import pytest

from attar.errors import CacheError, ModelError, RecipeError
from distill.evaluate_models import evaluation_config
from distill.evaluation.job import MeasureJob
from distill.report.selection import Tolerance, failed_lines
from distill.report.tables import model_table
from distill.stages.evaluate import baselines_of, measure_baseline, measured_models
from distill.stages.report import judged
from distill.tasks.causal_lm.task import CausalLM
from distill.tasks.sequence_classification.task import SequenceClassification
from distill.training.train_config import TrainConfig
from teachers.load import TeacherConfig


def run_of(tmp_path, task, baselines=True):
    """What the two stages ask of a run without artifacts."""
    teacher = TeacherConfig(model="teacher")
    recipe = SimpleNamespace(
        teacher=teacher, seed=0, specialize=None, cache=SimpleNamespace(batch_tokens=64),
        evaluate=SimpleNamespace(baselines=baselines), train=TrainConfig.model_validate({}),
        export=SimpleNamespace(tolerance=Tolerance()),
    )  # fmt: skip
    return SimpleNamespace(
        recipe=recipe, task=task, teacher=teacher, classes=["good", "bad"], artifacts=[],
        folder=SimpleNamespace(features=tmp_path / "features"), training_examples=lambda: [],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("empty vocabulary;\n perhaps the texts hold no words"), "the texts hold no"),
        (ModelError("all training texts are of one class."), "of one class"),
        (CacheError("The features are not finite."), "not finite"),
    ],
)
def test_what_cannot_be_made_leaves_its_reason(tmp_path, monkeypatch, error, said):
    task = SequenceClassification()
    run, out = run_of(tmp_path, task), tmp_path / "tf-idf.json"
    out.with_suffix(".npz").write_bytes(b"of an earlier evaluation")

    def refuse(self, texts):
        raise error

    monkeypatch.setattr(task.metrics.baselines["tf-idf"], "fit", refuse)
    job = MeasureJob("tf-idf", "tf-idf", 9, "held_out.arrow", str(out), {}, task.metrics)
    assert said in measure_baseline(run, job)["failed"]
    assert not out.with_suffix(".npz").exists()
    numbers = json.loads(out.read_text())
    assert said in numbers["failed"]
    assert "\n" not in numbers["failed"]
    models = {"tf-idf": numbers, "features": numbers}
    artifacts, baselines = judged(run, SimpleNamespace(models=models))
    assert artifacts == {}
    assert baselines["tf-idf"]["fit"]["ships"] is False
    report = {"artifacts": {}, "baselines": baselines, "teacher": {}, "arms": {}}
    assert failed_lines(report)[1] == f"baseline tf-idf failed: {numbers['failed']}"
    assert model_table(report, task.report.columns)[3][:2] == ["baseline tf-idf", "failed"]


def test_only_tasks_that_have_baselines_measure_them(tmp_path):
    run = run_of(tmp_path, SequenceClassification())
    assert measured_models(run)[-2:] == baselines_of(run) == ["features", "tf-idf"]
    assert baselines_of(run_of(tmp_path, SequenceClassification(), baselines=False)) == []
    assert baselines_of(run_of(tmp_path, CausalLM())) == []


def test_models_without_a_recipe_have_no_baselines_to_leave_out():
    with pytest.raises(RecipeError, match=r"`--set evaluate.baselines` has no effect"):
        evaluation_config(("test.jsonl",), {"evaluate": {"baselines": False}})
