"""The student that is cut out of the teacher: its shape, its parts, a refit, and the record."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from attar.anatomy import num_layers
from distill.calibration import calibration_rows
from distill.console import aligned
from distill.run import Run
from distill.shapes import search_shape
from students.build import StudentConfig, cut_student, save_cut

log = logging.getLogger(__name__)


def cut(run: Run) -> dict[str, Any]:
    """Cut the student out of the teacher as the recipe says and save it; gives what was kept.

    Raises `RecipeError` where the recipe asks for what this teacher cannot give.
    """
    config, teacher = run.recipe.student, run.task.teacher(run)
    found: dict[str, Any] = {"teacher": run.teacher.model}
    if config.target is not None:
        shape = search_shape(run, teacher, config.target)
        for line in aligned(shape.table()):
            log.info("build: %s", line)
        config, found = shape.config, {**found, **shape.record()}
    student, surgery, rotation = _cut(run, teacher, config)
    surgery = {**surgery, **found}
    del teacher
    save_cut(student, surgery, rotation, run.tokenizer, run.student_folder, run.trusts_code)
    return {key: surgery[key] for key in ("kept", "by", "refit")}


def _cut(run: Run, teacher: nn.Module, config: StudentConfig) -> Any:
    blocks = list(range(num_layers(teacher)))
    if config.layers is not None:
        blocks = run.task.choose_blocks(run, teacher, config.layers)
    calibration_BT = None
    if config.reads_text:
        calibration_BT = calibration_rows(run.data()[0], config.calibration_tokens)
        log.info("build: %d x %d calibration tokens", *calibration_BT.shape)

    def on_refit(done: int, of: int) -> None:
        log.info("build: maps of block %d of %d refitted", done, of)

    return cut_student(teacher, blocks, config, calibration_BT, on_refit)
