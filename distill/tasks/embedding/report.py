"""The report of a run on sentence encoders.

The control is the student before it learned: without labels there is nothing to fine-tune on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from distill.data.scored_pairs import spearman
from distill.evaluation.job import Numbers
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
from distill.report.measurements import Measurements
from distill.report.paired_difference import (
    difference_by_seed,
    in_words,
    negated,
    paired_difference,
    untold_warnings,
)
from distill.report.plots import CURVE_WORDS, Curves, plot_curves
from distill.report.selection import Purpose, Quality, Tolerance
from distill.report.speeds import READING_SPEED, Speed
from distill.report.task_report import TaskReport
from distill.report.trainings import kept_steps
from distill.report.verdict import Measure, compare, mean_of
from distill.tasks.embedding.metrics import pairs_file, spearman_interval
from distill.tasks.whole_text_report import (
    WHOLE_TEXT_PURPOSES,
    WHOLE_TEXT_REMEDY,
    fewer_parameters,
    whole_text_content,
)

VECTOR_COLUMNS: TableColumns = {
    "Spearman": Column(
        "spearman",
        lambda r: f"{r['spearman']:.4f}",
        "correlation of cosines with the scores of `evaluate.pairs`",
        lambda r: r.get("spearman_interval"),
        "{:.4f}".format,
    ),
    "cosine": Column(
        "cosine_to_teacher",
        lambda r: f"{r['cosine_to_teacher']:.4f}",
        "mean cosine of a text's vector and the teacher's",
        lambda r: r.get("cosine_to_teacher_interval"),
        "{:.4f}".format,
    ),
    "sim. error": Column(
        "similarity_error",
        lambda r: f"{r['similarity_error']:.4f}",
        "mean difference of the cosines between texts from the teacher's",
        lambda r: r.get("similarity_error_interval"),
        "{:.4f}".format,
    ),
    "M params": MODEL_COLUMNS["M params"],
    "MB": MODEL_COLUMNS["MB"],
    **TEXT_SPEED_COLUMNS,
}


def _quality_words(numbers: Numbers) -> str:
    if "spearman" in numbers:
        return f"Spearman {numbers['spearman']:.4f}"
    return f"cosines {numbers['similarity_error']:.4f} off the teacher's"


class EmbeddingReport(TaskReport):
    """The report on sentence encoders."""

    columns: ClassVar[TableColumns] = VECTOR_COLUMNS
    artifact_columns: ClassVar[TableColumns] = {
        **RUNTIME_COLUMN,
        **{title: VECTOR_COLUMNS[title] for title in ("Spearman", "cosine", "sim. error")},
        "quality lost": Column(
            "fit",
            lambda r: f"{r['fit']['lost']:+.4f}",
            "Spearman's correlation lost against the same student in full precision; without pairs "
            "the similarity error added to it",
            lost_interval,
            "{:+.4f}".format,
        ),
        "MB": VECTOR_COLUMNS["MB"],
        **TEXT_SPEED_COLUMNS,
        **SELECTION_COLUMNS,
    }
    quality: ClassVar[Quality] = Quality(
        "similarity_error", "error of cosines", _quality_words, higher=False
    )
    compared: ClassVar[str] = "similarity_error"
    tolerated: ClassVar[str] = "accuracy"
    speed: ClassVar[Speed] = READING_SPEED
    purposes: ClassVar[Sequence[Purpose]] = WHOLE_TEXT_PURPOSES
    remedy: ClassVar[str] = WHOLE_TEXT_REMEDY

    def verdict(self, measured: Measurements) -> Numbers:
        """What the student keeps, and whether learning made it better than pruning alone: a higher
        correlation, or without pairs less error, and none of its numbers significantly worse.
        """
        student, teacher, init = (measured.models[name] for name in ("distill", "teacher", "init"))
        measures = [one for one in MEASURES if one.key in student]
        found = compare(measured, measures, "init", "the student before it learned")
        result: Numbers = {**found.entry(), "warnings": []}
        if "spearman" in student:
            result["retained"] = _retained(student, teacher)
            kept = _kept(student, teacher, result["retained"])
            against = (
                f"before it learned it had {init['spearman']:.4f} (difference "
                f"{in_words(found.found['spearman'])})"
            )
        else:
            error = found.found["similarity_error"]
            result["warnings"] += untold_warnings(error)
            kept = (
                f"On held-out texts the student's cosines between texts are "
                f"{student['similarity_error']:.4f} off the teacher's"
            )
            against = (
                f"before it learned it was {init['similarity_error']:.4f} off (difference "
                f"{in_words(error)})"
            )
        worse = found.worse_sentence()
        result["sentence"] = f"{worse}{kept}, {_cheaper(student, teacher)}; {against}."
        return result

    def judge(
        self, artifact: Numbers, reference: Numbers, name: str, tolerance: Tolerance
    ) -> Numbers:
        """An artifact ships by its correlation on pairs, else by its similarity error."""
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

    def lost(self, measured: Measurements, artifact: str, reference: str) -> Numbers:
        """The correlation that it loses; without pairs the error that is added."""
        if "spearman" in measured.models[artifact]:
            return negated(_spearman_difference(measured, artifact, reference))
        return paired_difference(measured, self.compared, artifact, reference)

    def page_content(self, report: Numbers, curves: Curves, measured: Measurements) -> PageContent:
        """The curve of the objective, and quality against size and speed."""
        training = (
            plot_curves(curves, kept_steps(report), "validation", "objective"),
            f"The objective on the validation part while training. {CURVE_WORDS}",
        )
        return whole_text_content(report, self.quality, training)


def _retained(student: Numbers, teacher: Numbers) -> float | None:
    """The share of the teacher's correlation; None where the teacher has none to keep."""
    return student["spearman"] / teacher["spearman"] if teacher["spearman"] > 0 else None


def _kept(student: Numbers, teacher: Numbers, retained: float | None) -> str:
    if retained is None:
        return (
            f"The student's Spearman correlation on {student['pairs']:,} pairs is "
            f"{student['spearman']:.4f}, and the teacher has none ({teacher['spearman']:.4f})"
        )
    if retained > 1:
        return (
            f"The student's Spearman correlation on {student['pairs']:,} pairs is higher than the "
            f"teacher's ({student['spearman']:.4f} against {teacher['spearman']:.4f})"
        )
    return (
        f"The student keeps {retained:.1%} of the teacher's Spearman correlation on "
        f"{student['pairs']:,} pairs ({student['spearman']:.4f} of {teacher['spearman']:.4f})"
    )


def _cheaper(student: Numbers, teacher: Numbers) -> str:
    speed = READING_SPEED.ratio_words(student, teacher, "the teacher's")
    return f"{fewer_parameters(student, teacher)}{speed}"


def _spearman_difference(measured: Measurements, a: str, b: str) -> Numbers:
    """Correlation of model `a` minus that of `b`, with its 95% interval over the same pairs."""
    return difference_by_seed(measured, a, b, partial(_difference_of_models, measured))


def _difference_of_models(measured: Measurements, a: str, b: str) -> Numbers:
    files = [pairs_file(measured.folder / f"{model}.json") for model in (a, b)]
    pairs = [np.load(file) for file in files]
    values = [spearman(one["cosine"], one["score"]) for one in pairs]
    return {
        "difference": values[0] - values[1],
        "interval": spearman_interval(pairs, measured.resamples),
        "pairs": len(pairs[0]["score"]),
    }


MEASURES = (  # the first one that was measured counts most
    Measure(
        "spearman", "Spearman's correlation", _spearman_difference, higher=True,
        show="{:.4f}".format, digits=4,
    ),
    Measure(
        "similarity_error", "the error of cosines", mean_of("similarity_error"), higher=False,
        show="{:.4f}".format, digits=4,
    ),
    Measure(
        "cosine_to_teacher", "the cosine to the teacher", mean_of("cosine"), higher=True,
        show="{:.4f}".format, digits=4,
    ),
)  # fmt: skip
