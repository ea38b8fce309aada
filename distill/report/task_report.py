"""What the report of a task says: its columns, its verdict, what is fit to ship, its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from distill.evaluation.job import Measured
from distill.report.columns import Columns
from distill.report.selection import Tolerance

Curves = dict[str, list[dict[str, float]]]  # history of every trained arm
Tables = tuple[list[list[str]], list[list[str]]]  # of models and of artifacts, as text


@dataclass(frozen=True)
class Measurements:
    """What a run measured, as its report reads it.

    models: numbers of teacher, arms and artifacts by name. folder: where the arrays by token or
    text lie, one NAME.npz a model. resamples: behind each interval. controls: the arms trained
    beside the distilled one. costs: of stages and arms. tolerance: what an artifact may lose.
    quantized_base: the base that the specialised student learned on, on the run's own data, where
    that base is quantised and a merge into full precision was measured.
    """

    models: dict[str, Measured]
    folder: Path
    resamples: int
    controls: Sequence[str]
    costs: Measured
    tolerance: Tolerance
    quantized_base: str | None = None


class TaskReport(Protocol):
    """How the report of a task presents what was measured.

    columns: of every model. matrix: of artifacts. more_columns: of models measured without a
    recipe, beside `columns`.
    """

    columns: ClassVar[Columns]
    matrix: ClassVar[Columns]
    more_columns: ClassVar[Columns] = {}

    def verdict(self, found: Measurements) -> Measured:
        """Whether distilling helped: the numbers, `warnings`, and one `sentence`."""
        ...

    def judge(
        self, artifact: Measured, reference: Measured, name: str, tolerance: Tolerance
    ) -> Measured:
        """Whether an artifact `ships`, and the `reason`, against the reference called `name`."""
        ...

    def mark_fronts(self, artifacts: dict[str, Measured]) -> None:
        """Set `pareto` of every artifact."""
        ...

    def advise(self, artifacts: dict[str, Measured]) -> list[Measured]:
        """Which artifact to ship for what."""
        ...

    def page(self, report: Measured, tables: Tables, curves: Curves, found: Measurements) -> str:
        """report.html, from report.json's content."""
        ...
