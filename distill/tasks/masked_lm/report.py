"""The report of a run on masked tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from distill.evaluation.job import Numbers
from distill.report.columns import (
    MODEL_COLUMNS,
    PPL_CHANGE_COLUMN,
    RUNTIME_COLUMN,
    SELECTION_COLUMNS,
    TEXT_SPEED_COLUMNS,
    Column,
    TableColumns,
)
from distill.report.html import PageContent
from distill.report.markup import table_section
from distill.report.measurements import Measurements
from distill.report.paired_difference import paired_difference, perplexity_lost
from distill.report.plots import CURVE_WORDS, Curves, plot_curves
from distill.report.selection import (
    Purpose,
    Quality,
    Tolerance,
    judge_by_perplexity,
)
from distill.report.speeds import READING_SPEED, Speed
from distill.report.task_report import TaskReport
from distill.report.trainings import kept_steps
from distill.report.verdict import comparison_table, comparison_terms
from distill.tasks.causal_lm.report import AGAINST, MEASURES, CausalLMReport
from distill.tasks.whole_text_report import (
    WHOLE_TEXT_PURPOSES,
    WHOLE_TEXT_REMEDY,
    whole_text_content,
)

MASKED_COLUMNS: TableColumns = {
    "nll": MODEL_COLUMNS["nll"]._replace(meaning="mean of -log p(token), nats a masked token"),
    "ppl": MODEL_COLUMNS["ppl"],
    "accuracy": Column(
        "accuracy",
        lambda r: f"{100 * r['accuracy']:.1f}%",
        "share of masked tokens that are the most likely token",
    ),
    **{title: MODEL_COLUMNS[title] for title in ("KL", "top-1", "M params", "MB")},
    **TEXT_SPEED_COLUMNS,
}


class MaskedLMReport(TaskReport):
    """The report on models of masked tokens."""

    columns: ClassVar[TableColumns] = MASKED_COLUMNS
    artifact_columns: ClassVar[TableColumns] = {
        **RUNTIME_COLUMN,
        **{title: MASKED_COLUMNS[title] for title in ("ppl", "accuracy", "KL", "top-1")},
        **PPL_CHANGE_COLUMN,
        "MB": MASKED_COLUMNS["MB"],
        **TEXT_SPEED_COLUMNS,
        **SELECTION_COLUMNS,
    }
    quality: ClassVar[Quality] = Quality(
        "perplexity",
        "perplexity of masked tokens",
        lambda numbers: f"ppl {numbers['perplexity']:.2f}",
        higher=False,
    )
    compared: ClassVar[str] = "nll"
    tolerated: ClassVar[str] = "perplexity"
    speed: ClassVar[Speed] = READING_SPEED
    purposes: ClassVar[Sequence[Purpose]] = WHOLE_TEXT_PURPOSES
    remedy: ClassVar[str] = WHOLE_TEXT_REMEDY

    def verdict(self, measured: Measurements) -> Numbers:
        """The verdict of language models, on masked tokens."""
        return CausalLMReport().verdict(measured)

    def judge(
        self, artifact: Numbers, reference: Numbers, name: str, tolerance: Tolerance
    ) -> Numbers:
        """An artifact ships by its perplexity."""
        return judge_by_perplexity(artifact, reference, name, tolerance)

    def lost(self, measured: Measurements, artifact: str, reference: str) -> Numbers:
        """The share by which its perplexity is higher."""
        return perplexity_lost(paired_difference(measured, "nll", artifact, reference))

    def page_content(self, report: Numbers, curves: Curves, measured: Measurements) -> PageContent:
        """The curve of the nll, quality against size and speed, and distilling measure by measure
        against plain fine-tuning.
        """
        training = (
            plot_curves(curves, kept_steps(report), unit="nats a masked token"),
            f"The nll of the validation part while training. {CURVE_WORDS}",
        )
        content = whole_text_content(report, self.quality, training)
        table = comparison_table(report, MEASURES, "finetune")
        return replace(
            content,
            middle=[table_section(AGAINST, table, comparison_terms(MEASURES))] if table else [],
        )
