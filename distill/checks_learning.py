"""What is known, before any work, of what a recipe lets learn: on models without weights."""

from __future__ import annotations

from typing import Any

from attar.errors import RecipeError
from attar.loading import skeleton
from distill.loop import LoopConfig
from distill.pace import check_pace, lowest_learning
from distill.run import Run
from students.trainable import prepare_learning


def check_learning(run: Run, shaped: bool = True) -> None:
    """Raise `RecipeError` where parts that are to learn are not there, keys of a training's pace
    have no effect, or a term reads layers below all that learns.

    shaped: whether the student's shape is known; before a search, only what the whole model lacks
    is refused.
    """
    recipe = run.recipe
    adapt, train, special = recipe.teacher.adapt, recipe.train, recipe.specialize
    if adapt is not None:
        _check(run, "teacher.adapt", adapt, _skeleton(run, run.teacher_config))
    if not shaped:
        whole = _skeleton(run, run.whole_config)
        if whole is not None:
            prepare_learning(whole, train.trainable, train.reinitialize, 0, "train.")
        return
    _check(run, "train", train, _skeleton(run, run.student_config))
    if special is not None and special.leaves == "weights":
        student = _skeleton(run, run.student_config)
        if student is not None:
            special.attach(student, 0)
            _check_pace_and_terms(run, "specialize", special, student)


def _skeleton(run: Run, config: Any) -> Any:
    """The model of a `PretrainedConfig` with the task's head, on the meta device.

    None where its code came with the model: it is not run to look at its names.
    """
    return skeleton(config, run.task.auto)


def _check(run: Run, path: str, config: Any, model: Any) -> None:
    if model is None:
        return
    prepare_learning(model, config.trainable, config.reinitialize, 0, f"{path}.")
    _check_pace_and_terms(run, path, config, model)


def _check_pace_and_terms(run: Run, path: str, config: LoopConfig, model: Any) -> None:
    check_pace(model, config, f"{path}.")
    if path not in run.recipe.learning():
        return
    lowest = lowest_learning(model)
    pairs = run.layer_map().pairs(config.objective, config.source, path)
    for i, mine in pairs.items():
        if mine and max(s for s, _ in mine) < lowest:
            raise RecipeError(
                f"`{path}.objective[{i}]` has no effect: {config.objective[i].loss} reads student "
                f"layer {max(s for s, _ in mine)}, and nothing up to it learns; the lowest that "
                f"learns is {'above the blocks' if lowest > run.student_depth else _layer(lowest)}."
            )


def _layer(depth: int) -> str:
    return f"layer {depth} (block {depth - 1})"
