"""Stage `adapt-teacher`: fine-tune the teacher on the task first, where the recipe says so."""

from __future__ import annotations

import logging
from typing import Any

from attar.models.loading import resolve_precision
from distill.run.context import Run
from distill.run.folder import StageRecord, on_first_process
from distill.stages.fingerprints import data_inputs, discard_other, teacher_inputs
from distill.stages.stage import ADAPT_TEACHER, work
from distill.stages.training import run_training
from distill.training.config import spent
from distill.training.layerwise_lr import how_much_learns
from students.save import save_student
from students.tuning.trainable import prepare_learning

log = logging.getLogger(__name__)


@work(
    ADAPT_TEACHER,
    inputs=lambda run: [data_inputs(run), teacher_inputs(run)],
    outputs=lambda run: [run.folder.teacher],
    skipped=lambda run: run.recipe.teacher.adapt is None,
    spent=lambda run: spent(run.recipe.teacher.adapt, run.folder.arm("teacher")),
)
def adapt_teacher(run: Run, inputs: str) -> StageRecord:
    """Fine-tune the teacher, and save it in the dtype that the recipe uses it in."""
    config, teacher = run.recipe.teacher.adapt, run.recipe.teacher
    assert config is not None
    model: Any = run.task.load(run, teacher.model, teacher.trust_remote_code)
    prepare_learning(model, config.trainable, config.reinitialize, run.recipe.seed)
    log.info("teacher: %s", how_much_learns(model))
    folder = run.folder.arm("teacher")
    with on_first_process() as first:
        if first:
            discard_other(folder, inputs)
    result = run_training(run, "teacher", "teacher.adapt", model, config, run.recipe.data, folder)
    with on_first_process() as first:
        if first:
            dtype = resolve_precision(teacher.dtype, model.config)
            save_student(model.to(dtype), run.tokenizer, run.folder.teacher)
            run.task.write_extra_files(run, run.folder.teacher)
    notes = {
        "best_step": result.best_step,
        "steps": result.steps,
        "seconds": result.seconds,
        "history": [one for one in result.history if "validation" in one],
    }
    return StageRecord(ADAPT_TEACHER.name, tokens=result.tokens, notes=notes)
