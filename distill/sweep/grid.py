"""The trials of a sweep: every combination of the values in `sweep.over`, each a recipe."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attar.errors import RecipeError, UserError
from attar.files import fingerprint
from distill.recipe.parse import put
from distill.recipe.schema import Recipe
from distill.run.load import check_recipe, short_form
from distill.trials.shared import laid_over

LONGEST_NAME = 60  # characters of a trial's name before its digest


@dataclass(frozen=True)
class Trial:
    """One student of a sweep. name: of its run folder. over: the values that it alone has."""

    name: str
    over: Mapping[str, Any]
    recipe: Recipe

    @property
    def words(self) -> str:
        """What is its own, as tables show it."""
        return ", ".join(f"{_key(path, self.over)} {_short(v)}" for path, v in self.over.items())


def trials_of(recipe: Recipe, shared: Mapping[str, Any]) -> list[Trial]:
    """The trials in order of name. shared: values to lay over every recipe (`shared_base`).

    Their recipes have no `sweep` and no control arms. Raises `RecipeError` for a combination that
    is no valid recipe.
    """
    config = recipe.sweep
    assert config is not None, "the recipe has a section `sweep`"
    plain = short_form(recipe)
    plain.pop("sweep")
    own: dict[str, Any] = {"train": {"arms": []}}
    if config.artifacts is not None:
        own["export"] = {"artifacts": config.artifacts}
    base = laid_over(laid_over(plain, own), shared)
    found = []
    for choice in itertools.product(*config.over.values()):
        over = dict(zip(config.over, choice, strict=True))
        made = _with_values(base, over)
        digest = fingerprint(made.model_dump(mode="json", by_alias=True))[:8]
        found.append(Trial(f"{_slug(over)}-{digest}", over, made))
    return sorted(found, key=lambda trial: trial.name)


def _with_values(base: Mapping[str, Any], over: Mapping[str, Any]) -> Recipe:
    values = laid_over(base, {})
    said = ", ".join(f"`{path}: {_short(value)}`" for path, value in over.items())
    try:
        for path, value in over.items():
            put(values, path, value, f"sweep.over.{path}")
        return check_recipe(values)
    except RecipeError as error:
        raise RecipeError(f"`sweep.over`, the trial with {said}: {error}") from None


def named_error(trial: Trial, error: UserError) -> UserError:
    """The error of a trial, with its values before it."""
    return type(error)(f"`sweep.over`, the trial {trial.words}: {error}")


def _slug(over: Mapping[str, Any]) -> str:
    words = "-".join(f"{_key(path, over)}-{_short(value)}" for path, value in over.items())
    return re.sub(r"[^\w.%]+", "-", words).strip("-.")[:LONGEST_NAME].replace("%", "pct")


def _key(path: str, over: Mapping[str, Any]) -> str:
    """The shortest end of a path that no other path of the sweep ends in."""
    parts = path.split(".")
    for number in range(1, len(parts)):
        end = ".".join(parts[-number:])
        if not any(other.endswith(f".{end}") for other in over if other != path):
            return end
    return path


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
