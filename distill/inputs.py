"""What each stage depends on: sections of the recipe, files, and the stages before it."""

from __future__ import annotations

from typing import Any

from attar import __version__
from attar.files import fingerprint
from distill.data import source_stamp
from distill.run import Run
from teachers.load import teacher_identity

NEEDS = {
    "cache": ["adapt-teacher"],
    "build": ["adapt-teacher"],
    "train": ["cache", "build"],
    "specialize": ["train"],
    "export": ["train", "specialize"],
    "evaluate": ["build", "train", "export"],
    "report": ["evaluate"],
}


def _sections(run: Run, stage: str) -> list[Any]:
    """The parts of the recipe that a stage reads itself."""
    recipe = run.recipe
    data = [recipe.data.model_dump(), source_stamp(recipe.data), recipe.seed]
    special = recipe.specialize
    if special is not None and special.data is not None and stage in ("cache", "specialize"):
        data.append([special.data.model_dump(), source_stamp(special.data)])
    teacher = [teacher_identity(recipe.teacher), recipe.teacher.model_dump()]
    parts: dict[str, list[Any]] = {
        "adapt-teacher": [data, teacher],
        "cache": [data, teacher, recipe.cache.model_dump(exclude={"batch_tokens"})],
        "build": [data, teacher, recipe.student.model_dump()],
        "train": [recipe.train.model_dump(exclude={"trackers"})],
        "specialize": [data, special.model_dump() if special is not None else None],
        "export": [recipe.export.model_dump()],
        "evaluate": [data, recipe.evaluate.model_dump()],
        "report": [],
    }
    return parts[stage]


def inputs_of(run: Run, stage: str) -> str:
    """Fingerprint of everything a stage's result depends on."""
    upstream = [inputs_of(run, need) for need in NEEDS.get(stage, [])]
    return fingerprint([__version__, stage, _sections(run, stage), upstream])


def is_done(run: Run, stage: str) -> bool:
    """Whether a stage's record says that its result is of these very inputs."""
    record = run.record(stage)
    return record is not None and record.inputs == inputs_of(run, stage)
