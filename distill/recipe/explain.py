"""A mistake in a recipe as one sentence that names the key and the mend."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from attar.errors import nearest
from distill.recipe.other_names import known_elsewhere
from distill.recipe.schema import Recipe


def explain(error: ValidationError, values: Any) -> str:
    """The first mistake as one sentence; further ones are counted."""
    mistakes = error.errors()
    first = mistakes[0]
    path, model = _walk(first["loc"], values)
    more = f" ({len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    message = first["msg"].removeprefix("Value error, ").removesuffix(".")
    if first["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in model.model_fields.items()]
        key = str(first["loc"][-1])
        section = path.rpartition(".")[0]
        hint = known_elsewhere(key, section, known) or nearest(key, known) or _where_else(key)
        hint = hint or f" Known are {', '.join(known)}."
        return f"`{path}` is not a key of the recipe.{hint}{more}"
    if first["type"] == "missing":
        return f"`{path}` is missing from the recipe.{more}"
    if first["type"] == "union_tag_invalid":
        tags = [word.strip(" '") for word in first["ctx"]["expected_tags"].split(",")]
        tag = first["ctx"]["tag"]
        return f"`{path}`: there is no `{tag}`; known are {', '.join(tags)}.{nearest(tag, tags)}"
    if first["type"] == "union_tag_not_found":
        key = first["ctx"]["discriminator"].strip("'")
        return f"`{path}` lacks `{key}`, which says what the other keys mean.{more}"
    found = first["input"]
    shown = "" if isinstance(found, (dict, BaseModel)) else f" (found {_shortened(found)})"
    prefix = f"`{path}`: " if path else ""
    return f"{prefix}{message[:1].lower() if prefix else message[:1]}{message[1:]}{shown}.{more}"


def _shortened(value: Any, most: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]} ..."


def as_sentence(error: ValueError) -> str:
    """A check's own complaint as a sentence."""
    return f"{str(error).removesuffix('.')}."


def _walk(location: tuple[int | str, ...], values: Any) -> tuple[str, type[BaseModel]]:
    """(path as the user wrote it, model of the section that holds its last key).

    pydantic also names union members and tags in a location; those are not keys and are left out.
    """
    path, here = "", values
    models: list[type[BaseModel]] = [Recipe]
    holder: type[BaseModel] = Recipe
    for key in location:
        if isinstance(key, int):
            path += f"[{key}]"
            here = here[key] if isinstance(here, list) and key < len(here) else None
            continue
        tagged = [model for model in models if key in _tags(model)]
        if tagged:
            models = tagged
            continue
        fields = {f.alias or n: (m, f) for m in models for n, f in m.model_fields.items()}
        if key not in fields and not (isinstance(here, dict) and key in here):
            continue
        path += f".{key}" if path else key
        holder, found = fields.get(key, (models[0], None))
        models = (_models(found.annotation) if found is not None else []) or models
        here = here.get(key) if isinstance(here, dict) else None
    return path, holder


TAGS = ("loss", "name", "method", "kind")  # fields that tell members of a union apart


def _tags(model: type[BaseModel]) -> set[Any]:
    """Values of that field of a member."""
    tags = (model.model_fields.get(name) for name in TAGS)
    return {value for field in tags if field is not None for value in get_args(field.annotation)}


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The section models inside an annotation, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _where_else(key: str) -> str:
    """A hint where the key stands in another section."""
    homes: dict[str, str] = {}
    for name, field in Recipe.model_fields.items():
        for model in _models(field.annotation):
            for inner in model.model_fields:
                homes.setdefault(inner, f"{name}.{inner}")
    close = difflib.get_close_matches(key, homes, n=1, cutoff=0.7)
    return f" Did you mean `{homes[close[0]]}`?" if close else ""
