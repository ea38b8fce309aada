"""The report of a run on reward models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np

from attar.word_lists import listed
from distill.evaluation.bootstrap import groups_of
from distill.evaluation.calibration_error import CALIBRATION_ERROR, calibration_interval
from distill.evaluation.job import Numbers
from distill.report.best_way import best_sentence, best_way
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
    Measure,
    compare,
    comparison_table,
    comparison_terms,
)
from distill.tasks.whole_text_report import (
    WHOLE_TEXT_PURPOSES,
    WHOLE_TEXT_REMEDY,
    fewer_parameters,
    whole_text_content,
)

AGAINST = "Distilling against plain fine-tuning, on the same pairs"
CHANCE = 0.5  # the share of pairs that a coin ranks right

REWARD_COLUMNS: TableColumns = {
    "pair accuracy": Column(
        "accuracy",
        lambda r: f"{r['accuracy']:.1%}",
        "share of pairs whose chosen answer has the higher reward; a tie is not right",
        lambda r: r.get("accuracy_interval"),
        "{:.1%}".format,
    ),
    "nll": Column(
        "nll",
        lambda r: f"{r['nll']:.3f}",
        "mean of -log p(the chosen answer is better), p the logistic function of the difference of "
        "rewards, nats a pair; 0.693 where both rewards are always equal",
        lambda r: r.get("nll_interval"),
    ),
    "ECE": Column(
        "calibration_error",
        lambda r: f"{r['calibration_error']:.3f}",
        "expected calibration error: how far that p is from the share of pairs that it ranks "
        "right, over 15 bins of it",
        lambda r: r.get("calibration_error_interval"),
    ),
    "chosen": Column(
        "chosen_reward",
        lambda r: f"{r['chosen_reward']:+.3f}",
        "mean reward of chosen answers; only differences of rewards mean something",
    ),
    "rejected": Column(
        "rejected_reward", lambda r: f"{r['rejected_reward']:+.3f}", "the same of rejected answers"
    ),
    "KL": MODEL_COLUMNS["KL"]._replace(
        meaning="KL(teacher || model) over which answer is better, nats a pair; 0 where the model "
        "is as the teacher"
    ),
    "agree": Column(
        "top1_agreement",
        lambda r: f"{100 * r['top1_agreement']:.1f}%",
        "share of pairs that are ranked as the teacher ranks them",
    ),
    "M params": MODEL_COLUMNS["M params"],
    "MB": MODEL_COLUMNS["MB"],
    **TEXT_SPEED_COLUMNS,
}


def _calibration_difference(measured: Measurements, a: str, b: str) -> Numbers:
    """Calibration error of model `a` minus that of `b`, with its 95% interval over prompts."""
    return difference_by_seed(measured, a, b, partial(_difference_of_models, measured))


def _difference_of_models(measured: Measurements, a: str, b: str) -> Numbers:
    arrays = [dict(np.load(measured.folder / f"{model}.npz")) for model in (a, b)]
    return {
        "difference": CALIBRATION_ERROR.of(arrays[0]) - CALIBRATION_ERROR.of(arrays[1]),
        "interval": calibration_interval(arrays, measured.resamples),
        "documents": groups_of(arrays[0]),
    }


PAIR_ACCURACY = replace(ACCURACY, name="pair accuracy")
CALIBRATION = Measure(
    "calibration_error", "calibration error", _calibration_difference, higher=False
)
# The order of pairs judges a reward model: that it is closer to its teacher decides nothing.
JUDGED = (PAIR_ACCURACY, CALIBRATION, NLL)
DECIDING = [one.key for one in (CALIBRATION, NLL)]
MEASURES = (*JUDGED, replace(KL, counts=False))


def _points(bounds: list[float] | None) -> list[float] | None:
    return None if bounds is None else [100 * bound for bound in bounds]


class RewardReport(TaskReport):
    """The report on reward models."""

    columns: ClassVar[TableColumns] = REWARD_COLUMNS
    artifact_columns: ClassVar[TableColumns] = {
        **RUNTIME_COLUMN,
        **{
            title: REWARD_COLUMNS[title] for title in ("pair accuracy", "nll", "ECE", "KL", "agree")
        },
        "accuracy lost": Column(
            "fit",
            lambda r: f"{100 * r['fit']['accuracy_lost']:+.1f}",
            "points of pair accuracy lost against the same student in full precision",
            lambda r: _points(lost_interval(r)),
            "{:+.1f}".format,
        ),
        "MB": REWARD_COLUMNS["MB"],
        **TEXT_SPEED_COLUMNS,
        **SELECTION_COLUMNS,
    }
    quality: ClassVar[Quality] = Quality(
        "accuracy",
        "held-out pair accuracy, %",
        lambda numbers: f"pair accuracy {numbers['accuracy']:.1%}",
        higher=True,
        scale=100,
    )
    compared: ClassVar[str] = "correct"
    tolerated: ClassVar[str] = "accuracy"
    speed: ClassVar[Speed] = READING_SPEED
    purposes: ClassVar[Sequence[Purpose]] = WHOLE_TEXT_PURPOSES
    remedy: ClassVar[str] = WHOLE_TEXT_REMEDY

    def verdict(self, measured: Measurements) -> Numbers:
        """Whether distilling beat plain fine-tuning: better pair accuracy, or the same and
        calibration error or nll better, and none of these three significantly worse.
        """
        models = measured.models
        teacher = models["teacher"]["accuracy"]
        arms = ["init", *measured.controls]
        better = {arm: teacher > models[arm]["accuracy"] for arm in arms}
        best = best_way(measured, PAIR_ACCURACY, NLL)
        result: Numbers = {
            "helped": None,
            "teacher_is_better": better,
            "retained": models["distill"]["accuracy"] / max(teacher, 1e-9),
            "best": best,
            "warnings": _warnings(models["teacher"]),
        }
        last = best_sentence(measured, JUDGED, best)
        if "finetune" not in measured.controls:
            result["sentence"] = (
                f"{_kept(measured)} No fine-tuned arm was trained, so whether distilling helped is "
                f"unknown; add `train.arms: [finetune]`. {last}"
            )
            return result
        found = compare(measured, MEASURES, "finetune", "plain fine-tuning", DECIDING)
        result.update(found.entry())
        result["sentence"] = (
            f"{found.worse_sentence()}{_kept(measured)} {_sentence(measured, found)} {last}"
        )
        if not better["finetune"]:
            result["warnings"].append(
                "The teacher ranks these pairs no better than the fine-tuned student, so its "
                "rewards can hold the student back: train it longer (`teacher.adapt`)."
            )
        result["warnings"] += untold_warnings(found.found["accuracy"])
        return result

    def judge(
        self, artifact: Numbers, reference: Numbers, name: str, tolerance: Tolerance
    ) -> Numbers:
        """An artifact ships by its pair accuracy."""
        return judge_by_accuracy(artifact, reference, name, tolerance, "pair accuracy")

    def page_content(self, report: Numbers, curves: Curves, measured: Measurements) -> PageContent:
        """The curve of the nll, quality against size and speed, and distilling measure by measure
        against plain fine-tuning.
        """
        training = (
            plot_curves(curves, kept_steps(report), unit="nats a pair"),
            f"The nll of the validation pairs while training. {CURVE_WORDS}",
        )
        content = whole_text_content(report, self.quality, training)
        table = comparison_table(report, MEASURES, "finetune")
        sections = [table_section(AGAINST, table, comparison_terms(MEASURES))] if table else []
        pairs = f"{report['teacher']['pairs']:,} held-out pairs of answers"
        return replace(content, measured_on=pairs, middle=sections)

    def best(self, measured: Measurements) -> Numbers | None:
        """The most accurate of teacher and students; of those whose accuracies cannot be told
        apart, one with a better nll.
        """
        return best_way(measured, PAIR_ACCURACY, NLL)


def _warnings(teacher: Numbers) -> list[str]:
    """A warning of a teacher that is not shown to rank better than chance."""
    bounds = teacher["accuracy_interval"]
    if bounds is None or bounds[0] > CHANCE:
        return []
    return [
        f"The teacher ranks {teacher['accuracy']:.1%} of the held-out pairs right (95% interval "
        f"{bounds[0]:.1%} to {bounds[1]:.1%}), which chance could do: it has little to teach."
    ]


def _kept(measured: Measurements) -> str:
    teacher, student = (measured.models[name] for name in ("teacher", "distill"))
    speed = READING_SPEED.ratio_words(student, teacher, "the teacher's")
    with_less = f"{fewer_parameters(student, teacher)}{speed}."
    mine, its = student["accuracy"], teacher["accuracy"]
    return (
        f"The student ranks {mine:.1%} of the held-out pairs right against the teacher's "
        f"{its:.1%}, {with_less}"
    )


def _sentence(measured: Measurements, found: Comparison) -> str:
    distill, finetune = found.models["distill"], found.models["finetune"]
    accuracy, kl = found.found["accuracy"], found.found["kl_to_teacher"]
    values = f"KL {distill['kl_to_teacher']:.3f} against {finetune['kl_to_teacher']:.3f}"
    better = [one for one in JUDGED[1:] if found.is_better(one)]
    also = ""
    if better:
        conjunction = "but" if found.measures[0] in found.worse else "and"
        also = f" in pair accuracy, {conjunction} is better in "
        also += f"{listed([one.name for one in better])},"
    shown = ", ".join(map(found.numbers, [PAIR_ACCURACY, *better]))
    return (
        f"On held-out pairs, distilling {against_fine_tuning(accuracy, better='higher')}{also} "
        f"{at_counts(measured, 'texts')}: {shown}, {closeness(kl, values)}."
    )
