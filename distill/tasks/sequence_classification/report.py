"""The report of a run on classes of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from distill.evaluation.job import Numbers
from distill.report.columns import (
    MODEL_COLUMNS,
    RUNTIME_COLUMN,
    SELECTION_COLUMNS,
    TEXT_SPEED_COLUMNS,
    Column,
    TableColumns,
)
from distill.report.html import PageContent
from distill.report.measurements import Measurements
from distill.report.paired_difference import (
    against_fine_tuning,
    at_counts,
    closeness,
    direction,
    in_words,
    is_helped,
    paired_difference,
    untold_warnings,
)
from distill.report.plots import Curves, plot_curves
from distill.report.selection import READING_SPEED, Purpose, Quality, Speed, Tolerance
from distill.report.task_report import TaskReport
from distill.tasks.whole_text_report import (
    WHOLE_TEXT_PURPOSES,
    WHOLE_TEXT_REMEDY,
    whole_text_content,
)

CLASS_COLUMNS: TableColumns = {
    "accuracy": Column(
        "accuracy", lambda r: f"{100 * r['accuracy']:.1f}%", "share of texts whose class is right"
    ),
    "macro-F1": Column("macro_f1", lambda r: f"{r['macro_f1']:.3f}", "mean F1 over the classes"),
    "ECE": Column(
        "calibration_error",
        lambda r: f"{r['calibration_error']:.3f}",
        "expected calibration error, 15 bins of confidence",
    ),
    "nll": MODEL_COLUMNS["nll"]._replace(meaning="mean of -log p(class), nats a text"),
    "KL": MODEL_COLUMNS["KL"]._replace(
        meaning="KL(teacher || model) over the classes, nats a text"
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
        """Whether distilling beat plain fine-tuning: higher accuracy, or the same and lower KL."""
        models = measured.models
        teacher = models["teacher"]["accuracy"]
        arms = ["init", *measured.controls]
        better = {arm: teacher > models[arm]["accuracy"] for arm in arms}
        retained = models["distill"]["accuracy"] / max(teacher, 1e-9)
        result: Numbers = {
            "helped": None, "teacher_is_better": better, "retained": retained, "warnings": [],
        }  # fmt: skip
        if "finetune" not in measured.controls:
            result["sentence"] = (
                f"{_kept(models)} No fine-tuned arm was trained, so whether distilling helped is "
                "unknown; add `train.arms: [finetune]`."
            )
            return result
        accuracy, kl = (
            paired_difference(measured, name, "distill", "finetune") for name in ("correct", "kl")
        )
        result.update(accuracy=accuracy, kl_to_teacher=kl)
        result["helped"] = is_helped(direction(accuracy), direction(kl), better="higher")
        result["sentence"] = f"{_kept(models)} {_sentence(models, accuracy, kl, measured.costs)}"
        result["warnings"] += untold_warnings(accuracy)
        if not better["finetune"]:
            result["warnings"].append(
                "The teacher is no more accurate on these texts than the fine-tuned student, so "
                "its classes can hold the student back: train it longer (`teacher.adapt`)."
            )
        return result

    def judge(
        self, artifact: Numbers, reference: Numbers, name: str, tolerance: Tolerance
    ) -> Numbers:
        """An artifact ships by its accuracy."""
        lost = reference["accuracy"] - artifact["accuracy"]
        ships = bool(lost <= tolerance.accuracy)
        reason = f"it loses {100 * lost:.1f} points of accuracy"
        return {
            "reference": name,
            "accuracy_lost": lost,
            "ships": ships,
            "reason": "within the tolerance" if ships else reason,
        }

    def page_content(self, report: Numbers, curves: Curves, measured: Measurements) -> PageContent:
        """The curve of the nll, and quality against size and speed."""
        training = plot_curves(curves), "Validation nll while training (nats a text)."
        return whole_text_content(report, self.quality, training)


def _kept(models: Numbers) -> str:
    teacher, student = models["teacher"], models["distill"]
    faster = student["texts_per_second"] / teacher["texts_per_second"]
    fewer = 1 - student["parameters"] / teacher["parameters"]
    return (
        f"The student keeps {student['accuracy'] / max(teacher['accuracy'], 1e-9):.1%} of the "
        f"teacher's accuracy ({student['accuracy']:.1%} of {teacher['accuracy']:.1%}) with "
        f"{fewer:.0%} fewer parameters, at {faster:.1f} times its speed."
    )


def _sentence(models: Numbers, accuracy: Numbers, kl: Numbers, costs: Numbers) -> str:
    distill, finetune = models["distill"], models["finetune"]
    values = f"KL {distill['kl_to_teacher']:.3f} against {finetune['kl_to_teacher']:.3f}"
    return (
        f"On held-out texts, distilling {against_fine_tuning(accuracy, better='higher')} "
        f"{at_counts(costs['arms'], 'texts')}: accuracy {distill['accuracy']:.1%} against "
        f"{finetune['accuracy']:.1%} "
        f"({in_words(accuracy, 2, 100, ' points')}), {closeness(kl, values)}."
    )
