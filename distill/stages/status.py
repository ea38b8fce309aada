"""Which stages are done: their results are there and were made from the inputs as they are now."""

from __future__ import annotations

from attar import __version__
from attar.files import fingerprint
from distill.run.context import Run
from distill.stages import (  # noqa: F401  (importing enrols)
    adapt_teacher,
    build,
    cache,
    evaluate,
    export,
    report,
    specialize,
    train,
)
from distill.stages.stage import STAGES, WORK


def inputs_of(run: Run, stage: str) -> str:
    """Fingerprint of everything that a stage's result depends on; all are taken once a command."""
    if not run.fingerprints:
        for name, found in STAGES.items():
            upstream = [run.fingerprints[need] for need in found.needs]
            parts = [__version__, name, WORK[name].inputs(run), upstream]
            run.fingerprints[name] = fingerprint(parts)
    return run.fingerprints[stage]


def is_done(run: Run, stage: str) -> bool:
    """Whether a stage has nothing to do: the recipe leaves it out, or its result is there and its
    record says that it was made from these very inputs.
    """
    work = WORK[stage]
    if work.skipped(run):
        return True
    if not (work.made(run) and all(path.exists() for path in work.outputs(run))):
        return False
    record = run.folder.record(stage)
    return record is not None and record.inputs == inputs_of(run, stage)


def is_shaped(run: Run) -> bool:
    """Whether the student's shape is known: the recipe gives it, or a search has found it."""
    return run.recipe.student.target is None or is_done(run, "build")
