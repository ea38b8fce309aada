"""A mistake in a recipe as one sentence that names the key and the mend."""

from __future__ import annotations

import difflib
import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from attar.errors import nearest
from attar.mistakes import wanted_of, words_of
from distill.recipe.mends import mend_of
from distill.recipe.other_names import known_elsewhere
from distill.recipe.schema import Recipe

CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")  # of a URL; a message may end up in a log
SHOWN = 3  # mistakes; further ones are counted
EXAMPLES = {
    "data": " Write e.g. `data: {train: data.jsonl}`.",
    "teacher": " Write e.g. `teacher: {model: FOLDER_OR_HUB_ID}`.",
    "student": " Write e.g. `student: {from: teacher, layers: {keep: 6}}`.",
}


def explain(error: ValidationError, values: Any) -> str:
    """The mistakes as sentences, the first `SHOWN` of them; further ones are counted."""
    by_path: dict[str, list[Any]] = {}
    # Keys that stand in the wrong place first: another tool's recipe lacks every section as well.
    for mistake in sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden"):
        path, _ = _walk(mistake["loc"], values)
        by_path.setdefault(path, []).append(mistake)
    # Of the alternatives that a value may be, the one that went deeper is what was meant.
    outer = {path[:i] for path in by_path for i, sign in enumerate(path) if sign in ".["}
    deepest = [group for path, group in by_path.items() if path not in outer]
    sentences = [_sentence(group, values) for group in deepest[:SHOWN]]
    more = f" ({len(deepest) - SHOWN} more)" if len(deepest) > SHOWN else ""
    return f"{' And '.join(sentences)}{more}"


def _sentence(mistakes: list[Any], values: Any) -> str:
    """What is wrong with one value; several mistakes are of the alternatives that it may be."""
    first = mistakes[0]
    path, model = _walk(first["loc"], values)
    if first["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in model.model_fields.items()]
        key = str(first["loc"][-1])
        section = path.rpartition(".")[0]
        hint = known_elsewhere(key, section, known) or nearest(key, known) or _where_else(key)
        hint = hint or f" Known are {', '.join(known)}."
        return f"`{path}` is not a key of the recipe.{hint}"
    if first["type"] == "missing":
        return f"`{path}` is missing from the recipe.{EXAMPLES.get(path, '')}"
    if first["type"] == "union_tag_invalid":
        tags = [word.strip(" '") for word in first["ctx"]["expected_tags"].split(",")]
        tag = first["ctx"]["tag"]
        return f"`{path}`: there is no `{tag}`; known are {', '.join(tags)}.{nearest(tag, tags)}"
    if first["type"] == "union_tag_not_found":
        key = first["ctx"]["discriminator"].strip("'")
        return f"`{path}` lacks `{key}`, which says what the other keys mean."
    found = first["input"]
    shown = "" if isinstance(found, (dict, BaseModel)) else f" (found {_shortened(found)})"
    prefix = f"`{path}`: " if path else ""
    message = _message(mistakes)
    end = "" if message.endswith("?") else f"{shown}.{mend_of(path, mistakes, found)}"
    return f"{prefix}{message[:1].lower() if prefix else message[:1]}{message[1:]}{end}"


def _message(mistakes: list[Any]) -> str:
    """One clause; what a value may be instead stands in it with `or`."""
    own = [words_of(mistake) for mistake in mistakes if wanted_of(mistake) is None]
    if own:
        return own[0]
    return f"must be {' or '.join(dict.fromkeys(str(wanted_of(one)) for one in mistakes))}"


def _shortened(value: Any, most: int = 200) -> str:
    text = "null" if value is None else CREDENTIALS.sub("***@", repr(value))
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
