"""What the report of a task says: its columns, its verdict, what is fit to ship, its page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from distill.evaluation.job import Numbers
from distill.report.columns import TableColumns
from distill.report.html import PageContent, render_report
from distill.report.measurements import Measurements
from distill.report.paired_difference import UNTOLD, direction, negated, paired_difference
from distill.report.plots import Curves
from distill.report.selection import (
    Purpose,
    Quality,
    Tolerance,
    advise,
    is_certain,
    mark_pareto,
)
from distill.report.speeds import Speed


class TaskReport(Protocol):
    """How the report of a task presents what was measured.

    columns: of the table of teacher and arms. artifact_columns: of the table of artifacts.
    extra_columns: beside `columns`, of models measured without a recipe. quality, speed: what
    artifacts are compared by. compared: the array by token or text of which the quality is a
    falling or rising mean. tolerated: the tolerance that it is held to. purposes: what an artifact
    is advised for. remedy: what to do where no artifact is fit to ship, as a sentence.
    """

    columns: ClassVar[TableColumns]
    artifact_columns: ClassVar[TableColumns]
    extra_columns: ClassVar[TableColumns] = {}
    quality: ClassVar[Quality]
    compared: ClassVar[str]
    tolerated: ClassVar[str]
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

    def lost(self, measured: Measurements, artifact: str, reference: str) -> Numbers:
        """What an artifact loses against its reference, as `paired_difference`: above 0 is worse.

        It is in the unit of its tolerance.
        """
        found = paired_difference(measured, self.compared, artifact, reference)
        return negated(found) if self.quality.higher else found

    def certainty(self, measured: Measurements, artifact: str, reference: str) -> Numbers:
        """`lost_interval`: of what an artifact loses; `certain`: whether it lies on one side of the
        tolerance. Nothing where no predictions were kept.
        """
        if not all((measured.folder / f"{name}.npz").exists() for name in (artifact, reference)):
            return {}
        interval = self.lost(measured, artifact, reference)["interval"]
        tolerated = getattr(measured.tolerance, self.tolerated)
        return {"lost_interval": interval, "certain": is_certain(interval, tolerated)}

    def below(self, measured: Measurements, artifact: str, baselines: Sequence[str]) -> list[str]:
        """Names of the baselines whose quality is significantly better, the best first."""
        good = "higher" if self.quality.higher else "lower"
        found = {
            name: paired_difference(measured, self.compared, name, artifact) for name in baselines
        }
        better = [name for name, one in found.items() if direction(one) == good]
        return sorted(better, key=lambda name: self.quality.loss(measured.models[name]))

    def mark_pareto(
        self, artifacts: dict[str, Numbers], measured: Measurements | None = None
    ) -> None:
        """Set `pareto` of every artifact; with their predictions, only differences that can be told
        from chance count.
        """

        def is_better(one: str, other: str) -> bool:
            assert measured is not None
            files = [measured.folder / f"{name}.npz" for name in (one, other)]
            if not all(file.exists() for file in files):
                return True
            found = paired_difference(measured, self.compared, one, other)
            good = "higher" if self.quality.higher else "lower"
            return direction(found) in (good, UNTOLD)

        known = None if measured is None else is_better
        mark_pareto(artifacts, self.quality, self.speed, known)

    def best(self, measured: Measurements) -> Numbers | None:
        """The best of teacher, students and baselines, as `best_way`; None where a task has no
        number by which students are compared with their teacher.
        """
        return None

    def advise(
        self, artifacts: dict[str, Numbers], baselines: dict[str, Numbers] | None = None
    ) -> list[Numbers]:
        """Which artifact to ship for what, or which baseline in its place."""
        return advise(artifacts, self.quality, self.speed, self.purposes, self.remedy, baselines)

    def render_page(self, report: Numbers, curves: Curves, measured: Measurements) -> str:
        """report.html, from report.json's content."""
        content = self.page_content(report, curves, measured)
        return render_report(report, self.columns, self.artifact_columns, content)
