"""Stage `build`: the student before it learns; pretrained, fresh, or cut out of a model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attar.files import bytes_under
from attar.models.fingerprints import weights_fingerprint
from attar.models.generation import end_as_taught, generation_settings
from attar.models.structure import num_layers
from attar.models.task_heads import CAUSAL
from distill.console import aligned
from distill.data.calibration import calibration_rows
from distill.run.context import Run
from distill.run.folder import StageRecord
from distill.stages.fingerprints import data_inputs, teacher_inputs
from distill.stages.shape_search import search_shape
from distill.stages.stage import BUILD, work
from students.config import LayersConfig, StudentConfig
from students.pruning.depth import keep_evenly
from students.pruning.record import (
    PruningRecord,
    compose_records,
    compose_rotations,
    copy_pruning,
    read_pruning,
)
from students.save import cut_student, save_cut, save_student

log = logging.getLogger(__name__)


@work(
    BUILD,
    inputs=lambda run: [
        data_inputs(run),
        teacher_inputs(run),
        run.recipe.student.model_dump(),
        _named_weights(run),
    ],
    outputs=lambda run: [run.folder.student],
)
def build(run: Run, inputs: str) -> StageRecord:
    """Make the student and save it."""
    config = run.recipe.student
    notes: dict[str, Any] = {}
    if config.from_ == "teacher" or config.cuts:
        notes = cut(run)
    elif isinstance(config.from_, str):
        save_student(_that_ends(run, load_whole(run)), run.tokenizer, run.folder.student)
        if run.comes_from_teacher:
            copy_pruning(Path(config.from_), run.folder.student)
    else:
        student = _that_ends(run, run.task.fresh_student(run))
        save_student(student, run.tokenizer, run.folder.student)
    run.task.write_extra_files(run, run.folder.student)
    return StageRecord(BUILD.name, bytes=bytes_under(run.folder.student), notes=notes)


def _named_weights(run: Run) -> str | None:
    """Fingerprint of the weights of the model that `student.from` names, or None; the teacher's
    own are known from its identity, unless a server gives its signals.
    """
    source, teacher = run.recipe.student.from_, run.recipe.teacher
    if source == "teacher":
        return None if teacher.server is None else weights_fingerprint(teacher.model)
    return weights_fingerprint(source) if isinstance(source, str) else None


def cut(run: Run) -> dict[str, Any]:
    """Cut the student out of the teacher, or of the model that `student.from` names, as the recipe
    says, and save it; gives what was kept.

    Raises `RecipeError` where the recipe asks for what this model cannot give.
    """
    config, whole = run.recipe.student, load_whole(run)
    found: dict[str, Any] = {"teacher": run.teacher.model, "model": run.cut_model}
    if config.target is not None:
        shape = search_shape(run, whole, config.target)
        for line in aligned(shape.table()):
            log.info("build: %s", line)
        config, found = shape.config, {**found, **shape.record()}
    student, pruning, rotation = _cut(run, whole, config)
    pruning = {**pruning, **found}
    del whole
    if run.recipe.student.from_ != "teacher":
        pruning, rotation = _through(run, pruning, rotation)
    save_cut(
        _that_ends(run, student), pruning, rotation, run.tokenizer, run.folder.student,
        run.trusts_student,
    )  # fmt: skip
    return {key: pruning[key] for key in ("kept", "by", "refit")}


def load_whole(run: Run) -> nn.Module:
    """The model that is cut, in float32: the teacher, or the model that `student.from` names."""
    config = run.recipe.student
    if config.from_ == "teacher":
        return run.task.load_teacher(run)
    return run.task.load(run, str(config.from_), config.trust_remote_code)


def _that_ends(run: Run, student: nn.Module) -> nn.Module:
    """The student, with settings by which it stops where its teacher taught it to; one with a
    tokenizer of its own stops by its own ids.
    """
    if run.task.auto == CAUSAL and not run.transports:
        teacher = run.teacher_config.get_text_config(), generation_settings(run.teacher.model)
        end_as_taught(student, run.tokenizer, teacher)
    return student


def _cut(run: Run, whole: nn.Module, config: StudentConfig) -> Any:
    blocks = list(range(num_layers(whole)))
    if config.layers is not None:
        blocks = _blocks(run, whole, config.layers)
    calibration_BT = None
    if config.reads_text:
        calibration_BT = calibration_rows(run.data()[0], config.calibration_tokens)
        log.info("build: %d x %d calibration tokens", *calibration_BT.shape)

    return cut_student(whole, blocks, config, calibration_BT)


def _blocks(run: Run, whole: nn.Module, layers: LayersConfig) -> list[int]:
    """Numbers of the blocks that stay, by the recipe."""
    depth, keep, tokens = num_layers(whole), layers.keep, layers.calibration_tokens
    if isinstance(keep, list):
        return keep
    if layers.by == "even":
        return keep_evenly(depth, keep)
    if layers.by == "influence":
        return run.task.keep_by_influence(run, whole, keep, tokens)
    gone = run.task.removal_order(run, whole, depth - keep, tokens)
    return [block for block in range(depth) if block not in gone]


def _through(
    run: Run, pruning: PruningRecord, rotation: Tensor | None
) -> tuple[PruningRecord, Tensor | None]:
    """The record relative to the teacher, where the model that was cut had been cut out of it."""
    first = read_pruning(run.cut_model, run.teacher.model)
    if first is None:
        return {**pruning, "teacher": None}, rotation
    return compose_records(first, pruning), compose_rotations(
        Path(run.cut_model), rotation, pruning
    )
