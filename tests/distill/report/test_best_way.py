"""The best way that was measured is named; a baseline that beats teacher or student comes first."""

import numpy as np
import pytest

from distill.evaluation.job import EvaluateConfig
from distill.report.best_way import best_way, listed
from distill.report.html import PageContent, render_report
from distill.report.measurements import Measurements
from distill.report.selection import Tolerance, advise_best
from distill.report.tables import model_table
from distill.report.verdict import ACCURACY, NLL
from distill.tasks.embedding.report import _kept as kept_correlation
from distill.tasks.sequence_classification.metrics import ClassificationMetrics
from distill.tasks.sequence_classification.report import CLASS_COLUMNS, ClassificationReport
from distill.tasks.whole_text_report import fewer_parameters

REPORT = ClassificationReport()
ABOUT = {"features": "logistic regression on features", "tf-idf": "TF-IDF of words"}
TEXTS = 400
BY_ACCURACY = {"model": "a", "by": "accuracy", "tied": []}
USUAL = {"teacher": 0.95, "init": 0.3, "finetune": 0.85, "distill": 0.9}


def classifier(right, nll=0.3):
    """Arrays over texts of four classes; the first share of the texts, `right`, is right."""
    label = np.arange(TEXTS) % 4
    correct = np.arange(TEXTS) < round(right * TEXTS)
    predicted = np.where(correct, label, (label + 1) % 4)
    return {
        "document": np.arange(TEXTS), "example": np.arange(TEXTS), "label": label,
        "predicted": predicted, "correct": correct, "classes": np.full(TEXTS, 4),
        "confidence": np.full(TEXTS, 0.9), "nll": nll + 0.1 * np.cos((1 + nll) * np.arange(TEXTS)),
        "kl": 0.2 + 0.1 * np.sin(np.arange(TEXTS)), "agree": correct,
    }  # fmt: skip


@pytest.fixture
def measure(tmp_path):
    """`measure(share that is right by model, controls)`: what a run with these models measured."""

    def make(shares, controls=("finetune",), nll=None):
        models = {}
        for name, right in shares.items():
            arrays = classifier(right, (nll or {}).get(name, 0.3))
            np.savez(tmp_path / f"{name}.npz", **arrays)
            models[name] = {
                **ClassificationMetrics().summary(arrays, EvaluateConfig(bootstrap=100)),
                "texts_per_second": 10.0, "parameters": 100, "bytes": 1e6,
            }  # fmt: skip
        arms = {arm: {"tokens": 100, "seconds": 1.0} for arm in ("distill", "finetune")}
        return Measurements(
            models=models, folder=tmp_path, resamples=100, controls=list(controls),
            costs={"arms": arms, "stages": {}}, tolerance=Tolerance(),
            baselines={name: about for name, about in ABOUT.items() if name in shares},
        )  # fmt: skip

    return make


def test_an_undertrained_teacher_below_its_own_features_is_said_first(measure):
    """150 classes, 3,000 texts: the page said that distilling won and kept 167% of the teacher."""
    shares = {"teacher": 0.46, "init": 0.01, "finetune": 0.72, "distill": 0.77}
    said = REPORT.verdict(measure({**shares, "features": 0.935, "tf-idf": 0.83}))
    sentence = said["sentence"]
    assert sentence.startswith(
        "The teacher is worse than logistic regression on features (accuracy 46.0% against 93.5%, "
        "-47.50 points, 95% interval -"
    )
    assert "train it longer or faster (`teacher.adapt.epochs`, `lr`)" in sentence
    assert (
        "Logistic regression on features is better than the distilled student in accuracy "
        "(93.5% "
        "against 77.0%, +16.50 points, 95% interval +"
    ) in sentence
    assert ", and so is TF-IDF of words (83.0%). " in sentence
    assert "The student is more accurate than its teacher (77.0% against 46.0%, +31.00" in sentence
    assert "keeps" not in sentence
    assert "167" not in sentence
    assert "The best of all that was measured is logistic regression on features: " in sentence
    assert "accuracy 93.5%, macro-F1 0.93" in sentence
    assert said["best"] == {"model": "features", "by": "accuracy", "tied": []}
    assert said["beaten_by"] == said["teacher_beaten_by"] == ["features", "tf-idf"]
    assert said["against_baselines"]["tf-idf"]["accuracy"]["difference"] == pytest.approx(-0.06)


def test_a_baseline_that_beats_the_student_alone_begins_the_sentence(measure):
    said = REPORT.verdict(measure({**USUAL, "tf-idf": 0.94}))
    assert said["sentence"].startswith(
        "TF-IDF of words is better than the distilled student in accuracy ("
    )
    assert "The teacher is worse" not in said["sentence"]
    assert (said["beaten_by"], said["teacher_beaten_by"]) == (["tf-idf"], [])
    assert "The student keeps 94.7% of the teacher's accuracy (90.0% of 95.0%)" in said["sentence"]


def test_baselines_that_are_no_better_lead_nothing(measure):
    said = REPORT.verdict(measure({**USUAL, "features": 0.9025, "tf-idf": 0.7}))
    assert said["sentence"].startswith("The student keeps")
    assert said["beaten_by"] == []
    assert said["sentence"].endswith("nll 0.300.")
    assert "The best of all that was measured is the teacher: accuracy 95.0%" in said["sentence"]
    assert said["best"] == {"model": "teacher", "by": "accuracy", "tied": []}


@pytest.mark.parametrize(
    ("changes", "best", "words"),
    [
        ({"finetune": 0.98}, "finetune", "the fine-tuned student: accuracy 98.0%"),
        ({"distill": 0.98}, "distill", "the distilled student: accuracy 98.0%"),
        ({"tf-idf": 0.98}, "tf-idf", "TF-IDF of words: accuracy 98.0%"),
    ],
)
def test_any_way_can_be_the_best(measure, changes, best, words):
    said = REPORT.verdict(measure({**USUAL, "tf-idf": 0.5, **changes}))
    assert said["best"]["model"] == best
    assert f"The best of all that was measured is {words}" in said["sentence"]


def test_what_cannot_be_told_from_the_best_is_named_and_a_smaller_one_of_equals_is_it(measure):
    measured = measure({**USUAL, "distill": 0.95, "tf-idf": 0.9475})
    measured.models["distill"]["parameters"] = 50
    assert best_way(measured, ACCURACY, NLL) == {
        "model": "distill", "by": "accuracy", "tied": ["teacher", "tf-idf"],
    }  # fmt: skip
    sentence = REPORT.verdict(measured)["sentence"]
    assert sentence.endswith(
        "; its accuracy cannot be told from that of the teacher (95.0%) and TF-IDF of words "
        "(94.8%)."
    )


def test_of_what_cannot_be_told_apart_in_accuracy_a_lower_nll_is_the_best(measure):
    shares = {**USUAL, "teacher": 0.9, "finetune": 0.9025, "tf-idf": 0.7}
    measured = measure(shares, nll={"distill": 0.2, "tf-idf": 0.1})
    best = best_way(measured, ACCURACY, NLL)
    assert best == {"model": "distill", "by": "nll", "tied": ["finetune", "teacher"]}
    sentence = REPORT.verdict(measured)["sentence"]
    assert "The best of all that was measured is the distilled student: acc" in sentence
    assert sentence.endswith("and the teacher (90.0%), and its nll is better.")
    said = advise_best(best, "it", measured.models["distill"], REPORT.quality, REPORT.speed, "So.")
    assert said["sentence"].startswith(
        "For the best accuracy of all that was measured, and of equals the best nll: it ("
    )


def test_a_baseline_that_is_more_accurate_and_less_calibrated_is_called_both(measure):
    said = REPORT.verdict(measure({**USUAL, "tf-idf": 0.94}, nll={"tf-idf": 0.5}))
    assert "), but worse in nll (0.50" in said["sentence"]
    assert said["beaten_by"] == ["tf-idf"]


def test_parameters_are_said_where_they_differ():
    def said(student):
        return fewer_parameters({"parameters": student}, {"parameters": 1000})

    assert said(490) == "with 51% fewer parameters, "
    assert said(1200) == "with 20% more parameters, "
    assert said(1000) == said(995) == ""


def test_a_student_as_good_as_its_teacher_keeps_no_more_than_all(measure):
    said = REPORT.verdict(measure({**USUAL, "distill": 0.9525}, controls=()))
    assert (
        "The student is as accurate as its teacher (95.2% against 95.0%, +0.25" in said["sentence"]
    )
    assert "No fine-tuned arm was trained" in said["sentence"]
    assert said["warnings"] == []
    same = REPORT.verdict(measure({**USUAL, "distill": 0.95}))
    assert "keeps 100.0% of the teacher's accuracy" in same["sentence"]
    teacher, student = ({"spearman": value, "pairs": 20} for value in (0.6, 0.9))
    assert "keeps" not in kept_correlation(student, teacher, 1.5)


@pytest.mark.parametrize(
    ("size", "shown", "said"),
    [(4e4, "0.04", "40 kB"), (4e5, "0.4", "0.4 MB"), (4e7, "40.0", "40 MB")],
)
def test_small_sizes_are_no_nought(size, shown, said):
    numbers = {"bytes": size, "accuracy": 0.9, "texts_per_second": None}
    assert CLASS_COLUMNS["MB"].show(numbers) == shown
    assert advise_best(BY_ACCURACY, "it", numbers, REPORT.quality, REPORT.speed, "So.")[
        "sentence"
    ] == (f"For the best accuracy of all that was measured: it ({said}, accuracy 90.0%). So.")


def test_words_are_listed():
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"


def test_a_baseline_as_good_as_the_student_is_advised_where_it_is_smaller():
    def numbers(accuracy, size, ships=True):
        fit = {"ships": ships, "reason": "it loses 9.0 points of accuracy"}
        return {"accuracy": accuracy, "bytes": size, "texts_per_second": 10.0, "fit": fit}

    artifacts = {"bf16": numbers(0.9, 9e6), "int8": numbers(0.9, 5e6)}
    baselines = {"tf-idf": numbers(0.9, 1e6), "features": numbers(0.95, None)}
    REPORT.mark_pareto({**artifacts, **baselines})
    assert artifacts["int8"]["pareto"]["bytes"] is False
    assert baselines["tf-idf"]["pareto"]["bytes"] is True
    fastest, smallest = REPORT.advise(artifacts, baselines)
    assert (fastest["artifact"], fastest["baseline"]) == ("int8", None), "of equals, an artifact"
    assert (smallest["artifact"], smallest["baseline"]) == (None, "tf-idf")
    assert smallest["sentence"] == (
        "For the smallest size: baseline tf-idf (1.0 MB, accuracy 90.0%, 10 texts/s here)."
    )
    worse = {"tf-idf": numbers(0.8, 1e6, ships=False)}
    assert [one["artifact"] for one in REPORT.advise(artifacts, worse)] == ["int8", "int8"]
    for one in artifacts.values():
        one["fit"]["ships"] = False
    unfit, *others = REPORT.advise(artifacts, baselines)
    assert "No artifact stays within the tolerance" in unfit["sentence"]
    assert [one["baseline"] for one in others] == ["features", "tf-idf"]


def test_an_artifact_below_a_baseline_says_so_beside_that_it_lost_nothing(measure):
    measured = measure({**USUAL, "onnx": 0.9, "tf-idf": 0.96, "features": 0.9025})
    below = REPORT.below(measured, "onnx", list(measured.baselines))
    assert below == ["tf-idf"]
    show = REPORT.artifact_columns["fit to ship"].show
    assert show({"fit": {"ships": True, "below": below}}) == "yes, but below tf-idf"
    assert show({"fit": {"ships": True, "certain": False, "below": []}}) == "yes?"
    assert show({"fit": {"ships": False, "below": below}}) == "NO"


def test_the_page_has_rows_of_baselines_and_says_what_they_are(measure):
    measured = measure({**USUAL, "tf-idf": 0.94})
    models = measured.models
    report = {
        "teacher": {"model": "t", **models["teacher"]},
        "arms": {name: models[name] for name in ("init", "finetune", "distill")},
        "baselines": {
            "tf-idf": {**models["tf-idf"], "about": ABOUT["tf-idf"]},
            "features": {"failed": "no words", "about": "regression"},
        },
        "artifacts": {}, "advice": [], "verdict": REPORT.verdict(measured), "selection": None,
        "cost": {"stages": {}, "arms": {}, "seconds": 1.0, "cache_bytes_per_token": 0.0},
        "recipe": {}, "environment": {},
    }  # fmt: skip
    rows = {row[0]: row[1:] for row in model_table(report, REPORT.columns)}
    assert list(rows)[1:4] == ["teacher", "baseline tf-idf", "baseline features"]
    assert rows["baseline tf-idf"][0].startswith("94.0% (")
    assert rows["baseline features"][0] == "failed"
    content = REPORT.page_content(
        report, {"distill": [{"step": 1, "validation_nll": 1.0}]}, measured
    )
    titles = [section.title for section in content.middle]
    assert titles[1] == "The distilled student against the baselines, on the same texts"
    assert "<td>against tf-idf</td>" in content.middle[1].markup
    assert "<td>worse (-4.00 points" in content.middle[1].markup
    page = render_report(
        report, REPORT.columns, REPORT.artifact_columns, PageContent("texts", [], [])
    )
    assert "<li>baseline tf-idf: TF-IDF of words." in page
    assert "baseline features failed: no words" in page
