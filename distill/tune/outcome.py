"""What a search found: every trial, the best keys of each arm, and the recipe with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from attar.errors import RecipeError
from attar.files import write_text
from distill.recipe.parse import put, read_values
from distill.recipe.schema import Recipe
from distill.recipe.tune import OBJECTIVE, Range, TuneConfig
from distill.report.tables import Table
from distill.run.load import check_recipe
from distill.tasks.registry import task_of
from distill.training.arms import DISTILL
from distill.tune.trial_runs import objective_of

SIGNIFICANT = 3  # digits of a number in the recipe: more would say nothing
END = 0.1  # share of a range within which a best value is at its end


def outcome_of(recipe: Recipe, config: TuneConfig, studies: Mapping[str, Any]) -> dict[str, Any]:
    """The content of tune.json: of each arm all `trials`, the `best` one's number, its `value` on
    the validation part, its `keys` by path, and `warnings`.
    """
    arms = {}
    for arm, study in studies.items():
        trials = study.get_trials(deepcopy=False)
        best = study.best_trial
        arms[arm] = {
            "trials": [_entry(one) for one in trials],
            "best": best.number,
            "value": best.value,
            "keys": {path: rounded(value) for path, value in best.params.items()},
            "warnings": _at_the_end(arm, config.over_of(arm), best.params),
        }
    return {
        "number": task_of(recipe).metrics.trial_value,
        "objective": objective_of(recipe),
        "arms": arms,
    }


def _entry(trial: Any) -> dict[str, Any]:
    """A trial: its keys, what it was worth at each step that it was measured at, and its end."""
    steps = {
        int(name.split()[1]): value
        for name, value in trial.user_attrs.items()
        if name.startswith("step ")
    }
    failed = trial.user_attrs.get("failed")
    ended = {"COMPLETE": "trained", "PRUNED": "stopped"}.get(trial.state.name, trial.state.name)
    return {
        "number": trial.number,
        "keys": dict(trial.params),
        "steps": steps,
        "value": trial.value,
        "ended": "failed" if failed else ended,
        **({"failed": failed} if failed else {}),
    }


def rounded(value: Any) -> Any:
    """A number as it is written into the recipe."""
    return float(f"{value:.{SIGNIFICANT}g}") if isinstance(value, float) else value


def _at_the_end(
    arm: str, over: Mapping[str, Range | list[Any]], best: Mapping[str, Any]
) -> list[str]:
    """A sentence for each key whose best value is at an end of its range."""
    found = []
    for path, one in over.items():
        if not isinstance(one, Range):
            continue
        scale = math.log if one.log else float
        low, high, value = scale(one.low), scale(one.high), scale(best[path])
        share = (value - low) / (high - low)
        if not END < share < 1 - END:
            end, further = ("lower", "lower") if share <= END else ("upper", "higher")
            found.append(
                f"The best `{path}` of `{arm}`, {best[path]:.3g}, is at the {end} end of its "
                f"range; {further} ones may be better."
            )
    return found


# In the recipe -----------------------------------------------------------------------------------


def tuned_values(values: dict[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a recipe with the best keys of each arm, in place: those of `distill` as the
    recipe's own, those of a control in an entry of `train.arms` that takes its place.
    """
    own = found["arms"].get(DISTILL, {"keys": {}})["keys"]
    if any(path.startswith(OBJECTIVE) for path in own):
        values.setdefault("train", {}).setdefault("objective", found["objective"])
    for path, value in own.items():
        put(values, path, value, path)
    for arm, one in found["arms"].items():
        if arm != DISTILL:
            keys = {path.removeprefix("train."): value for path, value in one["keys"].items()}
            entry = {"arm": arm, "name": f"{arm}-tuned", **keys}
            train = values.setdefault("train", {})
            others = [x for x in train.get("arms", [arm]) if not _is_of(x, arm)]
            train["arms"] = [*others, entry]
    return values


def _is_of(entry: Any, arm: str) -> bool:
    return entry == arm or (isinstance(entry, dict) and entry.get("arm") == arm)


def write_tuned(source: str, found: Mapping[str, Any], file: Path) -> None:
    """Write a recipe's file with the best keys into another file, which is checked first."""
    values = tuned_values(read_values(source), found)
    values.pop("tune", None)
    check_recipe(values)
    write_text(file, yaml.safe_dump(values, sort_keys=False))


def check_new(file: Path) -> None:
    """Raise `RecipeError` where there is such a file: its comments would be lost."""
    if file.exists():
        raise RecipeError(
            f"`--write {file}`: there is such a file, whose comments would be lost; name a new one."
        )


def printed(found: Mapping[str, Any]) -> str:
    """The part of a recipe that has the best keys, as YAML."""
    return yaml.safe_dump(tuned_values({}, found), sort_keys=False).rstrip()


def trial_table(found: Mapping[str, Any]) -> Table:
    """The trials of all arms, the best first, header first."""
    lines: Table = [["arm", "trial", "keys", found["number"], "at step", "ended"]]
    for arm, one in found["arms"].items():
        for trial in sorted(one["trials"], key=_rank):
            step = max(trial["steps"], default=0)
            value = f"{trial['steps'][step]:.4f}" if trial["steps"] else ""
            keys = ", ".join(f"{path} {rounded(v)}" for path, v in trial["keys"].items())
            mark = "best" if trial["number"] == one["best"] else trial["ended"]
            lines.append([arm, str(trial["number"]), keys, value, str(step), mark])
    return lines


def _rank(trial: Mapping[str, Any]) -> tuple[bool, int, float]:
    """Trained ones first, by their value; of the others those that went further."""
    steps = trial["steps"]
    last = max(steps, default=0)
    return trial["value"] is None, -last, steps.get(last, math.inf)
