"""All arms of comparisons, in the order of tables, and which of them fit a recipe."""

from __future__ import annotations

import distill.comparison.distilled_arms
import distill.comparison.tuned_arms
import distill.comparison.untrained_arms  # noqa: F401  (importing registers)
from attar.errors import nearest
from distill.comparison.arms import ARMS_COMPARED, FAMILIES
from distill.comparison.cells import Comparison


def known_arms() -> list[str]:
    """Names of all arms, family by family."""
    return sorted(ARMS_COMPARED, key=lambda name: FAMILIES.index(ARMS_COMPARED[name].family))


def chosen_arms(comparison: Comparison) -> tuple[list[str], dict[str, str]]:
    """(names of the arms to run, those of the rest with the reason why not).

    Raises `RecipeError` for an arm that does not exist.
    """
    wanted = comparison.config.arms or known_arms()
    reasons: dict[str, str] = {}
    for name in wanted:
        reason = ARMS_COMPARED[name]().refusal(comparison)
        if reason is not None:
            reasons[name] = reason
    return [name for name in wanted if name not in reasons], reasons


def check_settings(comparison: Comparison) -> str | None:
    """What is wrong with `compare.settings`: a key that names no arm that runs; None if nothing."""
    names, _ = chosen_arms(comparison)
    for name in comparison.config.settings:
        if name not in names:
            return (
                f"`compare.settings.{name}` is of an arm that is not compared; the arms are "
                f"{', '.join(names)}.{nearest(name, names)}"
            )
    return None
