"""The report of a run on classes of texts: verdict, what is fit to ship, and the page."""

from __future__ import annotations

from typing import ClassVar

from distill.evaluation.job import Measured
from distill.report.columns import COLUMNS, RUN_BY, SHIPS, TEXT_SPEED, Columns
from distill.report.html import plot_curves
from distill.report.paired_difference import difference, side
from distill.report.selection import Tolerance
from distill.report.task_report import Curves, Measurements, Tables, TaskReport
from distill.report.whole_text_page import Quality, advise, mark_fronts, text_page

CLASS_COLUMNS: Columns = {
    "accuracy": ("accuracy", lambda r: f"{100 * r['accuracy']:.1f}%"),
    "macro-F1": ("macro_f1", lambda r: f"{r['macro_f1']:.3f}"),
    "ECE": ("calibration_error", lambda r: f"{r['calibration_error']:.3f}"),
    "nll": COLUMNS["nll"],
    "KL": COLUMNS["KL"],
    "agree": ("top1_agreement", lambda r: f"{100 * r['top1_agreement']:.1f}%"),
    "M params": COLUMNS["M params"],
    "MB": COLUMNS["MB"],
    **TEXT_SPEED,
}
CLASS_MATRIX: Columns = {
    **RUN_BY,
    **{name: CLASS_COLUMNS[name] for name in ("accuracy", "macro-F1", "ECE", "KL", "agree")},
    "lost": ("fit", lambda r: f"{100 * r['fit']['accuracy_lost']:+.1f}"),
    "MB": COLUMNS["MB"],
    **TEXT_SPEED,
    **SHIPS,
}


# The verdict -----------------------------------------------------------------------------------


def verdict(found: Measurements) -> Measured:
    """One sentence on whether distilling beat plain fine-tuning, and the numbers behind it."""
    measured = found.models
    teacher = measured["teacher"]["accuracy"]
    arms = ["init", *found.controls]
    better = {arm: teacher > measured[arm]["accuracy"] for arm in arms}
    retained = measured["distill"]["accuracy"] / max(teacher, 1e-9)
    result: Measured = {
        "helped": None, "teacher_is_better": better, "retained": retained, "warnings": [],
    }  # fmt: skip
    if "finetune" not in found.controls:
        result["sentence"] = (
            f"{_kept(measured)} No fine-tuned arm was trained, so whether distilling helped is "
            "unknown; add `train.arms: [finetune]`."
        )
        return result
    accuracy, kl = (difference(found, name, "distill", "finetune") for name in ("correct", "kl"))
    result.update(accuracy=accuracy, kl_to_teacher=kl)
    result["helped"] = side(accuracy) == "higher" or (
        side(accuracy) != "lower" and side(kl) == "lower"
    )
    result["sentence"] = f"{_kept(measured)} {_sentence(measured, accuracy, kl, found.costs)}"
    if not better["finetune"]:
        result["warnings"].append(
            "The teacher is no more accurate on these texts than the fine-tuned student, so its "
            "classes can hold the student back: train it longer (`teacher.adapt`)."
        )
    return result


def _kept(measured: Measured) -> str:
    teacher, student = measured["teacher"], measured["distill"]
    faster = student["texts_per_second"] / teacher["texts_per_second"]
    fewer = 1 - student["parameters"] / teacher["parameters"]
    return (
        f"The student keeps {student['accuracy'] / max(teacher['accuracy'], 1e-9):.1%} of the "
        f"teacher's accuracy ({student['accuracy']:.1%} of {teacher['accuracy']:.1%}) with "
        f"{fewer:.0%} fewer parameters, at {faster:.1f} times its speed."
    )


def _sentence(measured: Measured, accuracy: Measured, kl: Measured, costs: Measured) -> str:
    words = {
        "higher": "beat plain fine-tuning",
        "lower": "did worse than plain fine-tuning",
        "not distinguishable": "cannot be told from plain fine-tuning",
    }
    closer = {
        "lower": "closer to the teacher",
        "higher": "further from the teacher",
        "not distinguishable": "as close to the teacher",
    }
    low, high = (100 * bound for bound in accuracy["interval"])
    arms = {name: measured[name] for name in ("distill", "finetune")}
    texts = costs["arms"]["distill"]["tokens"]
    return (
        f"On held-out texts, distilling {words[side(accuracy)]} at the same {texts:,} texts: "
        f"accuracy {arms['distill']['accuracy']:.1%} against {arms['finetune']['accuracy']:.1%} "
        f"({100 * accuracy['difference']:+.2f} points, 95% interval {low:+.2f} to {high:+.2f}), "
        f"and the student is {closer[side(kl)]} (KL {arms['distill']['kl_to_teacher']:.3f} against "
        f"{arms['finetune']['kl_to_teacher']:.3f})."
    )


# Shipping --------------------------------------------------------------------------------------


def judge(artifact: Measured, reference: Measured, name: str, tolerance: Tolerance) -> Measured:
    """`ships`, the accuracy lost against the reference called `name`, and the reason in words."""
    lost = reference["accuracy"] - artifact["accuracy"]
    ships = lost <= tolerance.accuracy
    reason = "within the tolerance" if ships else f"it loses {100 * lost:.1f} points of accuracy"
    return {"reference": name, "accuracy_lost": lost, "ships": ships, "reason": reason}


QUALITY = Quality(
    "accuracy", "held-out accuracy, %", lambda r: f"accuracy {r['accuracy']:.1%}", 100
)


# The page --------------------------------------------------------------------------------------


def page(report: Measured, tables: Tables, curves: Curves) -> str:
    """report.html."""
    legend = (
        "ECE: expected calibration error, 15 bins; KL(teacher || model) over the classes, nats a "
        "text; agree: share of texts whose class is the teacher's; texts/s in batches, ms for one "
        "text alone; peak memory of a process that loads the model and reads texts. Intervals are "
        "in report.json."
    )
    lost = "points of accuracy against the same student in full precision"
    training = plot_curves(curves), "Validation nll while training (nats a text), same order."
    return text_page(report, tables, QUALITY, [training], legend, lost)


class ClassificationReport(TaskReport):
    """The report on classifiers of texts."""

    columns: ClassVar[Columns] = CLASS_COLUMNS
    matrix: ClassVar[Columns] = CLASS_MATRIX

    def verdict(self, found: Measurements) -> Measured:
        """Whether distilling beat plain fine-tuning."""
        return verdict(found)

    def judge(
        self, artifact: Measured, reference: Measured, name: str, tolerance: Tolerance
    ) -> Measured:
        """By accuracy."""
        return judge(artifact, reference, name, tolerance)

    def mark_fronts(self, artifacts: dict[str, Measured]) -> None:
        """Accuracy against bytes and speed."""
        mark_fronts(QUALITY, artifacts)

    def advise(self, artifacts: dict[str, Measured]) -> list[Measured]:
        """For speed and for size."""
        return advise(QUALITY, artifacts)

    def page(self, report: Measured, tables: Tables, curves: Curves, found: Measurements) -> str:
        """With the training curve."""
        return page(report, tables, curves)


REPORT = ClassificationReport()
