"""What is known, before any work, of what a recipe lets learn: on models without weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from attar.distributed import is_alone, process_state
from attar.errors import RecipeError
from attar.models.loading import skeleton
from distill.recipe.specialize import without_start
from distill.run.context import Run
from distill.runtimes.runtime import check_runtime
from distill.training.config import LoopConfig
from distill.training.layerwise_lr import check_rates, lowest_learning
from students.artifacts.artifact import ARTIFACTS, check_family, check_installed
from students.quantization.gptq import roundable_linears
from students.tuning.trainable import prepare_learning

if TYPE_CHECKING:
    from distill.run.context import Run
from distill.recipe.export import ExportConfig


def check_learning(run: Run, shaped: bool = True) -> None:
    """Raise `RecipeError` where parts that are to learn are not there, keys of a training's pace
    have no effect, or a term reads layers below all that learns.

    shaped: whether the student's shape is known; before a search, only what the whole model lacks
    is refused.
    """
    for path, config, model in _learners(run, shaped):
        check_rates(model, config, f"{path}.")
        _check_terms(run, path, config, model)


def check_steps(run: Run, shaped: bool = True) -> None:
    """Raise `RecipeError` where blocks would begin to learn after the last step: once the data are
    there, and with them the number of steps.

    shaped: as in `check_learning`.
    """
    sections = {**run.recipe.learning(), "teacher.adapt": run.recipe.teacher.adapt}
    if not any(config is not None and config.unfreeze for config in sections.values()):
        return
    for path, config, model in _learners(run, shaped):
        if config.unfreeze is not None:
            data = getattr(config, "data", None) or run.recipe.data
            steps = run.task.batching.steps(
                run.data(data)[0].lengths,
                config,
                max_length=data.max_length,
                packing=data.packing and run.task.packs,
                seed=run.recipe.seed,
                world=1 if is_alone() else process_state().num_processes,
            )
            check_rates(model, config, f"{path}.", len(steps))


def _learners(run: Run, shaped: bool) -> Iterator[tuple[str, LoopConfig, Any]]:
    """(section, its keys, what learns by them, without weights) of every training of the recipe.

    Left out is what stands before the text: it has no depth; and the student before its shape is
    known (`shaped`), of which only the parts are looked for.
    """
    recipe = run.recipe
    adapt, train, special = recipe.teacher.adapt, recipe.train, recipe.specialize
    if adapt is not None and (teacher := skeleton(run.teacher_config, run.task.auto)) is not None:
        prepare_learning(teacher, adapt.trainable, adapt.reinitialize, 0, "teacher.adapt.")
        yield "teacher.adapt", adapt, teacher
    config = run.student_config if shaped else run.whole_config
    if (student := skeleton(config, run.task.auto)) is None:
        return
    prepare_learning(student, train.trainable, train.reinitialize, 0, "train.")
    if not shaped:
        return
    yield "train", train, student
    if special is not None and not special.prepends:
        student = skeleton(run.student_config, run.task.auto)
        yield "specialize", special, without_start(special).attach(student, 0)
    if recipe.export.recover is not None:
        student = skeleton(run.student_config, run.task.auto)
        for parameter in student.parameters():
            parameter.requires_grad_(parameter.ndim == 1)
        for module in roundable_linears(student).values():
            module.weight.requires_grad_(True)  # stands for its scales
        yield "export.recover", recipe.export.recover, student


def _check_terms(run: Run, path: str, config: LoopConfig, model: Any) -> None:
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


def check_makeable(names: list[str], config: Any) -> None:
    """Raise an error now for what would fail after hours: a package that is missing, a family of
    models (its `PretrainedConfig`) that an artifact cannot hold.
    """
    for name in names:
        check_installed(name)
        check_runtime(ARTIFACTS[name].runtime)
        check_family(name, config)


def check_rounding(config: ExportConfig, names: list[str]) -> None:
    """Raise `RecipeError` for a key about rounding where nothing is rounded by us."""
    if config.recover is None or any(ARTIFACTS[name].rounds for name in names):
        return
    able = [name for name, found in ARTIFACTS.items() if found.rounds]
    raise RecipeError(
        "`export.recover` has no effect: none of `export.artifacts` is rounded by us; leave it "
        f"out, or add one of {', '.join(able)}."
    )
