"""Arms of a comparison: one registered class for each way to do a task.

An arm says which recipes it does not fit, and does the task in a cell: it learns what it has to, as
an ordinary run on the cell's rows, and is measured on the rows that all arms are measured on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol, get_args

from attar.registry import Registry
from distill.comparison.cells import Cell, Comparison
from distill.comparison.outcome import Outcome

Family = Literal["baseline", "prompting", "features", "tuning", "distilling", "ceiling"]
FAMILIES: tuple[Family, ...] = get_args(Family)  # in the order of tables


@dataclass(frozen=True)
class ArmWork:
    """What an arm works on: the comparison, its cell, and the arm's folder there."""

    comparison: Comparison
    cell: Cell
    arm: str

    @property
    def folder(self) -> Path:
        """Of the arm in this cell."""
        return self.comparison.cell_folder(self.cell, self.arm)

    def outcome(self) -> Outcome:
        """An empty outcome of this arm here."""
        return Outcome(self.arm, self.cell.labels, self.cell.seed)

    def relative(self, path: Path) -> str:
        """A path as an outcome keeps it."""
        return str(path.relative_to(self.comparison.folder))


class ComparedArm(Protocol):
    """A way to do a task.

    about: what it is, as a clause. family: by which claims and plots group arms. passes: about how
    often it reads each training token, a backward counted as two, which orders arms by cost before
    any is timed; 0 where it learns nothing.
    """

    about: ClassVar[str]
    family: ClassVar[Family]
    passes: ClassVar[float]

    def refusal(self, comparison: Comparison) -> str | None:
        """Why it does not fit the recipe; None where it does."""

    def work(self, work: ArmWork) -> Outcome:
        """Learn and measure it. Raises `UserError` where it cannot be done."""


ARMS_COMPARED: Registry[type[ComparedArm]] = Registry("arm")
