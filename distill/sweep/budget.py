"""`sweep.budget`: whether a sweep fits into its time, and how many trials do at a rung."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from attar.errors import RecipeError
from distill.planning.estimate import estimates
from distill.recipe.sweep import SweepConfig
from distill.run.context import Run
from distill.sweep.state import TrialState

Seconds = Mapping[str, float]
ONCE = ("adapt-teacher", "cache")  # stages that one run does for all trials
LAST = ("specialize", "export", "evaluate")  # stages of finalists


def planned_seconds(run: Run) -> dict[str, float]:
    """Seconds of each stage of a trial that is not done, by the plan."""
    return {one.stage: one.seconds for one in estimates(run) if not one.note.startswith("done")}


def check_budget(config: SweepConfig, planned: Mapping[str, Seconds]) -> None:
    """Raise `RecipeError` where by the plan not even all trials reach the first rung and the
    quickest one the end. planned: seconds by trial and stage.
    """
    if config.budget is None:
        return
    share = config.rungs[0]
    once = sum(max(one.get(stage, 0.0) for one in planned.values()) for stage in ONCE)
    first = sum(one.get("build", 0.0) + share * one.get("train", 0.0) for one in planned.values())
    rest = min((1 - share) * one.get("train", 0.0) + last_seconds(one) for one in planned.values())
    if (least := once + first + rest) > config.budget:
        raise RecipeError(
            f"`sweep.budget` is {words(config.budget)}, and by the plan {len(planned)} trials take "
            f"{words(once + first)} up to the first rung, and one of them {words(rest)} more to "
            f"the end; write at least {words(least)}, or sweep over fewer values."
        )


def last_seconds(planned: Seconds) -> float:
    """Seconds of what only a finalist does."""
    return sum(planned.get(stage, 0.0) for stage in LAST)


def affordable(
    order: Sequence[str],
    states: Mapping[str, TrialState],
    config: SweepConfig,
    rung: int,
    planned: Mapping[str, Seconds],
) -> list[str]:
    """Those of the trials, the best first, that can go on after a rung (its number, from 0) within
    what is left of the budget, at the speeds seen so far; at least one.
    """
    if config.budget is None:
        return list(order)
    left = config.budget - sum(state.seconds for state in states.values())
    number = len(order)
    while number > 1 and _to_the_end(order[:number], states, config, rung, planned) > left:
        number -= 1
    return list(order[:number])


def _to_the_end(
    names: Sequence[str],
    states: Mapping[str, TrialState],
    config: SweepConfig,
    rung: int,
    planned: Mapping[str, Seconds],
) -> float:
    """Seconds that trials take to the end of the sweep, where every further rung halves them."""
    seconds, group = 0.0, list(names)
    for number in range(rung + 1, len(config.rungs)):
        share = config.rungs[number] - config.rungs[number - 1]
        for name in group:
            last = states[name].rungs[-1]
            seconds += share * last.total * last.seconds / max(1, last.step)
        if number < len(config.rungs) - 1:
            group = group[: math.ceil(len(group) / config.halve)]
    return seconds + sum(last_seconds(planned[name]) for name in group)


def words(seconds: float) -> str:
    """A time as a recipe writes it, rounded up."""
    if seconds < 600:
        return f"{math.ceil(seconds)}s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes}m" if minutes < 120 else f"{math.ceil(minutes / 6) / 10:g}h"
