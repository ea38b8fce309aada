"""Which stages are done: their results are there and were made from the inputs as they are now."""

from __future__ import annotations

from attar import __version__
from attar.files import fingerprint
from distill.run.context import Run
from distill.stages import (  # noqa: F401  (importing enrols)
    adapt_teacher,
    answer,
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


def made_from(run: Run, stage: str) -> str:
    """Fingerprint of the inputs of a stage and of the files of the stages that it needs.

    A stage that is done again and leaves the same bytes thus leaves later ones up to date.
    """
    digests = [_digest(run, need) for need in STAGES[stage].needs]
    return fingerprint([inputs_of(run, stage), digests])


def _digest(run: Run, stage: str) -> str | None:
    record = None if WORK[stage].skipped(run) else run.folder.record(stage)
    return record.digest if record is not None else None


def is_done(run: Run, stage: str) -> bool:
    """Whether a stage has nothing to do: the recipe leaves it out, or its result is there as it
    was left, and was made from these very inputs, and so were those of the stages that it needs.
    """
    return is_current(run, stage) and (WORK[stage].skipped(run) or WORK[stage].made(run))


def is_current(run: Run, stage: str) -> bool:
    """`is_done`, whether or not there still is what the stage left for `made` to find: a cache may
    be deleted once nothing learns from it any more.
    """
    if WORK[stage].skipped(run):
        return True
    if not all(is_current(run, need) for need in STAGES[stage].needs):
        return False
    record = run.folder.record(stage)
    return (
        record is not None
        and record.inputs == made_from(run, stage)
        and not run.folder.faults(stage)
    )


def first_fault(run: Run, stage: str) -> tuple[str, str] | None:
    """(stage, sentence) of the first file that is not as this stage, or one before it, left it."""
    if WORK[stage].skipped(run):
        return None
    for need in STAGES[stage].needs:
        if found := first_fault(run, need):
            return found
    faults = run.folder.faults(stage)
    return (stage, faults[0]) if faults else None


def is_shaped(run: Run) -> bool:
    """Whether the student's shape is known: the recipe gives it, or a search has found it."""
    return run.recipe.student.target is None or is_done(run, "build")
