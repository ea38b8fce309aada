"""Distilling helped only where nothing that was measured got significantly worse."""

import numpy as np
import pytest

from distill.evaluation.job import EvaluateConfig
from distill.report.measurements import Measurements
from distill.report.selection import Tolerance
from distill.report.verdict import comparison_table
from distill.tasks.causal_lm.metrics import CausalLMMetrics
from distill.tasks.causal_lm.report import MEASURES as TOKEN_MEASURES
from distill.tasks.causal_lm.report import CausalLMReport
from distill.tasks.embedding.metrics import EmbeddingMetrics
from distill.tasks.embedding.report import EmbeddingReport
from distill.tasks.sequence_classification.metrics import ClassificationMetrics
from distill.tasks.sequence_classification.report import MEASURES, ClassificationReport

METRICS = {
    ClassificationReport: ClassificationMetrics,
    CausalLMReport: CausalLMMetrics,
    EmbeddingReport: EmbeddingMetrics,
}
CONFIG = EvaluateConfig(bootstrap=200)
TEXTS = 1000


@pytest.fixture
def judge(tmp_path):
    """`judge(report, arrays by model, more)`: the verdict on models with these arrays, `more`
    numbers by model, and the numbers themselves.
    """

    def make(report, arrays, more=None):
        models = {}
        for name, values in arrays.items():
            np.savez(tmp_path / f"{name}.npz", **values)
            models[name] = {
                **METRICS[report]().summary(values, CONFIG), "texts_per_second": 10.0,
                "parameters": 100, **(more or {}).get(name, {}),
            }  # fmt: skip
        arms = {arm: {"tokens": 100, "seconds": 1.0} for arm in ("distill", "finetune")}
        measured = Measurements(
            models=models, folder=tmp_path, resamples=200, controls=["finetune"],
            costs={"arms": arms, "stages": {}}, tolerance=Tolerance(),
        )  # fmt: skip
        return report().verdict(measured), models

    return make


# Classes -----------------------------------------------------------------------------------------


def noise(dice, size):
    """What differs from text to text, and is 0 on average."""
    values = dice.normal(0, size, TEXTS)
    return values - values.mean()


def classifier(seed, misses_rare=False, confidence=0.9, nll=0.3, kl=0.3, wrong=0.1):
    """Arrays over texts of six classes, the last of which is rare; `wrong`: a share, exactly."""
    dice = np.random.default_rng(seed)
    label = np.append(np.arange(TEXTS - 15) % 5, np.full(15, 5))
    predicted = label.copy()
    mistakes = dice.permutation(TEXTS - 15)[: round(wrong * TEXTS)]
    predicted[mistakes] = (label[mistakes] + 1) % 5
    predicted[-15:] = 0 if misses_rare else 5
    return {
        "document": np.arange(TEXTS), "example": np.arange(TEXTS), "label": label,
        "predicted": predicted, "correct": predicted == label, "classes": np.full(TEXTS, 6),
        "confidence": np.full(TEXTS, confidence), "nll": nll + noise(dice, 0.1),
        "kl": kl + noise(dice, 0.02), "agree": predicted == label,
    }  # fmt: skip


def classes(**distill):
    weak = {"teacher": classifier(0), "init": classifier(1, wrong=0.8)}
    return {**weak, "finetune": classifier(2), "distill": classifier(3, kl=0.1, **distill)}


def test_a_tie_in_accuracy_with_a_lower_kl_alone_did_not_help(judge):
    said, models = judge(ClassificationReport, classes())
    assert said["kl_to_teacher"]["interval"][1] < 0
    assert said["helped"] is False
    assert said["worse"] == []
    assert "distilling cannot be distinguished from plain fine-tuning at the" in said["sentence"]
    assert "did not help" not in said["sentence"]
    assert set(said) >= {"accuracy", "macro_f1", "calibration_error", "nll", "kl_to_teacher"}
    for key in ("accuracy", "macro_f1", "calibration_error", "nll"):
        low, high = models["distill"][f"{key}_interval"]
        assert low <= models["distill"][key] <= high, key


def test_a_tie_in_accuracy_with_a_lower_nll_and_better_calibration_helped(judge):
    said, _ = judge(ClassificationReport, classes(nll=0.2))
    weak = {**classes(), "finetune": classifier(2, confidence=0.75)}
    calibrated, _ = judge(ClassificationReport, {**weak, "distill": classifier(3, nll=0.2)})
    assert said["helped"] is calibrated["helped"] is True
    assert (
        "distilling cannot be distinguished from plain fine-tuning in accuracy, and is better in "
        "nll, at the same 100 texts: accuracy 9"
    ) in said["sentence"]
    assert "nll 0.200 against 0.300 (-0.100, 95% interval -0.1" in said["sentence"]
    assert "and is better in calibration error and nll, at the same" in calibrated["sentence"]


def test_a_tie_in_accuracy_with_a_lost_class_did_not_help(judge):
    worse = classes(misses_rare=True, confidence=0.65, nll=0.5, wrong=0.085)
    said, models = judge(ClassificationReport, worse)
    assert said["accuracy"]["interval"][0] < 0 < said["accuracy"]["interval"][1]
    assert said["kl_to_teacher"]["interval"][1] < 0, "what made the verdict before"
    assert said["helped"] is False
    assert said["worse"] == ["macro_f1", "calibration_error", "nll"]
    before, after = (models[arm]["macro_f1"] for arm in ("finetune", "distill"))
    start = (
        "Distilling did not help: tied with plain fine-tuning in accuracy, but macro-F1 fell from "
        f"{before:.3f} to {after:.3f} ("
    )
    assert said["sentence"].startswith(start)
    assert "calibration error rose from" in said["sentence"]
    table = comparison_table({"verdict": said, "arms": models}, MEASURES, "finetune")
    assert {row[0]: row[-1] for row in table[1:]} == {
        "accuracy": "not distinguishable", "macro-F1": "worse", "calibration error": "worse",
        "nll": "worse", "KL to the teacher": "better",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "key"),
    [({"misses_rare": True, "wrong": 0.02}, "macro_f1"), ({"nll": 0.4, "wrong": 0.02}, "nll")],
)
def test_a_higher_accuracy_does_not_excuse_what_got_worse(judge, change, key):
    said, _ = judge(ClassificationReport, classes(**{"confidence": 0.97, **change}))
    assert said["accuracy"]["interval"][0] > 0
    assert said["helped"] is False
    assert said["worse"] == [key]
    assert "better than plain fine-tuning in accuracy, but" in said["sentence"]


@pytest.mark.parametrize(
    ("change", "number"), [({"misses_rare": True}, "macro-F1 is"), ({"nll": 0.6}, "nll is 0.600")]
)
def test_labels_that_know_more_than_the_teacher_are_said_first(judge, change, number):
    models = {**classes(), "teacher": classifier(0, **change)}
    said, _ = judge(ClassificationReport, models)
    assert said["sentence"].startswith("The labels know more than the teacher. ")
    assert said["warnings"][0].startswith("The labels know more than the teacher: on held-out")
    assert f"its {number}" in said["warnings"][0]
    assert "`cross_entropy`" in said["warnings"][0]
    good, _ = judge(ClassificationReport, classes())
    assert not any("labels know" in warning for warning in good["warnings"])


# Tokens and vectors ------------------------------------------------------------------------------


def language_model(seed, nll=3.0, kl=0.3, right=0.4, agree=0.6):
    dice = np.random.default_rng(seed)
    own = np.random.default_rng(9).normal(0, 1, TEXTS)
    rank = np.random.default_rng(8).random(TEXTS)
    return {
        "document": np.arange(TEXTS) // 20, "example": np.arange(TEXTS) // 20,
        "nll": nll + own + noise(dice, 0.02), "kl": kl + noise(dice, 0.02),
        "correct": rank < right, "agree": rank < agree,
    }  # fmt: skip


def tokens(**distill):
    found = {name: language_model(i) for i, name in enumerate(("teacher", "init", "finetune"))}
    return {**found, "distill": language_model(7, **{"nll": 2.8, "kl": 0.1, **distill})}


def test_a_lower_nll_helped_unless_another_number_is_worse(judge):
    said, models = judge(CausalLMReport, tokens())
    assert (said["helped"], said["worse"]) == (True, [])
    assert len(comparison_table({"verdict": said, "arms": models}, TOKEN_MEASURES, "finetune")) == 5
    for change, key, words in (
        ({"right": 0.3}, "accuracy", "accuracy fell from 4"),
        ({"kl": 0.5}, "kl_to_teacher", "KL to the teacher rose from 0.3"),
        ({"agree": 0.5}, "top1_agreement", "agreement with the teacher fell from 6"),
    ):
        said, _ = judge(CausalLMReport, tokens(**change))
        assert (said["helped"], said["worse"]) == (False, [key])
        assert "better than plain fine-tuning in nll, but" in said["sentence"]
        assert words in said["sentence"]


def test_a_downstream_task_that_got_worse_counts(judge):
    def scores(right, low, high):
        found = {"accuracy": right, "accuracy_interval": [low, high], "examples": 400}
        return {"tasks": {"arc": found, "spoken": {"accuracy": None, "reason": "no"}}}

    much = {"finetune": scores(0.6, 0.55, 0.65), "distill": scores(0.4, 0.35, 0.45)}
    said, _ = judge(CausalLMReport, tokens(), much)
    assert (said["helped"], said["worse"]) == (False, ["tasks.arc"])
    assert "accuracy on arc fell from 60.0% to 40.0%" in said["sentence"]
    little = {**much, "distill": scores(0.58, 0.53, 0.63)}
    said, _ = judge(CausalLMReport, tokens(), little)
    assert (said["helped"], said["worse"]) == (True, [])
    assert set(said["tasks"]) == {"arc"}


def test_vectors_that_are_nearer_in_one_way_and_further_in_the_other_did_not_help(judge):
    def encoder(seed, error, cosine):
        dice = np.random.default_rng(seed)
        return {
            "document": np.arange(TEXTS), "example": np.arange(TEXTS),
            "similarity_error": error + dice.normal(0, 0.01, TEXTS),
            "cosine": cosine + dice.normal(0, 0.01, TEXTS),
        }  # fmt: skip

    models = {"teacher": encoder(0, 0.0, 1.0), "init": encoder(1, 0.2, 0.8)}
    said, _ = judge(EmbeddingReport, {**models, "distill": encoder(2, 0.1, 0.9)})
    assert (said["helped"], said["worse"]) == (True, [])
    said, _ = judge(EmbeddingReport, {**models, "distill": encoder(2, 0.1, 0.7)})
    assert (said["helped"], said["worse"]) == (False, ["cosine_to_teacher"])
    assert "the cosine to the teacher fell from 0.8" in said["sentence"]


# A teacher of another tokenizer ------------------------------------------------------------------


def test_a_teacher_of_other_tokens_is_compared_by_bytes_alone(judge):
    dice = np.random.default_rng(0)
    document, common = np.arange(TEXTS) % 40, dice.normal(3, 1, TEXTS)

    def model(shift, **more):
        values = common + shift + dice.normal(0, 0.05, TEXTS)
        return {
            "document": document, "nll": values, "correct": np.arange(TEXTS) % 2 == 0,
            "bytes": np.full(TEXTS, 4), **more,
        }  # fmt: skip

    half = slice(0, TEXTS // 2)  # as if every token of it stood for twice as many bytes
    teacher = {name: values[half] for name, values in model(-0.4).items()}
    teacher |= {"nll": 2 * teacher["nll"], "bytes": 2 * teacher["bytes"]}
    found = {
        "teacher": teacher, "init": model(1.0), "distill": model(-0.2), "finetune": model(0.0)
    }  # fmt: skip
    names = {name: {"tokenizer": "its" if name == "teacher" else "own"} for name in found}
    verdict, models = judge(CausalLMReport, found, names)
    assert models["teacher"]["nll"] > models["init"]["nll"], "a token"
    assert verdict["teacher_is_better"] == {"init": True, "finetune": True}, "a byte"
    assert verdict["helped"] is True
    assert verdict["nll"]["difference"] == pytest.approx(-0.2, abs=0.02)
    assert not {"kl_to_teacher", "top1_agreement"} & set(verdict)
    assert "teacher" not in verdict["sentence"].replace("the teacher's cache", "")
