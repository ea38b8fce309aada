"""What each stage depends on: sections of the recipe, files, and the stages before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attar import __version__
from attar.files import fingerprint
from attar.models.fingerprints import tokenizer_files_fingerprint, weights_fingerprint
from distill.data.config import source_stamp, stamp_of
from distill.evaluation.downstream.questions import task_stamp
from distill.run.context import Run
from teachers.cache.store import SignalStore
from teachers.load import teacher_identity

ORDER = (
    "adapt-teacher", "cache", "build", "train", "specialize", "export", "evaluate", "report",
)  # fmt: skip
NEEDS = {
    "cache": ["adapt-teacher"],
    "build": ["adapt-teacher"],
    "train": ["cache", "build"],
    "specialize": ["train"],
    "export": ["train", "specialize"],
    "evaluate": ["build", "train", "export"],
    "report": ["evaluate"],
}


def _sections(run: Run) -> dict[str, list[Any]]:
    """The parts of the recipe, and the files, that each stage reads itself."""
    recipe, pairs = run.recipe, run.recipe.evaluate.pairs
    tokenizer = tokenizer_files_fingerprint(recipe.teacher.model)
    data = [
        recipe.task,
        run.task.signal_identity(run),
        recipe.data.model_dump(),
        source_stamp(recipe.data),
        recipe.seed,
        tokenizer,
    ]
    special, student = recipe.specialize, recipe.student.from_
    with_special = data
    if special is not None and special.data is not None:
        with_special = [*data, [special.data.model_dump(), source_stamp(special.data)]]
    named = isinstance(student, str) and student != "teacher"
    weights = weights_fingerprint(str(student)) if named else None
    teacher = [teacher_identity(recipe.teacher), recipe.teacher.model_dump()]
    cached = with_special if run.specialize_reads_cache else data
    return {
        "adapt-teacher": [data, teacher],
        "cache": [cached, teacher, recipe.cache.model_dump(exclude={"batch_tokens"})],
        "build": [data, teacher, recipe.student.model_dump(), weights],
        "train": [recipe.train.model_dump(exclude={"trackers"})],
        "specialize": [with_special, special.model_dump() if special is not None else None],
        "export": [recipe.export.model_dump()],
        "evaluate": [
            data,
            recipe.evaluate.model_dump(),
            task_stamp(recipe.evaluate.tasks),
            stamp_of([pairs.source] if pairs is not None else []),
        ],
        "report": [],
    }


def inputs_of(run: Run, stage: str) -> str:
    """Fingerprint of everything a stage's result depends on; all are taken once a command."""
    if not run.inputs:
        sections = _sections(run)
        for name in ORDER:
            upstream = [run.inputs[need] for need in NEEDS.get(name, [])]
            run.inputs[name] = fingerprint([__version__, name, sections[name], upstream])
    return run.inputs[stage]


def is_done(run: Run, stage: str) -> bool:
    """Whether a stage has nothing to do: the recipe leaves it out, or its result is there and its
    record says that it was made from these very inputs.
    """
    recipe = run.recipe
    if (stage == "adapt-teacher" and recipe.teacher.adapt is None) or (
        stage == "specialize" and recipe.specialize is None
    ):
        return True
    if stage == "cache" and run.reads_cache:
        manifest = SignalStore(run.cache_url).folder.exists("manifest.json")
        if not manifest:
            return False
    record = run.record(stage)
    made = all(path.exists() for path in _outputs(run, stage))
    return made and record is not None and record.inputs == inputs_of(run, stage)


def _specialized(run: Run) -> list[Path]:
    folder, special = run.specialized_folder, run.recipe.specialize
    if special is None:
        return []
    adapter = [folder / "adapter"] if special.leaves == "adapter" else []
    return [*adapter, folder / "merged"] if special.merges else adapter


def _outputs(run: Run, stage: str) -> list[Path]:
    """Local files without which a stage is not done, whatever its record says."""
    arms = ["distill", *run.recipe.train.arms]
    found = {
        "adapt-teacher": [run.teacher_folder],
        "build": [run.student_folder],
        "train": [run.arm_folder(arm) / "student" for arm in arms],
        "specialize": _specialized(run),
        "export": [run.artifact_folder(name) for name in run.artifacts],
        "evaluate": [run.folder / "evaluation" / f"{name}.npz" for name in ["teacher", *arms]],
        "report": [run.folder / "report.json", run.folder / "report.html"],
    }
    return found.get(stage, [])
