"""The report of a run on classes of texts: verdict, what is fit to ship, and the page."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from distill.account import Account, Curves, Tables
from distill.columns import COLUMNS, RUN_BY, SHIPS, TEXT_SPEED, Columns
from distill.comparing import difference, side
from distill.exporting import Tolerance
from distill.gauge import Measured
from distill.report_html import plot_curves
from distill.text_report import Quality, advise, mark_fronts, text_page

if TYPE_CHECKING:
    from distill.run import Run

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


def verdict(run: Run, measured: Measured, costs: Measured) -> Measured:
    """One sentence on whether distilling beat plain fine-tuning, and the numbers behind it."""
    teacher = measured["teacher"]["accuracy"]
    arms = ["init", *run.recipe.train.arms]
    better = {arm: teacher > measured[arm]["accuracy"] for arm in arms}
    retained = measured["distill"]["accuracy"] / max(teacher, 1e-9)
    result: Measured = {
        "helped": None, "teacher_is_better": better, "retained": retained, "warnings": [],
    }  # fmt: skip
    if "finetune" not in run.recipe.train.arms:
        result["sentence"] = (
            f"{_kept(measured)} No fine-tuned arm was trained, so whether distilling helped is "
            "unknown; add `train.arms: [finetune]`."
        )
        return result
    accuracy, kl = (difference(run, name, "distill", "finetune") for name in ("correct", "kl"))
    result.update(accuracy=accuracy, kl_to_teacher=kl)
    result["helped"] = side(accuracy) == "higher" or (
        side(accuracy) != "lower" and side(kl) == "lower"
    )
    result["sentence"] = f"{_kept(measured)} {_sentence(measured, accuracy, kl, costs)}"
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


def page(run: Run, report: Measured, tables: Tables, curves: Curves) -> str:
    """report.html."""
    legend = (
        "ECE: expected calibration error, 15 bins; KL(teacher || model) over the classes, nats a "
        "text; agree: share of texts whose class is the teacher's; texts/s in batches, ms for one "
        "text alone; peak memory of a process that loads the model and reads texts. Intervals are "
        "in report.json."
    )
    lost = "points of accuracy against the same student in full precision"
    training = plot_curves(curves), "Held-out nll while training (nats a text), same order."
    return text_page(report, tables, QUALITY, [training], legend, lost)


ACCOUNT = Account(
    CLASS_COLUMNS,
    CLASS_MATRIX,
    verdict,
    judge,
    partial(mark_fronts, QUALITY),
    partial(advise, QUALITY),
    page,
)
