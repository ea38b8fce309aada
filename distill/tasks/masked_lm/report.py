"""The report of a run on masked tokens: its verdict is that of language models."""

from __future__ import annotations

from typing import ClassVar

from distill.evaluation.job import Measured
from distill.report.columns import COLUMNS, MATRIX, RUN_BY, SHIPS, TEXT_SPEED, Columns
from distill.report.html import plot_curves
from distill.report.selection import Tolerance, judge
from distill.report.task_report import Curves, Measurements, Tables, TaskReport
from distill.report.whole_text_page import Quality, advise, mark_fronts, text_page
from distill.tasks.causal_lm.report import verdict

MASKED_COLUMNS: Columns = {
    **{name: COLUMNS[name] for name in ("nll", "ppl")},
    "accuracy": ("accuracy", lambda r: f"{100 * r['accuracy']:.1f}%"),
    **{name: COLUMNS[name] for name in ("KL", "top-1", "M params", "MB")},
    **TEXT_SPEED,
}
MASKED_MATRIX: Columns = {
    **RUN_BY,
    **{name: MASKED_COLUMNS[name] for name in ("ppl", "accuracy", "KL", "top-1")},
    "ppl lost": MATRIX["ppl lost"],
    "MB": COLUMNS["MB"],
    **TEXT_SPEED,
    **SHIPS,
}
QUALITY = Quality(
    "perplexity", "perplexity of masked tokens", lambda r: f"ppl {r['perplexity']:.2f}", 1.0, False
)


def page(report: Measured, tables: Tables, curves: Curves) -> str:
    """report.html."""
    legend = (
        "nll (nats a masked token), perplexity and accuracy: of the tokens that were masked; "
        "KL(teacher || model) on the full vocabulary; top-1: share of masked tokens where the most "
        "likely one is the teacher's; texts/s in batches, ms for one text alone; peak memory of a "
        "process that loads the model and reads texts. Intervals are in report.json."
    )
    lost = "against the same student in full precision, of its perplexity"
    training = plot_curves(curves), "Validation nll while training (nats a masked token)."
    return text_page(report, tables, QUALITY, [training], legend, lost)


class MaskedLMReport(TaskReport):
    """The report on models of masked tokens."""

    columns: ClassVar[Columns] = MASKED_COLUMNS
    matrix: ClassVar[Columns] = MASKED_MATRIX

    def verdict(self, found: Measurements) -> Measured:
        """That of language models."""
        return verdict(found)

    def judge(
        self, artifact: Measured, reference: Measured, name: str, tolerance: Tolerance
    ) -> Measured:
        """By perplexity."""
        return judge(artifact, reference, name, tolerance)

    def mark_fronts(self, artifacts: dict[str, Measured]) -> None:
        """Perplexity against bytes and speed."""
        mark_fronts(QUALITY, artifacts)

    def advise(self, artifacts: dict[str, Measured]) -> list[Measured]:
        """For speed and for size."""
        return advise(QUALITY, artifacts)

    def page(self, report: Measured, tables: Tables, curves: Curves, found: Measurements) -> str:
        """With the training curve."""
        return page(report, tables, curves)


REPORT = MaskedLMReport()
