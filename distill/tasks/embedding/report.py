"""The report of a run on sentence encoders: verdict, what is fit to ship, and the page.

The control is the student before it learned: without labels there is nothing to fine-tune on.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from distill.data.scored_pairs import spearman, spearman_draws
from distill.evaluation.job import Measured
from distill.report.columns import COLUMNS, RUN_BY, SHIPS, TEXT_SPEED, Columns
from distill.report.html import plot_curves
from distill.report.paired_difference import difference, side
from distill.report.selection import Tolerance
from distill.report.task_report import Curves, Measurements, Tables, TaskReport
from distill.report.whole_text_page import Quality, advise, mark_fronts, text_page
from distill.tasks.embedding.metrics import pairs_file

VECTOR_COLUMNS: Columns = {
    "Spearman": ("spearman", lambda r: f"{r['spearman']:.4f}"),
    "cosine": ("cosine_to_teacher", lambda r: f"{r['cosine_to_teacher']:.4f}"),
    "sim. error": ("similarity_error", lambda r: f"{r['similarity_error']:.4f}"),
    "M params": COLUMNS["M params"],
    "MB": COLUMNS["MB"],
    **TEXT_SPEED,
}
VECTOR_MATRIX: Columns = {
    **RUN_BY,
    **{name: VECTOR_COLUMNS[name] for name in ("Spearman", "cosine", "sim. error")},
    "lost": ("fit", lambda r: f"{r['fit']['lost']:+.4f}"),
    "MB": COLUMNS["MB"],
    **TEXT_SPEED,
    **SHIPS,
}


# The verdict -----------------------------------------------------------------------------------


def verdict(found: Measurements) -> Measured:
    """One sentence on what the student keeps, and whether learning made it better than the cut."""
    student, teacher, init = (found.models[name] for name in ("distill", "teacher", "init"))
    error = difference(found, "similarity_error", "distill", "init")
    result: Measured = {"similarity_error": error, "warnings": []}
    if "spearman" in student:
        result["retained"] = student["spearman"] / max(teacher["spearman"], 1e-9)
        gained = _spearman_difference(found, "distill", "init")
        result["spearman"], result["helped"] = gained, side(gained) == "higher"
        low, high = gained["interval"]
        kept = (
            f"The student keeps {result['retained']:.1%} of the teacher's Spearman correlation on "
            f"{student['pairs']:,} pairs ({student['spearman']:.4f} of {teacher['spearman']:.4f})"
        )
        against = (
            f"before it learned it had {init['spearman']:.4f} (difference "
            f"{gained['difference']:+.4f}, 95% interval {low:+.4f} to {high:+.4f})"
        )
    else:
        result["helped"] = side(error) == "lower"
        low, high = error["interval"]
        kept = (
            f"On held-out texts the student's cosines between texts are "
            f"{student['similarity_error']:.4f} off the teacher's"
        )
        against = (
            f"before it learned it was {init['similarity_error']:.4f} off (difference "
            f"{error['difference']:+.4f}, 95% interval {low:+.4f} to {high:+.4f})"
        )
    result["sentence"] = f"{kept}, {_cheaper(student, teacher)}; {against}."
    return result


def _cheaper(student: Measured, teacher: Measured) -> str:
    fewer = 1 - student["parameters"] / teacher["parameters"]
    faster = student["texts_per_second"] / teacher["texts_per_second"]
    return f"with {fewer:.0%} fewer parameters, at {faster:.1f} times its speed"


def _spearman_difference(found: Measurements, a: str, b: str) -> Measured:
    """Correlation of model `a` minus that of `b`, with its 95% interval over the same pairs."""
    files = [pairs_file(found.folder / f"{model}.json") for model in (a, b)]
    pairs = [np.load(file) for file in files]
    draws = [spearman_draws(one["cosine"], one["score"], found.resamples) for one in pairs]
    values = [spearman(one["cosine"], one["score"]) for one in pairs]
    bounds = np.percentile(draws[0] - draws[1], [2.5, 97.5])
    return {"difference": values[0] - values[1], "interval": [float(x) for x in bounds]}


# Shipping --------------------------------------------------------------------------------------


def judge(artifact: Measured, reference: Measured, name: str, tolerance: Tolerance) -> Measured:
    """`ships`; what is lost against the reference: of the correlation, or without pairs of the
    likeness to the teacher; and the reason in words.
    """
    if "spearman" in artifact:
        lost, what = reference["spearman"] - artifact["spearman"], "of the correlation"
    else:
        lost = artifact["similarity_error"] - reference["similarity_error"]
        what = "more error of its cosines"
    ships = lost <= tolerance.accuracy
    reason = "within the tolerance" if ships else f"{lost:.4f} {what} than {name}"
    if not ships and "spearman" in artifact:
        reason = f"it loses {lost:.4f} {what} against {name}"
    return {"reference": name, "lost": lost, "ships": ships, "reason": reason}


def _say(found: Measured) -> str:
    if "spearman" in found:
        return f"Spearman {found['spearman']:.4f}"
    return f"cosines {found['similarity_error']:.4f} off the teacher's"


QUALITY = Quality("similarity_error", "error of cosines", _say, higher=False)


# The page --------------------------------------------------------------------------------------


def page(report: Measured, tables: Tables, curves: Curves) -> str:
    """report.html."""
    legend = (
        "Spearman: correlation of cosines with the scores of pairs (evaluate.pairs); cosine: mean, "
        "of a text's vector and the teacher's, where widths agree; sim. error: mean difference of "
        "the cosines between texts from the teacher's; texts/s in batches, ms for one text alone; "
        "peak memory of a process that loads the model and reads texts. Intervals are in "
        "report.json."
    )
    lost = "against the same student in full precision, of the correlation or of the cosines"
    training = plot_curves(curves, "validation"), "Validation objective while training."
    return text_page(report, tables, QUALITY, [training], legend, lost)


class EmbeddingReport(TaskReport):
    """The report on sentence encoders."""

    columns: ClassVar[Columns] = VECTOR_COLUMNS
    matrix: ClassVar[Columns] = VECTOR_MATRIX

    def verdict(self, found: Measurements) -> Measured:
        """Whether learning made the student better than the cut alone."""
        return verdict(found)

    def judge(
        self, artifact: Measured, reference: Measured, name: str, tolerance: Tolerance
    ) -> Measured:
        """By the correlation on pairs, else by the error of cosines."""
        return judge(artifact, reference, name, tolerance)

    def mark_fronts(self, artifacts: dict[str, Measured]) -> None:
        """Error of cosines against bytes and speed."""
        mark_fronts(QUALITY, artifacts)

    def advise(self, artifacts: dict[str, Measured]) -> list[Measured]:
        """For speed and for size."""
        return advise(QUALITY, artifacts)

    def page(self, report: Measured, tables: Tables, curves: Curves, found: Measurements) -> str:
        """With the curve of the objective."""
        return page(report, tables, curves)


REPORT = EmbeddingReport()
