"""Which artifact of a run is to be shipped, by what was measured: `chat` and `push` ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from attar.device import default_device
from attar.errors import RunError, nearest
from distill.evaluation.job import Numbers
from distill.report.task_report import TaskReport
from distill.run.context import Run
from distill.run.folder import RunFolder
from distill.run.load import load_recipe
from distill.stages.report import judged, measurements
from distill.stages.stage import EVALUATE
from students.artifacts.artifact import failure_of


@dataclass(frozen=True)
class Shipping:
    """What the measurements of a run say about its artifacts.

    artifacts: numbers of each by name, with `fit` and `runtime` as in report.json. specialized:
    whether the run specialises its student.
    """

    artifacts: dict[str, Numbers]
    report: TaskReport
    specialized: bool

    def reason_against(self, name: str) -> str | None:
        """Why an artifact is not fit to ship, as a clause; None where it is."""
        fit = self.artifacts[name]["fit"]
        return None if fit["ships"] else str(fit["reason"]).rstrip(".")

    def choose(self, suits: Callable[[Numbers], bool] = lambda _: True) -> tuple[str, str] | None:
        """(name, purpose) of the first artifact that the report advises; None where none is fit.

        What it advises for a device that this machine does not have comes last.

        Where the student was specialised, artifacts without that are not chosen: they would answer
        as if nothing had been learned last. suits: whether an artifact can serve at all.
        """
        asked = {
            name: numbers
            for name, numbers in self.artifacts.items()
            if suits(numbers)
            and (numbers["fit"]["reference"] == "specialized" or not self.specialized)
        }
        here = default_device().type
        purposes = self.report.purposes
        elsewhere = {one.name for one in purposes if one.device not in (None, here)}
        advice = sorted(self.report.advise(asked), key=lambda one: one["for"] in elsewhere)
        return next(
            ((one["artifact"], one["for"]) for one in advice if one["artifact"] is not None), None
        )


def read_shipping(folder: Path) -> Shipping | None:
    """What is known of a run's artifacts; None where they were not measured as they are now."""
    files = RunFolder(folder)
    if files.record(EVALUATE.name) is None or files.faults(EVALUATE.name):
        return None
    run = Run(load_recipe(str(folder / "recipe.yaml")), folder)
    if not all((files.evaluation / f"{name}.json").is_file() for name in run.artifacts):
        return None  # the recipe names artifacts since
    measured, _ = judged(run, measurements(run, {}))
    return Shipping(measured, run.task.report, run.recipe.specialize is not None)


def named_artifact(run: Path, name: str, known: Mapping[str, Path], hint: str = "") -> Path:
    """The folder of the artifact that a user names, among the finished ones of a run.

    hint: said of another name instead of the nearest known one. Raises `RunError` for an artifact
    that could not be made, with the reason, and for a name that the run does not have.
    """
    if name in known:
        return known[name]
    reason = failure_of(run / "artifacts" / name)
    if reason is not None:
        raise RunError(f"`{name}` of {run} could not be made: {reason}")
    raise RunError(
        f"{run} has no artifact `{name}`; it has {', '.join(known) or 'none'}."
        f"{hint or nearest(name, known)}"
    )
