"""Starter recipes that `distill init` writes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from attar.errors import RecipeError, nearest
from attar.files import write_text

KNOWN = ("causal-lm", "sequence-classification", "masked-lm", "embedding")


def write_starter(path: Path, template: str) -> None:
    """Write a commented recipe; an existing file is never overwritten."""
    if template not in KNOWN:
        raise RecipeError(
            f"There is no template `{template}`; known: {', '.join(KNOWN)}."
            + nearest(template, KNOWN)
        )
    if path.exists():
        raise RecipeError(f"{path} exists; choose another name or delete it.")
    text = files("distill.templates").joinpath(f"{template}.yaml").read_text(encoding="utf8")
    write_text(path, text)
