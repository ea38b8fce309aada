"""Losses that only one task has something to compare by."""

from __future__ import annotations

from distill.objective.losses import LOSSES, Reads
from distill.recipe.schema import Recipe

ONLY: dict[Reads, tuple[str, str]] = {  # by what a loss reads: the task that has it, and why
    "sequence": (
        "causal-lm",
        "compares answers, which a language model writes; it needs `task: causal-lm`",
    ),
    "rollouts": (
        "causal-lm",
        "learns from answers that a language model wrote; it needs `task: causal-lm`",
    ),
    **dict.fromkeys(
        ("order", "rewards"),
        (
            "reward",
            "compares rewards of answers, which `task: reward` has; a language model learns from "
            "pairs of answers by `preference`",
        ),
    ),
    **dict.fromkeys(
        ("vector", "similarity"),
        ("embedding", "compares vectors of texts, which `task: embedding` has"),
    ),
}


def refuse_others_losses(recipe: Recipe, task: str) -> None:
    """Raise `ValueError` for a term whose loss compares what only another task has."""
    sections = {"teacher.adapt": recipe.teacher.adapt, **recipe.learning()}
    for path, section in sections.items():
        for i, term in enumerate(section.objective if section is not None else ()):
            owner, reason = ONLY.get(LOSSES[term.loss].reads, (task, ""))
            if owner != task:
                raise ValueError(f"`{path}.objective[{i}]`: {term.loss} {reason}")
