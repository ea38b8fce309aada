"""The tasks that exist, and how a recipe or a checkpoint names one."""

from __future__ import annotations

from typing import Any

import distill.tasks.causal_lm.task
import distill.tasks.embedding.task
import distill.tasks.masked_lm.task
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
    """A recipe's values, completed by the defaults of its task for keys that it leaves out."""
    task = values.get("task") if isinstance(values, dict) else None
    if not isinstance(task, str) or task not in TASKS:
        return values
    found = dict(values)
    for section, own in TASKS[task].defaults.items():
        given = found.get(section) or {}
        if isinstance(given, dict):
            found[section] = {**own, **given}
    return found
