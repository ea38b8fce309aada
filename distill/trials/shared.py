"""What trials of one recipe share: the adapted teacher, and one cache of its signals."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.pipeline import run_stages
from distill.recipe.schema import Recipe
from distill.run.context import Run
from distill.stages.stage import ADAPT_TEACHER


def shared_base(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Values to lay over the recipe of every trial, so that trials share what does not differ.

    The teacher is adapted once, in a run in `folder`, unless it is adapted already. The first trial
    that needs the teacher's signals fills the cache there; where the recipe names a cache, that one
    serves.
    """
    found: dict[str, Any] = {}
    if recipe.cache.dir is None:
        found["cache"] = {"dir": str(folder / "cache")}
    if recipe.teacher.adapt is not None:
        run = Run(recipe, folder)
        run_stages(run, [ADAPT_TEACHER.name])
        used = {"model": run.teacher.model, "dtype": run.teacher.dtype}
        found["teacher"] = {**used, "adapt": None}
    return found


def laid_over(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a recipe with others over them, key by key; new objects."""
    found = copy.deepcopy(dict(values))
    for key, value in more.items():
        old = found.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            found[key] = laid_over(old, value)
        else:
            found[key] = copy.deepcopy(value)
    return found
