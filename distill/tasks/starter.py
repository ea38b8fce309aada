"""Starter recipes for `distill init`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import distill.tasks
from attar.errors import RecipeError, nearest
from attar.files import write_text
from distill.tasks.registry import TASKS

STARTERS = files(distill.tasks)


def write_starter(path: Path, template: str) -> None:
    """Write a commented recipe; an existing file is never overwritten."""
    if template not in TASKS:
        raise RecipeError(
            f"There is no template `{template}`; known: {', '.join(TASKS)}."
            + nearest(template, list(TASKS))
        )
    if path.exists():
        raise RecipeError(f"{path} exists; choose another name or delete it.")
    text = STARTERS.joinpath(template.replace("-", "_"), "starter.yaml").read_text(encoding="utf8")
    write_text(path, text)
