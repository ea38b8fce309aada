"""What the report of a task says: its columns, its verdict, what is fit to ship, its page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from distill.columns import Columns
from distill.gauge import Measured

if TYPE_CHECKING:
    from distill.exporting import Tolerance
    from distill.run import Run

Curves = dict[str, list[dict[str, float]]]  # history of every trained arm
Tables = tuple[list[list[str]], list[list[str]]]  # of models and of artifacts, as text


@dataclass(frozen=True)
class Account:
    """How a task's measured numbers are told.

    columns: of every model; matrix: of artifacts. verdict: from all measured models and the costs,
    whether distilling helped, in one `sentence`. judge: of an artifact, its reference, the
    reference's name: `ships`, `reason`. mark_fronts: sets `pareto` of every artifact. advise: which
    artifact to ship for what. page: report.html, from report.json's content.
    alone: further columns of models that are measured without a recipe.
    """

    columns: Columns
    matrix: Columns
    verdict: Callable[[Run, Measured, Measured], Measured]
    judge: Callable[[Measured, Measured, str, Tolerance], Measured]
    mark_fronts: Callable[[dict[str, Measured]], None]
    advise: Callable[[dict[str, Measured]], list[Measured]]
    page: Callable[[Run, Measured, Tables, Curves], str]
    alone: Columns = field(default_factory=dict)
