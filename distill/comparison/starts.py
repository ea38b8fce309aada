"""Students before they learn: what all arms of a seed begin from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attar.errors import UserError
from attar.files import fingerprint, read_json, write_json
from attar.models.loading import load_config
from attar.models.task_heads import CAUSAL, auto_class_of
from distill.comparison.cells import CLASSES, Cell, Comparison, Values
from distill.pipeline import run_stages
from distill.run.load import short_form


def student_source(comparison: Comparison) -> str | dict[str, Any]:
    """What the student is made of, where no teacher was trained: a model, or a configuration."""
    recipe = comparison.recipe
    source = recipe.student.from_
    return recipe.teacher.model if source == "teacher" else source


def language_model_refusal(comparison: Comparison) -> str | None:
    """Why the student cannot be asked in words; None where it can."""
    source = student_source(comparison)
    if isinstance(source, dict):
        return "the student begins with random weights, which know no words"
    return causal_refusal(source, comparison.recipe.teacher.trust_remote_code, "the student")


def causal_refusal(model: str, trust_remote_code: bool, which: str) -> str | None:
    """Why a model cannot be asked in words; None where it can. which: the model, in words."""
    try:
        config = load_config(model, trust_remote_code=trust_remote_code)
        found = auto_class_of(config)
    except UserError as error:
        return str(error)
    if found != CAUSAL:
        return f"{which} ({model}) is no language model that writes from left to right"
    return None


def unlearned_values(comparison: Comparison, cell: Cell, task: str) -> Values:
    """A recipe for a cell's rows whose student was taught nothing by a teacher, before it learns.

    The teacher that every recipe names is the student's own source, and nothing reads it.
    """
    values = comparison.base_values(cell, task)
    source = student_source(comparison)
    short = short_form(comparison.recipe)
    if isinstance(source, str):
        teacher: Values = {"model": source}
        for key in ("trust_remote_code",):
            if key in short["teacher"]:
                teacher[key] = short["teacher"][key]
    else:
        teacher = {k: v for k, v in short["teacher"].items() if k not in ("adapt", "prompt")}
    values["teacher"] = {**teacher, **({"adapt": {}} if task == CLASSES else {})}
    values["student"] = {**short.get("student", {}), "from": source}
    values["train"] = {"objective": [{"loss": "cross_entropy"}], "arms": []}
    values.pop("cache", None)
    return values


def start_of(comparison: Comparison, seed: int, task: str) -> Path:
    """The folder of the student before it learns: as the recipe builds it, by a seed.

    The teacher that the recipe names is not adapted for it, so the stage by itself is never done;
    the file beside it says what it was built from.
    """
    cell = Cell(comparison.sizes[-1], seed)
    folder = comparison.folder / "starts" / f"{task}-seed{seed}"
    values = unlearned_values(comparison, cell, task)
    run, made = comparison.open(values, folder), folder / "built.json"
    wanted = {"from": fingerprint([values, comparison.stamp(cell)])}
    if not made.is_file() or read_json(made) != wanted or run.folder.faults("build"):
        run_stages(run, ["build"])
        write_json(made, wanted)
    return run.folder.student


def values_from_start(comparison: Comparison, cell: Cell, task: str) -> Values:
    """A recipe for a cell's rows whose student is the start of the cell's seed."""
    start = str(start_of(comparison, cell.seed, task))
    values = unlearned_values(comparison, cell, task)
    short = short_form(comparison.recipe)
    trust = {k: v for k, v in short.get("student", {}).items() if k == "trust_remote_code"}
    values["teacher"] = {"model": start, **trust}
    values["student"] = {"from": start, **trust}
    return values
