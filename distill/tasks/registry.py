"""The tasks that exist, and how a recipe or a checkpoint names one."""

from __future__ import annotations

from typing import Any

import distill.tasks.causal_lm.task
import distill.tasks.embedding.task
import distill.tasks.masked_lm.task
import distill.tasks.reward.task
import distill.tasks.sequence_classification.task  # noqa: F401  (importing registers)
from distill.recipe.schema import Recipe
from distill.tasks.task import TASKS as TASKS
from distill.tasks.task import Task
from distill.tasks.task import task_of_model as task_of_model


def task_of(recipe: Recipe) -> Task:
    """The recipe's task."""
    found: Task = TASKS[recipe.task]()
    return found


def with_defaults(values: Any) -> Any:
    """A recipe's values, completed by the defaults of its task for keys that it leaves out.

    Defaults of a section inside another (`teacher.adapt`) hold where the recipe has that section.
    """
    task = values.get("task") if isinstance(values, dict) else None
    if not isinstance(task, str) or task not in TASKS:
        return values
    found = dict(values)
    for path, own in TASKS[task].defaults.items():
        section, _, inner = path.partition(".")
        given = found.get(section) or {}
        if not isinstance(given, dict):
            continue
        if not inner:
            found[section] = {**own, **given}
        elif isinstance(given.get(inner), dict):
            found[section] = {**given, inner: {**own, **given[inner]}}
    return found
