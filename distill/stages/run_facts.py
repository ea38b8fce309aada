"""What a run read, made and trained, for its report: no number here was measured of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attar.files import read_json
from attar.models.loading import load_config
from distill.report.data_parts import data_entry
from distill.report.student_shape import shape_entry
from distill.report.trainings import training_entry
from distill.report.tuning import tuning_entry
from distill.run.context import Run
from distill.stages.stage import ADAPT_TEACHER
from distill.stages.train import arms_of, students_of, validations
from distill.training.arms import ARMS, DISTILL
from distill.training.config import LoopConfig
from students.pruning.record import PRUNING_FILE


def data_facts(run: Run) -> dict[str, Any]:
    """The `data` of report.json: the parts, and what of the rows was cut or left out."""
    found = data_entry(data_stats(run, "data"), run.recipe.data.max_length)
    own = own_data_stats(run)
    if own is not None:
        found["specialize"] = data_entry(own, run.recipe.specialize.data.max_length)
    return found


def student_facts(run: Run) -> dict[str, Any]:
    """The `student` of report.json: its sizes beside the teacher's, and what was kept."""
    folder, source = run.folder.student, run.recipe.student.from_
    pruning = read_json(folder / PRUNING_FILE) if (folder / PRUNING_FILE).exists() else None
    if pruning is not None and pruning["teacher"] is None:
        pruning = None  # its numbers are those of another model
    if isinstance(source, dict):
        words = "random weights, in the shape that the recipe gives"
    elif source == "teacher":
        words = "the teacher" if pruning is None else "parts of the teacher"
    else:
        words = f"{source}, as `student.from` names it"
    config = load_config(str(folder), trust_remote_code=run.trusts_student)
    return shape_entry(run.teacher_config, config, pruning, words)


def training_facts(run: Run) -> dict[str, Any]:
    """The `training` of report.json: steps, passes and kept weights of every training, by model."""
    recipe, found = run.recipe, {}
    adapted = run.folder.record(ADAPT_TEACHER.name)
    if recipe.teacher.adapt is not None and adapted is not None and "steps" in adapted.notes:
        result = {**adapted.notes, "tokens": adapted.tokens}
        found["teacher"] = _entry(run, result, recipe.teacher.adapt, "data", gold=True)
    for arm in [*recipe.train.controls, DISTILL]:
        for name, student in students_of(run, arm).items():
            result = read_json(student.parent / "result.json")
            found[name] = _entry(run, result, recipe.train, "data", gold=ARMS[arm].gold)
    if (special := recipe.specialize) is not None:
        own = "data" if special.data is None else special.data.section
        result = read_json(run.folder.specialized / "result.json")
        found["specialized"] = _entry(run, result, special, own)
    return found


def tuning_facts(run: Run) -> dict[str, Any] | None:
    """The `tuning` of report.json; None where no arm has candidates."""
    if not run.folder.chosen.exists():
        return None
    config, arms = run.recipe.train, dict[str, list[dict[str, Any]]]()
    for arm in arms_of(run):
        known = validations(run, arm)
        arms[arm] = [
            {
                "name": name,
                "keys": {} if candidate is None else candidate.keys,
                "lr": config.lr if candidate is None else candidate.over(config).lr,
                "validation": known[name],
            }
            for name, candidate in config.candidates(arm).items()
        ]
    return tuning_entry(arms, {arm: run.folder.chosen_of(arm) for arm in arms})


def arm_costs(run: Run, notes: dict[str, Any]) -> dict[str, Any]:
    """By name of the measured model, what its training took; then what the others took."""
    trained = {
        name: student.parent.name
        for arm in arms_of(run)
        for name, student in students_of(run, arm).items()
    }
    found = {name: notes[own] for name, own in trained.items() if own in notes}
    others = {f"{n} (not chosen)": one for n, one in notes.items() if n not in trained.values()}
    return {**found, **others}


def _entry(
    run: Run, result: dict[str, Any], config: LoopConfig, section: str, *, gold: bool = False
) -> dict[str, Any]:
    """gold: it learned the data's own answers, even where a model wrote others."""
    tokens = data_stats(run, section)["train"]["tokens"]
    if section == "data" and run.recipe.data.answers is not None and not gold:
        tokens = read_json(run.folder.answers / "result.json")["kept_tokens"]
    return training_entry(result, config.keep, tokens)


def data_stats(run: Run, section: str) -> dict[str, Any]:
    """What was counted of the parts of a section of data."""
    folder: Path = run.folder.data(section)
    found: dict[str, Any] = read_json(folder / "stats.json")
    return found


def own_data_stats(run: Run) -> dict[str, Any] | None:
    """The same of the data that specialising has of its own; None where it has none."""
    special = run.recipe.specialize
    if special is None or special.data is None:
        return None
    return data_stats(run, special.data.section)
