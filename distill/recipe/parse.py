"""Recipes read from YAML and overridden by `--set`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from attar.errors import RecipeError
from distill.recipe import bounded_yaml

DATA_SUFFIXES = {".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".gguf", ".safetensors"}


def parse_yaml(text: str, where: str) -> Any:
    """Safe YAML; a `RecipeError` gives the line of what does not parse."""
    try:
        return bounded_yaml.load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        if mark is not None and "found character '\\t'" in str(error):
            raise RecipeError(
                f"{where} is not valid YAML: line {mark.line + 1} begins with a tab; indent it "
                "with spaces."
            ) from None
        reason = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())[:300]
        raise RecipeError(f"{where} is not valid YAML: {reason}") from None


def read_values(path: str) -> dict[str, Any]:
    """The plain values of a recipe's file. Raises `RecipeError` where it is not a YAML map."""
    file = Path(path)
    if not file.is_file():
        raise RecipeError(f"There is no recipe {path}; `distill init {path}` writes a starter.")
    if file.suffix in DATA_SUFFIXES:
        raise RecipeError(
            f"{path} is no recipe; name the YAML file that names it, as in "
            "`distill run recipe.yaml`."
        )
    try:
        with file.open(encoding="utf8") as opened:
            text = opened.read(bounded_yaml.MOST_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text ({error}); save it as UTF-8.") from None
    values = parse_yaml(text, path)
    if not isinstance(values, dict):
        raise RecipeError(f"{path} is not a recipe: it must map `data`, `teacher`, `student` ...")
    return values


def overridden(values: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """The values with every `a.b=c` applied, in place."""
    for override in overrides:
        _set(values, override)
    return values


def _set(values: dict[str, Any], override: str) -> None:
    """Apply one `a.b=c`; list items by number, as in `train.objective.0.weight=0.5`."""
    path, sign, text = override.partition("=")
    if not sign or not path:
        raise RecipeError(f"`--set {override}` must be KEY=VALUE, e.g. `--set train.lr=1e-4`.")
    where = f"--set {path}"
    put(values, path, parse_yaml(text, where), where)


def put(values: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Put a value at a path of the recipe, in place; items of lists by number. where: what an error
    names.
    """
    *parents, last = path.split(".")
    here: Any = values
    for key in parents:
        if isinstance(here, list):
            here = _item(here, key, where)
            continue
        if not isinstance(here, dict):
            raise RecipeError(f"`{where}`: `{key}` stands below a single value.")
        if not isinstance(here.get(key), (dict, list)):
            here[key] = {}
        here = here[key]
    if isinstance(here, list):
        _item(here, last, where)
        here[int(last)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise RecipeError(f"`{where}`: `{last}` stands below a single value.")


def _item(values: list[Any], key: str, where: str) -> Any:
    if not key.isdigit() or int(key) >= len(values):
        raise RecipeError(f"`{where}`: `{key}` is not one of the {len(values)} items.")
    return values[int(key)]
