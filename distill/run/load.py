"""Where recipes come in: read, given the defaults of their task, checked as a whole."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from attar.config import Section, is_tag
from attar.errors import RecipeError, nearest
from distill.recipe.consistency import check_consistency
from distill.recipe.explain import as_sentence, explain
from distill.recipe.parse import overridden, read_values
from distill.recipe.schema import Recipe
from distill.tasks.registry import TASKS, task_of, with_defaults


def load_recipe(path: str, overrides: tuple[str, ...] = (), *, alone: str | None = None) -> Recipe:
    """Read, override and check a recipe. Every mistake is a `RecipeError` naming key and mend.

    alone: the only section that is asked for, `features` or `prompt`, so it needs no student, and
    no teacher where that section names another model.
    """
    values = overridden(read_values(path), overrides)
    return check_recipe(values if alone is None else _with_models(values, alone))


def _with_models(values: dict[str, Any], alone: str) -> dict[str, Any]:
    """The values, with a student and a teacher where they are absent and nothing asks for them."""
    section, usual = values.get(alone), "teacher" if alone == "features" else "student"
    model = section.get("model", usual) if isinstance(section, dict) else usual
    needed: dict[str, Any] = {"student": {}} if model != "student" else {}
    if model not in ("teacher", "student"):
        needed["teacher"] = {"model": model}
    return {**needed, **values}


def check_recipe(values: dict[str, Any]) -> Recipe:
    """The recipe from plain values, its task's defaults below what each section says."""
    try:
        recipe = Recipe.model_validate(with_defaults(values))
    except ValidationError as error:
        raise RecipeError(explain(error, values)) from None
    if recipe.task not in TASKS:
        raise RecipeError(
            f"`task`: there is no `{recipe.task}`; known are {', '.join(TASKS)}."
            + nearest(recipe.task, list(TASKS))
        )
    try:
        task_of(recipe).check_recipe(recipe)
    except ValueError as error:
        raise RecipeError(as_sentence(error)) from None
    check_consistency(recipe)
    return _with_lengths(recipe)


OWN_DATA = ("specialize", "features")  # sections that may have data of their own


def _with_lengths(recipe: Recipe) -> Recipe:
    """The recipe, `max_length` of a section's own data that of `data` where it names none."""
    for name in OWN_DATA:
        section = getattr(recipe, name)
        own = section.data if section is not None else None
        if own is not None and "max_length" not in own.model_fields_set:
            own = own.model_copy(update={"max_length": recipe.data.max_length})
            recipe = recipe.model_copy(update={name: section.model_copy(update={"data": own})})
    return recipe


def short_form(recipe: Recipe) -> dict[str, Any]:
    """The plain values that differ from the defaults; `check_recipe` makes the same recipe of them.

    A section that is one of several kinds keeps the key that says which, and a default stays where
    the recipe's task would put another one. `max_length` of a section's own data is left out where
    it is that of `data`.
    """
    found: dict[str, Any] = _short(recipe)
    for name in OWN_DATA:
        section = getattr(recipe, name)
        if section is not None and section.data is not None:
            found[name]["data"].pop("max_length", None)
            if section.data.max_length != recipe.data.max_length:
                found[name]["data"]["max_length"] = section.data.max_length
    for path, own in TASKS[recipe.task].defaults.items():
        whole: Any = recipe
        for name in path.split("."):
            whole = getattr(whole, name)
        if whole is None:
            continue
        short = found
        for name in path.split("."):
            short = short.setdefault(name, {})
        for key in own:
            short.setdefault(key, _short(getattr(whole, key)))
    return found


def _short(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_short(one) for one in value]
    if not isinstance(value, Section):
        return value
    found = {}
    for name, field in type(value).model_fields.items():
        own, default = getattr(value, name), field.get_default(call_default_factory=True)
        if field.is_required() or is_tag(field) or own != default:
            found[field.alias or name] = _short(own)
    return found


def recipe_schema() -> dict[str, Any]:
    """The recipe's JSON schema, for editors; it lists the tasks."""
    schema = Recipe.model_json_schema(by_alias=True)
    schema["properties"]["task"]["enum"] = list(TASKS)
    return schema
