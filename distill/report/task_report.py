"""What the report of a task says: its columns, its verdict, what is fit to ship, its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from distill.evaluation.job import Numbers
from distill.report.columns import TableColumns
from distill.report.data_parts import DataParts
from distill.report.html import PageContent, render_report
from distill.report.plots import Curves
from distill.report.selection import Purpose, Quality, Speed, Tolerance, advise, mark_pareto


@dataclass(frozen=True)
class Measurements:
    """What a run measured, as its report reads it.

    models: numbers of teacher, arms and artifacts, by name.
    folder: where the values by token or by text are, in one NAME.npz a model.
    resamples: of the bootstrap behind each interval.
    controls: names of the arms that were trained beside the distilled one.
    costs: the `cost` of report.json.
    tolerance: how much an artifact may lose.
    quantized_base: the base that the specialised student learned on, where that base is quantised,
    it learned on the run's own data, and a merge into full precision was measured; else None.
    parts: the parts of the data that chose and that were measured; None leaves them unsaid.
    """

    models: dict[str, Numbers]
    folder: Path
    resamples: int
    controls: Sequence[str]
    costs: Numbers
    tolerance: Tolerance
    quantized_base: str | None = None
    parts: DataParts | None = None


class TaskReport(Protocol):
    """How the report of a task presents what was measured.

    columns: of the table of teacher and arms. artifact_columns: of the table of artifacts.
    extra_columns: beside `columns`, of models measured without a recipe. quality, speed: what
    artifacts are compared by. purposes: what an artifact is advised for. remedy: what to do where
    no artifact is fit to ship, as a sentence.
    """

    columns: ClassVar[TableColumns]
    artifact_columns: ClassVar[TableColumns]
    extra_columns: ClassVar[TableColumns] = {}
    quality: ClassVar[Quality]
    speed: ClassVar[Speed]
    purposes: ClassVar[Sequence[Purpose]]
    remedy: ClassVar[str]

    def verdict(self, measured: Measurements) -> Numbers:
        """Whether distilling helped: the numbers, `warnings`, and one `sentence`."""
        ...

    def judge(
        self, artifact: Numbers, reference: Numbers, name: str, tolerance: Tolerance
    ) -> Numbers:
        """Whether an artifact `ships`, and the `reason`, against the reference called `name`."""
        ...

    def page_content(self, report: Numbers, curves: Curves, measured: Measurements) -> PageContent:
        """The plots and sections of report.html that only this task has."""
        ...

    def mark_pareto(self, artifacts: dict[str, Numbers]) -> None:
        """Set `pareto` of every artifact."""
        mark_pareto(artifacts, self.quality, self.speed)

    def advise(self, artifacts: dict[str, Numbers]) -> list[Numbers]:
        """Which artifact to ship for what."""
        return advise(artifacts, self.quality, self.speed, self.purposes, self.remedy)

    def render_page(self, report: Numbers, curves: Curves, measured: Measurements) -> str:
        """report.html, from report.json's content."""
        content = self.page_content(report, curves, measured)
        return render_report(report, self.columns, self.artifact_columns, content)
