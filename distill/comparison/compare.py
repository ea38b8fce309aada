"""`distill compare`: ways to do the recipe's task, on the user's own rows, measured alike.

It writes comparison.json and comparison.html into its folder; every arm in every cell leaves its
numbers there, and is not run again while nothing that it depends on changes.
"""

from __future__ import annotations

import logging
from typing import Any

from attar import __version__
from attar.errors import RecipeError, RunError
from attar.files import write_json, write_text
from attar.libraries import library_versions
from attar.locks import LockFile, hold_lock
from distill.comparison.advice import advice_of
from distill.comparison.arms import ARMS_COMPARED
from distill.comparison.asking import check_prompts
from distill.comparison.cells import LIBRARIES, Cell, Comparison
from distill.comparison.claims import claims_of
from distill.comparison.estimate import Estimator
from distill.comparison.forgetting import check_forgetting
from distill.comparison.page import render_comparison
from distill.comparison.race import Race, check_budget
from distill.comparison.registry import check_settings, chosen_arms
from distill.comparison.rows import SOURCES
from distill.comparison.summary import summary_of
from distill.console import log_to_file
from distill.evaluation.job import Numbers

log = logging.getLogger(__name__)
SCHEMA = 1  # of comparison.json


def compare(comparison: Comparison) -> Numbers:
    """Run the comparison; what comparison.json holds.

    Raises `RecipeError` or `DataError` for a recipe, rows or a budget that allow none.
    """
    if wrong := check_settings(comparison):
        raise RecipeError(wrong)
    arms, refused = chosen_arms(comparison)
    if not arms:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise RecipeError(f"No arm of `compare.arms` fits the recipe ({reasons}).")
    check_forgetting(comparison)
    comparison.measured_file()
    check_prompts(comparison, arms)
    estimate = Estimator(comparison)
    first = Cell(comparison.sizes[0], comparison.config.seeds[0])
    check_budget(comparison, {name: estimate(name, first) for name in arms})
    comparison.folder.mkdir(parents=True, exist_ok=True)
    lock = LockFile(comparison.folder / "compare.lock")
    held = hold_lock(lock, f"The comparison {comparison.folder}", RunError)
    with held, log_to_file(comparison.folder / "run.log"):
        race = Race(comparison, arms, estimate)
        race.run()
        found = report_of(race, refused)
        write_json(comparison.folder / "comparison.json", found)
        write_text(comparison.folder / "comparison.html", render_comparison(found))
    return found


def report_of(race: Race, refused: dict[str, str]) -> Numbers:
    """What comparison.json holds."""
    comparison = race.comparison
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "task": comparison.recipe.task,
        "measure": "accuracy" if comparison.labelled else "minus nll",
        "sizes": comparison.sizes,
        "seeds": comparison.config.seeds,
        "rows": {name: len(getattr(comparison.parts, name)) for name in SOURCES},
        "classes": comparison.parts.classes,
        "about": {name: ARMS_COMPARED[name].about for name in race.arms},
        "families": {name: ARMS_COMPARED[name].family for name in race.arms},
        "refused": refused,
        "dropped": race.dropped,
        "seconds": race.spent,
        "budget": comparison.config.budget,
        "points": {str(labels): summary_of(race, labels) for labels in comparison.sizes},
        "recipe": comparison.recipe.model_dump(mode="json", by_alias=True),
        "environment": {"attar": __version__, **library_versions(*LIBRARIES)},
    }
    found["claims"] = claims_of(race)
    found["advice"] = advice_of(found)
    return found
