"""The report of a run on classes of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np

from attar.word_lists import listed
from distill.evaluation.bootstrap import SumStatistic, groups_of, statistic_interval
from distill.evaluation.calibration_error import CALIBRATION_ERROR, calibration_interval
from distill.evaluation.job import Numbers
from distill.report.best_way import (
    baseline_entry,
    baseline_lead,
    baseline_table,
    best_sentence,
    best_way,
)
from distill.report.columns import (
    MODEL_COLUMNS,
    RUNTIME_COLUMN,
    SELECTION_COLUMNS,
    TEXT_SPEED_COLUMNS,
    Column,
    TableColumns,
    lost_interval,
)
from distill.report.html import PageContent
from distill.report.markup import table_section
from distill.report.measurements import Measurements
from distill.report.paired_difference import (
    against_fine_tuning,
    at_counts,
    closeness,
    difference_by_seed,
    untold_warnings,
)
from distill.report.plots import CURVE_WORDS, Curves, plot_curves
from distill.report.selection import Purpose, Quality, Tolerance, judge_by_accuracy
from distill.report.speeds import READING_SPEED, Speed
from distill.report.task_report import TaskReport
from distill.report.trainings import kept_steps
from distill.report.verdict import (
    ACCURACY,
    KL,
    NLL,
    Comparison,
    Difference,
    Measure,
    compare,
    comparison_table,
    comparison_terms,
)
from distill.tasks.sequence_classification.metrics import MACRO_F1
from distill.tasks.whole_text_report import (
    WHOLE_TEXT_PURPOSES,
    WHOLE_TEXT_REMEDY,
    fewer_parameters,
    whole_text_content,
)

AGAINST = "Distilling against plain fine-tuning, on the same texts"
AGAINST_BASELINES = "The distilled student against the baselines, on the same texts"
Shown = Callable[[Numbers], str]


def _with_interval(key: str, digits: int, scale: float = 1.0, unit: str = "") -> Shown:
    def show(row: Numbers) -> str:
        value = f"{scale * row[key]:.{digits}f}{unit}"
        bounds = row.get(f"{key}_interval")
        if bounds is None:
            return value
        return f"{value} ({scale * bounds[0]:.{digits}f} to {scale * bounds[1]:.{digits}f})"

    return show


CLASS_COLUMNS: TableColumns = {
    "accuracy": Column(
        "accuracy",
        _with_interval("accuracy", 1, 100, "%"),
        "share of texts whose class is right (95% interval)",
    ),
    "macro-F1": Column(
        "macro_f1", _with_interval("macro_f1", 3), "mean F1 over the classes (95% interval)"
    ),
    "ECE": Column(
        "calibration_error",
        _with_interval("calibration_error", 3),
        "expected calibration error: how far confidence is from accuracy, over 15 bins of it "
        "(95% interval)",
    ),
    "nll": Column(
        "nll", _with_interval("nll", 3), "mean of -log p(class), nats a text (95% interval)"
    ),
    "KL": MODEL_COLUMNS["KL"]._replace(
        meaning="KL(teacher || model) over the classes, nats a text; 0 where the model is as the "
        "teacher"
    ),
    "agree": Column(
        "top1_agreement",
        lambda r: f"{100 * r['top1_agreement']:.1f}%",
        "share of texts whose class is the teacher's",
    ),
    "M params": MODEL_COLUMNS["M params"],
    "MB": MODEL_COLUMNS["MB"],
    **TEXT_SPEED_COLUMNS,
}


Between = Callable[[Sequence[Mapping[str, np.ndarray]], int], list[float] | None]


def _difference_of(statistic: SumStatistic, between: Between) -> Difference:
    """Differences of a number that is no mean over texts, paired text by text."""

    def difference(measured: Measurements, a: str, b: str) -> Numbers:
        return difference_by_seed(measured, a, b, partial(of_models, measured))

    def of_models(measured: Measurements, a: str, b: str) -> Numbers:
        arrays = [dict(np.load(measured.folder / f"{model}.npz")) for model in (a, b)]
        return {
            "difference": statistic.of(arrays[0]) - statistic.of(arrays[1]),
            "interval": between(arrays, measured.resamples),
            "documents": groups_of(arrays[0]),
        }

    return difference


F1 = Measure(
    "macro_f1", "macro-F1", _difference_of(MACRO_F1, partial(statistic_interval, MACRO_F1)),
    higher=True,
)  # fmt: skip
CALIBRATION = Measure(
    "calibration_error", "calibration error",
    _difference_of(CALIBRATION_ERROR, calibration_interval), higher=False,
)  # fmt: skip
# Labels judge a classifier: that it is closer to its teacher is said, and decides nothing.
JUDGED = (ACCURACY, F1, CALIBRATION, NLL)
DECIDING = [one.key for one in (F1, CALIBRATION, NLL)]
MEASURES = (*JUDGED, replace(KL, counts=False))


def _points(bounds: list[float] | None) -> list[float] | None:
    return None if bounds is None else [100 * bound for bound in bounds]


class ClassificationReport(TaskReport):
    """The report on classifiers of texts."""

    columns: ClassVar[TableColumns] = CLASS_COLUMNS
    artifact_columns: ClassVar[TableColumns] = {
        **RUNTIME_COLUMN,
        **{title: CLASS_COLUMNS[title] for title in ("accuracy", "macro-F1", "ECE", "KL", "agree")},
        "accuracy lost": Column(
            "fit",
            lambda r: f"{100 * r['fit']['accuracy_lost']:+.1f}",
            "points of accuracy lost against the same student in full precision",
            lambda r: _points(lost_interval(r)),
            "{:+.1f}".format,
        ),
        "MB": CLASS_COLUMNS["MB"],
        **TEXT_SPEED_COLUMNS,
        **SELECTION_COLUMNS,
    }
    quality: ClassVar[Quality] = Quality(
        "accuracy",
        "held-out accuracy, %",
        lambda numbers: f"accuracy {numbers['accuracy']:.1%}",
        higher=True,
        scale=100,
    )
    compared: ClassVar[str] = "correct"
    tolerated: ClassVar[str] = "accuracy"
    speed: ClassVar[Speed] = READING_SPEED
    purposes: ClassVar[Sequence[Purpose]] = WHOLE_TEXT_PURPOSES
    remedy: ClassVar[str] = WHOLE_TEXT_REMEDY

    def verdict(self, measured: Measurements) -> Numbers:
        """Whether distilling beat plain fine-tuning: better accuracy, or the same and macro-F1,
        calibration error or nll better, and none of these four significantly worse.
        """
        models = measured.models
        teacher = models["teacher"]["accuracy"]
        arms = ["init", *measured.controls]
        better = {arm: teacher > models[arm]["accuracy"] for arm in arms}
        retained = models["distill"]["accuracy"] / max(teacher, 1e-9)
        best, beside = best_way(measured, ACCURACY, NLL), baseline_entry(measured, JUDGED)
        first = baseline_lead(measured, JUDGED, beside)
        last = best_sentence(measured, JUDGED, best)
        result: Numbers = {
            "helped": None, "teacher_is_better": better, "retained": retained, "best": best,
            **beside, "warnings": [],
        }  # fmt: skip
        if "finetune" not in measured.controls:
            result["sentence"] = (
                f"{first}{_kept(measured)} No fine-tuned arm was trained, so whether distilling "
                f"helped is unknown; add `train.arms: [finetune]`. {last}"
            )
            return result
        found = compare(measured, MEASURES, "finetune", "plain fine-tuning", DECIDING)
        result.update(found.entry())
        lags = {one.key: one.difference(measured, "teacher", "finetune") for one in (F1, NLL)}
        result["teacher_against_finetune"] = lags
        behind = [one for one in (F1, NLL) if one.is_worse(lags[one.key])]
        lead = "The labels know more than the teacher. " if behind else ""
        result["sentence"] = (
            f"{first}{lead}{found.worse_sentence()}{_kept(measured)} "
            f"{_sentence(measured, found)} {last}"
        )
        if behind:
            result["warnings"].append(_labels_know_more(behind, lags, models))
        elif not better["finetune"]:
            result["warnings"].append(
                "The teacher is no more accurate on these texts than the fine-tuned student, so "
                "its classes can hold the student back: train it longer (`teacher.adapt`)."
            )
        result["warnings"] += untold_warnings(found.found["accuracy"])
        return result

    def judge(
        self, artifact: Numbers, reference: Numbers, name: str, tolerance: Tolerance
    ) -> Numbers:
        """An artifact ships by its accuracy."""
        return judge_by_accuracy(artifact, reference, name, tolerance, "accuracy")

    def page_content(self, report: Numbers, curves: Curves, measured: Measurements) -> PageContent:
        """The curve of the nll, quality against size and speed, and distilling measure by measure
        against plain fine-tuning.
        """
        training = (
            plot_curves(curves, kept_steps(report), unit="nats a text"),
            f"The nll of the validation part while training. {CURVE_WORDS}",
        )
        content = whole_text_content(report, self.quality, training)
        tables = [
            (AGAINST, comparison_table(report, MEASURES, "finetune"), False),
            (AGAINST_BASELINES, baseline_table(report, JUDGED), True),
        ]
        terms = comparison_terms(MEASURES)
        sections = [
            table_section(title, table, terms, text=text) for title, table, text in tables if table
        ]
        return replace(content, middle=sections)

    def best(self, measured: Measurements) -> Numbers | None:
        """The most accurate of teacher, students and baselines; of those whose accuracies cannot
        be told apart, one with a better nll.
        """
        return best_way(measured, ACCURACY, NLL)


def _labels_know_more(
    behind: Sequence[Measure], lags: dict[str, Numbers], models: dict[str, Numbers]
) -> str:
    """A warning that the teacher is worse on held-out texts than a student of the labels alone."""
    numbers = " and ".join(
        f"its {one.name} is {one.show(models['teacher'][one.key])} against the fine-tuned "
        f"student's {one.show(models['finetune'][one.key])} ({one.in_words(lags[one.key])})"
        for one in behind
    )
    return (
        f"The labels know more than the teacher: on held-out texts {numbers}. Train the teacher "
        "longer (`teacher.adapt.epochs`), or give `cross_entropy` at least the weight of "
        "`forward_kl`, which brings back rare classes that the teacher misses; another "
        "`temperature` does not."
    )


def _kept(measured: Measurements) -> str:
    teacher, student = (measured.models[name] for name in ("teacher", "distill"))
    speed = READING_SPEED.ratio_words(student, teacher, "the teacher's")
    with_less = f"{fewer_parameters(student, teacher)}{speed}."
    mine, its = student["accuracy"], teacher["accuracy"]
    if mine <= its:
        kept = f"keeps {mine / max(its, 1e-9):.1%} of the teacher's accuracy"
        return f"The student {kept} ({mine:.1%} of {its:.1%}) {with_less}"
    found = ACCURACY.difference(measured, "distill", "teacher")
    how = "is more accurate than" if ACCURACY.said(found) == "better" else "is as accurate as"
    values = f"{mine:.1%} against {its:.1%}, {ACCURACY.in_words(found)}"
    return f"The student {how} its teacher ({values}) {with_less}"


def _sentence(measured: Measurements, found: Comparison) -> str:
    distill, finetune = found.models["distill"], found.models["finetune"]
    accuracy, kl = found.found["accuracy"], found.found["kl_to_teacher"]
    values = f"KL {distill['kl_to_teacher']:.3f} against {finetune['kl_to_teacher']:.3f}"
    better = [one for one in JUDGED[1:] if found.is_better(one)]
    also = ""
    if better:
        conjunction = "but" if found.measures[0] in found.worse else "and"
        also = f" in accuracy, {conjunction} is better in {listed([one.name for one in better])},"
    return (
        f"On held-out texts, distilling {against_fine_tuning(accuracy, better='higher')}{also} "
        f"{at_counts(measured, 'texts')}: {', '.join(map(found.numbers, [ACCURACY, *better]))}, "
        f"{closeness(kl, values)}."
    )
