"""What a stage is, and the table of stages in the order in which data flows.

    adapt-teacher -> answer -> cache -> build -> train -> specialize -> export -> evaluate -> report

Each stage reads files and leaves files in the run folder. Its file beside this one has the function
that does the work, under `@work(STAGE, inputs=..., outputs=...)`. This module imports no heavy
library, so that the command line can list the stages at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attar.registry import Registry

if TYPE_CHECKING:
    from distill.run.context import Run
    from distill.run.folder import StageRecord


@dataclass(frozen=True)
class Stage:
    """A stage of a run. needs: the stages that come before it. parallel: whether all processes
    take part; the first one does the others alone.
    """

    name: str
    help: str
    needs: tuple[str, ...] = ()
    parallel: bool = False

    @property
    def command(self) -> str:
        """The command that runs it alone."""
        return "cache build" if self.name == "cache" else self.name


ADAPT_TEACHER = Stage(
    "adapt-teacher", "Fine-tune the teacher on the task first (teacher.adapt).", parallel=True
)
ANSWER = Stage(
    "answer",
    "Let a model write the answers that are learned (data.answers).",
    ("adapt-teacher",),
    parallel=True,
)
CACHE = Stage(
    "cache",
    "Run the teacher once and keep its signals.",
    ("adapt-teacher", "answer"),
    parallel=True,
)
BUILD = Stage(
    "build",
    "Make the student: pretrained, fresh, or cut from the teacher.",
    ("adapt-teacher", "answer"),
)
TRAIN = Stage(
    "train", "Train the distilled student and its control arms.", ("cache", "build"), parallel=True
)
SPECIALIZE = Stage(
    "specialize",
    "Train the distilled student further: an adapter, or its own weights.",
    ("train",),
    parallel=True,
)
EXPORT = Stage("export", "Make the artifacts: deployable forms.", ("train", "specialize"))
EVALUATE = Stage("evaluate", "Measure teacher, arms and artifacts.", ("build", "train", "export"))
REPORT = Stage("report", "Write report.json and report.html.", ("evaluate",))
STAGES = {
    stage.name: stage
    for stage in (
        ADAPT_TEACHER, ANSWER, CACHE, BUILD, TRAIN, SPECIALIZE, EXPORT, EVALUATE, REPORT,
    )
}  # fmt: skip


@dataclass(frozen=True)
class StageWork:
    """What a stage does. do: the work, given the run and the fingerprint of the stage's inputs.
    inputs: the parts of the recipe, and the files, that it reads itself. outputs: the files, and
    folders of files, in the run folder that it leaves for later commands; its record has their
    checksums. made: whether what it leaves elsewhere is there. skipped: whether the recipe leaves
    the stage out. spent: folders of trainings whose checkpoints are deleted once it is finished.
    """

    do: Callable[[Run, str], StageRecord]
    inputs: Callable[[Run], list[Any]]
    outputs: Callable[[Run], list[Path]]
    made: Callable[[Run], bool]
    skipped: Callable[[Run], bool]
    spent: Callable[[Run], list[Path]]


WORK: Registry[StageWork] = Registry("stage")


def work(
    stage: Stage,
    *,
    inputs: Callable[[Run], list[Any]],
    outputs: Callable[[Run], list[Path]] = lambda run: [],
    made: Callable[[Run], bool] = lambda run: True,
    skipped: Callable[[Run], bool] = lambda run: False,
    spent: Callable[[Run], list[Path]] = lambda run: [],
) -> Callable[[Callable[[Run, str], StageRecord]], Callable[[Run, str], StageRecord]]:
    """Decorator that enrols the function of a stage; see `StageWork`."""

    def enrol(do: Callable[[Run, str], StageRecord]) -> Callable[[Run, str], StageRecord]:
        WORK.add(stage.name)(StageWork(do, inputs, outputs, made, skipped, spent))
        return do

    return enrol
