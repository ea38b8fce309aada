"""What a recipe says to others: without folders of this machine, and names that the hub knows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from attar.models.locations import is_hub_id
from distill.data.config import sources_of
from distill.recipe.schema import Recipe
from distill.run.load import short_form

HUB_CACHE = re.compile(r"/models--([^/]+)--([^/]+)/snapshots/[0-9a-f]+/?$")
ELSEWHERE = "http://localhost:8000"  # for the address of a server, which is of no use to others
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")  # of a URL


def published_recipe(recipe: Recipe) -> dict[str, Any]:
    """The short form of a recipe without places on this machine.

    A path outside the folder of the recipe becomes its last name, with as many of the folders above
    as tell it from the others; a model in the hub's cache becomes its id. Put beside its files, the
    recipe is valid as it stands.
    """
    values: dict[str, Any] = short_form(recipe)
    if recipe.teacher.server is not None:
        values["teacher"]["server"]["url"] = ELSEWHERE
    if recipe.data.answers is not None and recipe.data.answers.server is not None:
        values["data"]["answers"]["from"]["server"]["url"] = ELSEWHERE
    names = _short_names({text for text in _texts(values) if _is_elsewhere(text)})
    found: dict[str, Any] = _replaced(values, names)
    return found


def published_name(source: str) -> str:
    """A model or data set as a card names it: a hub id, or the name of a local file or folder."""
    if _is_elsewhere(source):
        return _short_names({source})[source]
    return CREDENTIALS.sub("", source)


def hub_models(recipe: Recipe) -> list[str]:
    """Ids of the models of the hub that the student was made of and by."""
    origin = recipe.student.from_
    models = [origin] if isinstance(origin, str) and origin != "teacher" else []
    return _on_hub([*models, recipe.teacher.model])


def hub_data(recipe: Recipe) -> list[str]:
    """Ids of the data sets of the hub that were learned from."""
    special = recipe.specialize.data if recipe.specialize is not None else None
    return _on_hub([*sources_of(recipe.data), *(sources_of(special) if special else [])])


def _on_hub(sources: list[str]) -> list[str]:
    found = (_hub_id(source) for source in sources)
    return list(dict.fromkeys(name for name in found if name is not None))


def _hub_id(source: str) -> str | None:
    """The id of a source on the hub; None for what is from this machine."""
    if cached := HUB_CACHE.search(source):
        return f"{cached[1]}/{cached[2]}"
    if _is_elsewhere(source) or Path(source).exists() or not is_hub_id(source):
        return None
    return source


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _is_elsewhere(text: str) -> bool:
    """Whether a text is a path that says something of this machine: not below the recipe."""
    if "\n" in text or not text:
        return False
    path = PurePath(text)
    return path.is_absolute() or text.startswith(("~", "file:")) or ".." in path.parts


def _short_names(paths: set[str]) -> dict[str, str]:
    """A name for each path, the shortest of its endings that no other path shares."""
    named = {}
    for path in paths:
        if cached := HUB_CACHE.search(path):
            named[path] = f"{cached[1]}/{cached[2]}"
            continue
        parts = _parts(path)
        others = [_parts(other) for other in paths if _parts(other) != parts]
        length = 1
        while length < len(parts) and any(o[-length:] == parts[-length:] for o in others):
            length += 1
        named[path] = "/".join(parts[-length:]) or "local"
    return named


def _parts(path: str) -> list[str]:
    """The folders and the name of a path, without what only this machine knows at its start."""
    given = PurePath(path.removeprefix("file:"))
    return [p for p in given.parts if p not in (given.anchor, "..", "~")]


def _replaced(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, str):
        return names.get(value) or CREDENTIALS.sub("", value)
    if isinstance(value, dict):
        return {key: _replaced(one, names) for key, one in value.items()}
    if isinstance(value, list):
        return [_replaced(one, names) for one in value]
    return value
