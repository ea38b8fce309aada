"""Arms that learn from the teacher, the teacher itself, and a student that learns preferences."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from distill.comparison.arms import ARMS_COMPARED, ArmWork, Family
from distill.comparison.cells import Comparison, Values
from distill.comparison.measuring import job_of, measure_parts, weights_of
from distill.comparison.outcome import Outcome
from distill.comparison.tuned_arms import (
    FLOAT_BYTES,
    Tuned,
    add_training,
    measure_tuned,
    trained_parameters,
)
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import short_form
from distill.runtimes.runtime import ModelSource
from distill.training.arms import DISTILL

ANSWERS = {"samples": 1}  # keys of `data.answers` where the recipe has none
OWN_STAGES = ("adapt-teacher", "answer", "cache")  # whose time is part of what distilling costs


class Distilled:
    """The recipe as it is written, on the cell's rows."""

    family: ClassVar[Family] = "distilling"
    passes: ClassVar[float] = 8.0

    def refusal(self, comparison: Comparison) -> str | None:
        """None: it is what recipes are for."""
        return None

    def values(self, work: ArmWork) -> Values:
        """The recipe of its run."""
        comparison = work.comparison
        values = comparison.base_values(work.cell, comparison.recipe.task)
        keys = comparison.training_keys(work.cell, work.arm)
        values["train"] = {**keys, "arms": []}
        adapt = comparison.recipe.teacher.adapt
        if adapt is None and comparison.recipe.cache.dir is None:  # one cache for all cells
            shared = {"dir": str(comparison.folder / "cache")}
            values["cache"] = {**values.get("cache", {}), **shared}
        if adapt is not None:
            own = short_form(comparison.recipe)["teacher"]["adapt"]
            steps = math.ceil(work.cell.labels / (adapt.batch_size * adapt.accumulate))
            epochs = max(adapt.epochs, math.ceil(comparison.config.least_steps / steps))
            values["teacher"] = {**values["teacher"], "adapt": {**own, "epochs": epochs}}
        return values

    def run(self, work: ArmWork) -> Run:
        """Its run."""
        return work.comparison.open(self.values(work), work.folder / "run")

    def work(self, work: ArmWork) -> Outcome:
        """Run the recipe up to the trained student, and measure it."""
        run = self.run(work)
        run_stages(run, ["adapt-teacher", "answer", "cache", "build", "train"])
        outcome = work.outcome()
        for stage in OWN_STAGES:
            add_stage(outcome, run, stage)
        add_training(outcome, run.folder.arm(DISTILL) / "result.json")
        student = run.folder.arm_student()
        outcome.model = work.relative(student)
        outcome.trained = trained_parameters(run)
        outcome.task_bytes = FLOAT_BYTES * outcome.trained
        measure_tuned(work, run, DISTILL, ModelSource(str(student)), outcome)
        return outcome


@ARMS_COMPARED.add("distill")
class DistilledStudent(Distilled):
    """The distilled student."""

    about: ClassVar[str] = "the student learns from the teacher, as the recipe says"


@ARMS_COMPARED.add("distill-answers")
class DistilledOnAnswers(Distilled):
    """Distilled on what the teacher writes."""

    about: ClassVar[str] = "the student learns from answers that the teacher writes, and from it"
    passes: ClassVar[float] = 12.0

    def refusal(self, comparison: Comparison) -> str | None:
        """Language models write answers."""
        return "rows have classes, and nothing to write" if comparison.labelled else None

    def values(self, work: ArmWork) -> Values:
        """The recipe of its run."""
        values = super().values(work)
        values["data"] = {**values["data"], "answers": values["data"].get("answers") or ANSWERS}
        return values


@ARMS_COMPARED.add("preference")
class Preferred(Tuned):
    """Tuned on judged pairs."""

    about: ClassVar[str] = "the student learns which of two answers is the better one (DPO)"
    passes: ClassVar[float] = 6.0

    def refusal(self, comparison: Comparison) -> str | None:
        """Rows must hold a chosen and a rejected answer."""
        if comparison.labelled or not {"chosen", "rejected"} <= comparison.parts.train[0].keys():
            return "rows have no chosen and rejected answers"
        return None

    def values(self, work: ArmWork) -> Values:
        """The recipe of its run."""
        values = super().values(work)
        terms: list[dict[str, Any]] = [
            {"loss": "preference"}, {"loss": "cross_entropy", "weight": 0.2}
        ]  # fmt: skip
        own = work.comparison.config.settings.get(work.arm, {})
        values["train"]["objective"] = own.get("objective", terms)
        return values


@ARMS_COMPARED.add("teacher")
class Teacher(Distilled):
    """The teacher as it is used."""

    about: ClassVar[str] = "the teacher, fine-tuned where the recipe says so"
    family: ClassVar[Family] = "ceiling"
    passes: ClassVar[float] = 6.0

    def refusal(self, comparison: Comparison) -> str | None:
        """It must be here to be measured."""
        return (
            "the teacher is on a server" if comparison.recipe.teacher.server is not None else None
        )

    def run(self, work: ArmWork) -> Run:
        """The run of the distilled student, whose teacher it is."""
        folder = work.comparison.cell_folder(work.cell, "distill")
        values = Distilled().values(ArmWork(work.comparison, work.cell, "distill"))
        return work.comparison.open(values, folder / "run")

    def work(self, work: ArmWork) -> Outcome:
        """Fine-tune it, and measure it."""
        run = self.run(work)
        outcome = work.outcome()
        run.prepare_data()
        if run.recipe.teacher.adapt is not None:
            run_stages(run, ["adapt-teacher"])
            add_stage(outcome, run, "adapt-teacher")
        outcome.task_bytes = weights_of(run.folder.teacher) or None
        outcome.model = run.teacher.model
        measure_parts(work, run, job_of(run, "teacher"), outcome)
        return outcome


def add_stage(outcome: Outcome, run: Run, stage: str) -> None:
    """Add what a finished stage took to an outcome."""
    record = run.folder.record(stage)
    if record is not None:
        outcome.seconds += record.seconds
        outcome.peak_memory_bytes = max(outcome.peak_memory_bytes, record.peak_memory_bytes)
