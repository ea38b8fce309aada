"""Stage `adapt-teacher`: fine-tune the teacher on the task first, where the recipe says so."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from attar.distributed import is_first_process
from attar.files import read_json
from attar.models.loading import resolve_precision
from distill.objective.terms import rates_answers
from distill.run.context import Run
from distill.run.folder import StageRecord, on_first_process
from distill.stages.fingerprints import (
    data_inputs,
    discard_other,
    reference_inputs,
    teacher_inputs,
)
from distill.stages.reference import Start
from distill.stages.stage import ADAPT_TEACHER, work
from distill.stages.training import run_training
from distill.training.config import LoopConfig, spent
from distill.training.job import Result
from distill.training.layerwise_lr import how_much_learns
from students.save import save_student
from students.tuning.trainable import prepare_learning

log = logging.getLogger(__name__)
LEAST_GAIN = (
    0.1  # of the way from the most frequent class's share to 1: a teacher below it is warned of
)


@work(
    ADAPT_TEACHER,
    inputs=lambda run: [
        data_inputs(run),
        teacher_inputs(run),
        *reference_inputs(run, run.recipe.teacher.adapt),
    ],
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
    settings = {"reinitialize": config.reinitialize, "seed": run.recipe.seed}
    start, data = Start(teacher.model, settings), run.recipe.data
    result = run_training(
        run, "teacher", "teacher.adapt", model, config, data, folder, start, gold=True
    )
    with on_first_process() as first:
        if first:
            dtype = resolve_precision(teacher.dtype, model.config)
            save_student(model.to(dtype), run.tokenizer, run.folder.teacher)
            run.task.write_extra_files(run, run.folder.teacher)
    _warn_of_little(run, config, result)
    notes = {
        "best_step": result.best_step,
        "steps": result.steps,
        "seconds": result.seconds,
        "history": [one for one in result.history if "validation" in one],
    }
    return StageRecord(ADAPT_TEACHER.name, tokens=result.tokens, notes=notes)


def _warn_of_little(run: Run, config: LoopConfig, result: Result) -> None:
    """Warn where the adapted teacher is hardly better than chance: at classes, or at pairs."""
    measured = [one for one in result.history if "validation_accuracy" in one]
    kept = [one for one in measured if one["step"] == result.best_step or config.keep == "last"]
    if not kept or not is_first_process():
        return
    stats = read_json(run.folder.data() / "stats.json")
    if "examples_by_class" in stats:
        counts = stats["examples_by_class"]["validation"]
        sentence = learned_little(kept[-1], counts, config, result.steps)
    else:
        sentence = ranks_little(kept[-1], config, result.steps)
    if sentence:
        log.warning("teacher: %s", sentence)


def learned_little(
    record: Mapping[str, float], counts: Sequence[int], config: LoopConfig, steps: int
) -> str:
    """A sentence on a teacher that is hardly better than the most frequent class; else empty.

    record: of the history, with the accuracy on validation. counts: validation examples of each
    class. steps: of the whole training.
    """
    accuracy, share = record["validation_accuracy"], max(counts) / max(1, sum(counts))
    if accuracy >= share + LEAST_GAIN * (1 - share):
        return ""
    return (
        f"after {steps:,} steps it is right on {accuracy:.1%} of the validation texts, and the "
        f"most frequent class is {share:.1%} of them: {_remedy(config)}"
    )


def ranks_little(record: Mapping[str, float], config: LoopConfig, steps: int) -> str:
    """The same of what was learned from judged answers, half of which chance would get right."""
    accuracy = record["validation_accuracy"]
    if accuracy >= 0.5 + LEAST_GAIN * 0.5:
        return ""
    did = f"ranks {accuracy:.1%} of the validation pairs right"
    if rates_answers(config.objective):
        did = f"puts {accuracy:.1%} of the validation answers on the right side of the baseline"
    return f"after {steps:,} steps it {did}, and chance 50.0%: {_remedy(config)}"


def _remedy(config: LoopConfig) -> str:
    return (
        "a student learns no more than its teacher knows. "
        f"Stop here, and raise `teacher.adapt.lr` ({config.lr:g}) or `teacher.adapt.epochs` "
        f"({config.epochs:g})."
    )
