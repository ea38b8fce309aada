"""The trials of a search as ordinary runs: their recipes, and the student that they share."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attar.errors import RecipeError
from attar.files import clear
from distill.pipeline import run_stages
from distill.recipe.parse import put
from distill.recipe.schema import Recipe
from distill.recipe.tune import Range
from distill.run.context import Run
from distill.run.load import check_recipe, short_form
from distill.stages.stage import BUILD
from distill.tasks.registry import task_of
from distill.training.arms import DISTILL
from distill.trials.shared import laid_over

OTHER_SECTIONS = ("tune", "sweep", "compare", "specialize")  # not part of a trial
OF_THE_TEACHER = ("objective", "source", "rollouts", "reference", "arms", "seeds")


def base_values(recipe: Recipe, shared: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of the recipe of all trials: one seed, no other arms. shared: laid over it."""
    plain = {key: one for key, one in short_form(recipe).items() if key not in OTHER_SECTIONS}
    train = {k: v for k, v in plain.get("train", {}).items() if k not in ("arms", "seeds")}
    train = {**train, "objective": objective_of(recipe), "arms": []}
    return laid_over({**plain, "train": train}, shared)


def objective_of(recipe: Recipe) -> list[dict[str, Any]]:
    """The terms with all of their keys, so that paths find them where the recipe has defaults."""
    found: list[dict[str, Any]] = recipe.model_dump(mode="json", by_alias=True)["train"][
        "objective"
    ]
    return found


def trial_recipe(
    recipe: Recipe, base: Mapping[str, Any], arm: str, over: Mapping[str, Any]
) -> Recipe:
    """The recipe of a trial; a control learns in it, as `distill` does, by the labels alone.

    Raises `RecipeError` for values that make no valid recipe.
    """
    values = laid_over(base, {})
    if arm != DISTILL:
        train = {k: v for k, v in values["train"].items() if k not in OF_THE_TEACHER}
        loss = task_of(recipe).label_loss
        values["train"] = {**train, "objective": [{"loss": loss}], "arms": []}
    said = ", ".join(f"`{path}: {value}`" for path, value in over.items())
    try:
        for path, value in over.items():
            put(values, path, value, f"tune.over.{path}")
        return check_recipe(values)
    except RecipeError as error:
        raise RecipeError(f"`tune`, a trial of `{arm}` with {said}: {error}") from None


def ends_of(over: Mapping[str, Range | list[Any]]) -> list[dict[str, Any]]:
    """Values of trials in which every choice and both ends of every range stand."""
    columns = {
        path: one if isinstance(one, list) else [one.low, one.high] for path, one in over.items()
    }
    longest = max(map(len, columns.values()))
    return [{path: c[min(i, len(c) - 1)] for path, c in columns.items()} for i in range(longest)]


def share_student(base: Run, run: Run) -> None:
    """Put a copy of the student that `base` built into a trial's folder, unless it has one, so that
    it is not built again.
    """
    if run.folder.record(BUILD.name) is not None:
        return
    run_stages(base, [BUILD.name])
    clear(run.folder.student)
    run.folder.path.mkdir(parents=True, exist_ok=True)
    shutil.copytree(base.folder.student, run.folder.student)
    record = base.folder.record(BUILD.name)
    if record is not None:
        run.folder.write_record(
            record
        )  # last: a kill before it leaves a student to be copied again


def named(folder: Path, arm: str, number: int) -> Path:
    """The run folder of a trial."""
    return folder / "trials" / f"{arm}-{number}"
