"""Train a run's student to a step of its schedule, and measure it there; it goes on from there."""

from __future__ import annotations

from pathlib import Path

from attar.files import clear, fingerprint, read_json
from distill.console import log_to_file
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.stages.stage import ADAPT_TEACHER, ANSWER, BUILD, CACHE, TRAIN
from distill.stages.status import made_from
from distill.stages.train import train_to_step
from distill.stages.training_steps import training_steps
from distill.training.arms import DISTILL
from distill.trials.values import (
    ValidationValues,
    measure_on_validation,
    read_values,
    write_values,
)

BEFORE = [stage.name for stage in (ADAPT_TEACHER, ANSWER, CACHE, BUILD)]


def total_steps(run: Run) -> int:
    """Optimiser steps of the whole training; stages before it are run where they are not done."""
    run_stages(run, BEFORE)
    return training_steps(run, run.recipe.train)


def advance(run: Run, steps: int, *, arm: str = DISTILL) -> ValidationValues:
    """Train an arm to this step of its full schedule, and measure its student on the validation
    part. Stages before the training are run where they are not done.

    A later call, or `distill run`, goes on from there and ends bit for bit as if it had never
    paused. From the last step on, the stage `train` is done and its result is measured: the weights
    that the recipe keeps. What was measured before is read again. Raises `RunError` for a step
    that the training has passed without being measured there.
    """
    assert steps >= 0, "a training has no step before its first"
    total = total_steps(run)
    step = min(steps, total)
    made = made_from(run, TRAIN.name)
    measuring = run.recipe.evaluate.model_dump(include={"tokens", "batch_size"})
    inputs, folder = fingerprint([made, arm, step, measuring]), run.folder.arm(arm) / "values"
    file = folder / f"{step}.json"
    if (found := read_values(file, inputs)) is not None:
        return found
    if step == total:
        run_stages(run, [*BEFORE, TRAIN.name])
    with run.folder.owned(), log_to_file(run.folder.log):
        if step == total:
            values = _measured(run, arm, total, folder)
        else:
            values = _paused(run, arm, step, total, folder)
        write_values(file, values, inputs)
    return values


def _measured(run: Run, arm: str, total: int, folder: Path) -> ValidationValues:
    """The values of a trained arm's result."""
    left = read_json(run.folder.arm(arm) / "result.json")
    arrays = measure_on_validation(run, run.folder.arm(arm) / "student", folder)
    name = run.task.metrics.trial_value
    return ValidationValues(total, total, left["tokens"], left["seconds"], name, arrays)


def _paused(run: Run, arm: str, step: int, total: int, folder: Path) -> ValidationValues:
    """The values of the weights of a step, which are a student on disk while they are measured; the
    checkpoint has them from then on.
    """
    aside = run.folder.arm(arm) / f"paused-{step}"
    try:
        result = train_to_step(run, arm, step, aside)
        arrays = measure_on_validation(run, aside, folder)
    finally:
        clear(aside)
    name = run.task.metrics.trial_value
    return ValidationValues(step, total, result.tokens, result.seconds, name, arrays)
