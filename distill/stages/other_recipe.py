"""What a command on a run folder would replace there: said, and refused where it is another run.

A folder with trained models belongs to the data, the teacher and the student of its recipe.yaml.
Other changes of a recipe are how one works on it: they are said, and gone on with.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

from attar.errors import RecipeError, RunError
from distill.recipe.parse import read_values
from distill.recipe.schema import Recipe
from distill.run.context import Run
from distill.run.load import check_recipe
from distill.stages.stage import STAGES
from distill.stages.status import is_current
from distill.training.config import WITHOUT_EFFECT
from teachers.server_config import ASKING

log = logging.getLogger(__name__)

SERVERS = ("teacher.server", "data.answers.from.server")
OF_THE_RUN = ("task", "seed", "data", "teacher", "student")  # sections that make it another run
TRAINED = (
    "teacher/config.json", "arms/*/result.json", "arms/*/last", "specialized/result.json",
    "specialized/run/last",
)  # fmt: skip
MOST_KEYS = 5  # that a message lists
MOST_CHARACTERS = 40  # of a value in it
Changes = dict[str, tuple[Any, Any]]  # by key: the values in recipe.yaml and in the recipe now


def check_same_run(run: Run) -> None:
    """Raise `RunError` where the folder holds models that were trained by the recipe of another
    run, unless `--overwrite` was given.
    """
    refusal = None if run.overwrite else refusal_of(run)
    if refusal is not None:
        raise RunError(refusal)


def refusal_of(run: Run) -> str | None:
    """Why a recipe may not go on in its run folder: that holds models of another run."""
    trained = sorted(path for name in TRAINED for path in run.folder.path.glob(name))
    if not trained:
        return None
    there = trained[0].parent.relative_to(run.folder.path)
    ways = "Choose another folder with --run-dir, or give --overwrite to replace what is there."
    try:
        changes = _changes(run)
    except RecipeError as error:
        return (
            f"{run.folder} holds trained models ({there} ...), and which recipe made them cannot "
            f"be known: {error} {ways}"
        )
    other = {
        key: both
        for key, both in changes.items()
        if key.split(".")[0] in OF_THE_RUN and not key.startswith("data.answers")
    }
    if not other:
        return None
    return (
        f"{run.folder} holds trained models ({there} ...) of another run: its recipe.yaml "
        f"differs in {_listed(other)}. {ways}"
    )


def say_what_is_replaced(run: Run, names: list[str]) -> None:
    """Warn of finished stages among `names` that are to be made again, and say why."""
    stale = [name for name in names if run.folder.record(name) and not is_current(run, name)]
    if not stale:
        return
    try:
        changes = _changes(run)
    except RecipeError as error:
        log.warning("%s: finished before, and made again: %s", ", ".join(stale), error)
        return
    if changes:
        why = f"the recipe has changed in {_listed(changes)}"
    else:
        stale = [name for name in stale if _is_first(run, name)]
        why = "files or packages that it reads have changed since, and the recipe has not"
    if stale:
        log.warning("%s: finished before, and made again: %s", ", ".join(stale), why)


def _is_first(run: Run, stage: str) -> bool:
    """Whether a stage is stale by itself, not because of damage or of a stage before it."""
    needs = STAGES[stage].needs
    return all(is_current(run, need) for need in needs) and not run.folder.faults(stage)


def _changes(run: Run) -> Changes:
    """The keys in which the recipe differs from the one that the folder was made by.

    Raises `RecipeError` where that one cannot be read.
    """
    file = run.folder.path / "recipe.yaml"
    if not file.is_file():
        raise RecipeError(f"There is no {file}.")
    before = check_recipe(read_values(str(file)))
    return dict(_differing(_plain(before), _plain(run.recipe), ""))


def _plain(recipe: Recipe) -> dict[str, Any]:
    found: dict[str, Any] = recipe.model_dump(mode="json", by_alias=True)
    return found


def _differing(one: Any, other: Any, path: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(key, both values) of every key that differs, but for those without effect."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in dict.fromkeys([*one, *other]):
            if name not in (WITHOUT_EFFECT | ASKING if path in SERVERS else WITHOUT_EFFECT):
                yield from _differing(one.get(name), other.get(name), f"{path}.{name}".lstrip("."))
    elif one != other:
        yield path, (one, other)


def _listed(changes: Changes) -> str:
    """The keys, with their values before and now where these are short."""
    said = [f"`{key}`{_both(*values)}" for key, values in changes.items()]
    more = f" and {len(said) - MOST_KEYS} more" if len(said) > MOST_KEYS else ""
    return ", ".join(said[:MOST_KEYS]) + more


def _both(before: Any, now: Any) -> str:
    texts = [json.dumps(value, ensure_ascii=False) for value in (before, now)]
    return f" ({texts[0]}, now {texts[1]})" if max(map(len, texts)) <= MOST_CHARACTERS else ""
