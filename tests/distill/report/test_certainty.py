"""What a report says where the held-out part is too small, or the arms learned unequally much."""

import json

import numpy as np
import pytest

from distill.report.measurements import Measurements
from distill.report.selection import Tolerance
from distill.report.tables import artifact_table
from distill.tasks.causal_lm.report import CausalLMReport
from distill.tasks.embedding.report import EmbeddingReport
from distill.tasks.sequence_classification.report import ClassificationReport

ARMS = ("teacher", "init", "distill", "finetune")


@pytest.fixture
def measured(tmp_path):
    """`measured(documents, arrays by model, tokens=..., **numbers by model)`."""

    def make(documents, arrays, tokens=(100, 100), models=None):
        for name, values in arrays.items():
            size = len(values["kl"])
            right = np.arange(size) % 2 == 0
            same = {
                "document": np.arange(size) % documents, "correct": right, "agree": right,
                "label": right.astype(int), "predicted": np.ones(size, int),
                "classes": np.full(size, 2), "confidence": np.full(size, 0.6),
            }  # fmt: skip
            np.savez(tmp_path / f"{name}.npz", **{**same, **values})
        learned = dict(zip(("distill", "finetune"), tokens, strict=True))
        arms = {arm: {"tokens": n, "seconds": 1.0} for arm, n in learned.items()}
        return Measurements(
            models=models or {}, folder=tmp_path, resamples=200, controls=["finetune"],
            costs={"arms": arms, "stages": {}}, tolerance=Tolerance(),
        )  # fmt: skip

    return make


def numbers(nll, **more):
    return {
        "nll": nll, "perplexity": np.exp(nll), "kl_to_teacher": 0.1, "bytes": 100,
        "tokens_per_second": {"prefill": 1.0, "generate": 10.0}, "runtime": "transformers",
        "accuracy": 0.5, "texts_per_second": 10.0, "parameters": 100, **more,
    }  # fmt: skip


def arrays(mean, seed=0, size=400, **more):
    dice = np.random.default_rng(seed)
    common = np.random.default_rng(9).normal(3, 1, size)
    return {"nll": common + mean + dice.normal(0, 0.01, size),
            "kl": np.full(size, 0.1) + dice.normal(0, 1e-3, size), **more}  # fmt: skip


def verdict(measured, documents, **more):
    found = {"distill": arrays(-0.5, 1), "finetune": arrays(0.0, 2)}
    models = {name: numbers(3.0) for name in ARMS}
    return CausalLMReport().verdict(measured(documents, found, models=models, **more))


def test_with_few_documents_no_difference_is_claimed(measured):
    for documents in (1, 2, 7):
        found = verdict(measured, documents)
        assert found["helped"] is None
        assert found["nll"]["interval"] is None
        assert found["nll"]["documents"] == documents
        assert "cannot be told better or worse than plain fine-tuning" in found["sentence"]
        assert f"the held-out part has {documents} document" in found["sentence"]
        assert "nor can its closeness to the teacher" in found["sentence"]
        assert any("at least 8 documents" in said for said in found["warnings"])
    found = verdict(measured, 8)
    assert found["helped"] is True
    assert "distilling beat plain fine-tuning" in found["sentence"]
    assert found["warnings"] == [
        "The teacher is no better on this text than the untrained student."
    ]


def test_the_sentence_says_how_much_each_arm_learned_from(measured):
    assert "at the same 100 tokens: " in verdict(measured, 9)["sentence"]
    assert "at 80 tokens against 100: " in verdict(measured, 9, tokens=(80, 100))["sentence"]


def test_a_tiny_difference_keeps_its_sign(measured):
    found = {"distill": arrays(0.0, 1), "finetune": arrays(0.0, 1)}
    found["finetune"]["nll"] = found["distill"]["nll"] + 2e-6 + 1e-7 * np.sin(np.arange(400.0))
    models = {name: numbers(3.0) for name in ARMS}
    said = CausalLMReport().verdict(measured(20, found, models=models))["sentence"]
    assert "nll -2.0e-06, 95% interval -2.0e-06 to -2.0e-06" in said


def test_classes_and_vectors_are_untold_as_well(measured):
    found = {name: arrays(0.0, similarity_error=np.full(400, 0.1)) for name in ARMS}
    models = {name: numbers(3.0, similarity_error=0.1) for name in ARMS}
    for report in (ClassificationReport(), EmbeddingReport()):
        said = report.verdict(measured(3, found, models=models))
        assert said["helped"] is None
        assert "the held-out part has 3 documents" in said["sentence"]
        assert report.verdict(measured(9, found, models=models))["helped"] is False


def test_a_teacher_that_correlates_with_nothing_keeps_no_share(measured, tmp_path):
    for name in ARMS:
        dice = np.random.default_rng(len(name))
        np.savez(tmp_path / f"{name}.pairs.npz", cosine=dice.random(20), score=np.arange(20))
    found = {name: arrays(0.0, similarity_error=np.full(400, 0.1)) for name in ARMS}
    models = {name: numbers(3.0, spearman=-0.1, pairs=20, similarity_error=0.1) for name in ARMS}
    said = EmbeddingReport().verdict(measured(9, found, models=models))
    assert said["retained"] is None
    assert "keeps" not in said["sentence"]


# Artifacts ---------------------------------------------------------------------------------------


def judged(measured, documents, losses, sizes):
    """Artifacts that lose some nll against the student, by name."""
    report, artifacts = CausalLMReport(), {}
    found = {"distill": arrays(0.0, 1)}
    for i, (name, lost) in enumerate(losses.items()):
        found[name] = arrays(lost, 30 + i)
        artifacts[name] = numbers(found[name]["nll"].mean(), bytes=sizes[name])
    run = measured(documents, found)
    reference = numbers(found["distill"]["nll"].mean())
    for name, one in artifacts.items():
        one["fit"] = report.judge(one, reference, "distill", Tolerance())
        one["fit"].update(report.certainty(run, name, "distill"))
    report.mark_pareto(artifacts, run)
    return artifacts


def test_an_artifact_near_its_tolerance_is_fit_but_not_for_certain(measured):
    sizes = dict.fromkeys(("far", "near", "beyond"), 100)
    losses = {"far": 0.001, "near": 0.0178, "beyond": 0.1}
    found = judged(measured, 20, losses, sizes)
    assert {name: (one["fit"]["ships"], one["fit"]["certain"]) for name, one in found.items()} == {
        "far": (True, True), "near": (True, False), "beyond": (False, True),
    }  # fmt: skip
    few = judged(measured, 3, losses, sizes)
    assert [one["fit"]["certain"] for one in few.values()] == [False] * 3
    report = CausalLMReport()
    table = artifact_table({"artifacts": few}, {"fit": report.artifact_columns["fit to ship"]})
    assert [row[-1] for row in table[1:]] == ["yes?", "yes?", "NO?"]
    assert "which is not certain" in report.advise(few)[0]["sentence"]
    assert json.dumps(few)


def test_a_quality_that_cannot_be_told_apart_does_not_make_an_artifact_optimal(measured):
    losses = {"bf16": 0.0, "int8": 0.0001, "nf4": 0.05}
    sizes = {"bf16": 200, "int8": 100, "nf4": 50}
    on_front = {
        documents: {name for name, one in judged(measured, documents, losses, sizes).items()
                    if one["pareto"]["bytes"]}
        for documents in (3, 20)
    }  # fmt: skip
    assert on_front[20] == {"int8", "nf4"}, "twice the bytes for nothing that can be told"
    assert on_front[3] == {"bf16", "int8", "nf4"}, "by what was measured"


@pytest.mark.parametrize("report", [CausalLMReport(), ClassificationReport(), EmbeddingReport()])
def test_what_is_not_a_number_is_never_fit_nor_optimal(report):
    bad = numbers(np.nan, accuracy=np.nan, similarity_error=np.nan)
    good = numbers(3.0, similarity_error=0.1)
    bad["fit"] = report.judge(bad, good, "distill", Tolerance())
    assert bad["fit"]["ships"] is False
    report.mark_pareto(artifacts := {"bad": bad, "good": good})
    assert artifacts["bad"]["pareto"] == {"bytes": False, "speed": False}
