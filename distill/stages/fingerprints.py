"""Parts of the recipe and of its files that several stages depend on, for their fingerprints."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attar.errors import RunError
from attar.files import clear, read_json, write_json
from attar.libraries import library_versions
from attar.models.fingerprints import tokenizer_files_fingerprint
from distill.data.config import source_stamp
from distill.data.prepare import FORMAT
from distill.run.context import Run
from teachers.load import teacher_identity

log = logging.getLogger(__name__)


def _once(run: Run, name: str, make: Callable[[], list[Any]]) -> list[Any]:
    """What `make` gives, asked once a command: it may read every byte of many files."""
    if name not in run.inputs_read:
        run.inputs_read[name] = make()
    return run.inputs_read[name]


def data_inputs(run: Run) -> list[Any]:
    """What the examples depend on."""
    recipe = run.recipe
    return _once(
        run,
        "data",
        lambda: [
            FORMAT,
            recipe.task,
            run.task.signal_identity(run),
            recipe.data.model_dump(),
            source_stamp(recipe.data),
            recipe.seed,
            tokenizer_files_fingerprint(recipe.teacher.model),
            library_versions("transformers", "tokenizers", "datasets"),  # which ids a text becomes
        ],
    )


def specializing_data_inputs(run: Run) -> list[Any]:
    """What the examples of the run and of `specialize.data` depend on."""
    special, found = run.recipe.specialize, data_inputs(run)
    if special is not None and special.data is not None:
        found = [*found, [special.data.model_dump(), source_stamp(special.data)]]
    return found


def teacher_inputs(run: Run) -> list[Any]:
    """What the teacher depends on."""
    teacher = run.recipe.teacher
    versions = library_versions("torch", "transformers")  # what a model computes
    return _once(
        run, "teacher", lambda: [teacher_identity(teacher), teacher.model_dump(), versions]
    )


def discard_other(folder: Path, wanted: str) -> None:
    """Delete checkpoints of a training that was made from other inputs; keep those it can go on
    from. `wanted`: the fingerprint of the inputs now.
    """
    mark = folder / "inputs.json"
    if folder.exists() and _inputs_in(mark) != wanted:
        log.info("%s was made from other inputs, or does not say from which: deleted", folder)
        clear(folder)
    write_json(mark, {"inputs": wanted})


def _inputs_in(mark: Path) -> str | None:
    """The fingerprint in a file of `discard_other`; None where there is none to be read."""
    try:
        return str(read_json(mark)["inputs"])
    except (FileNotFoundError, RunError, ValueError, KeyError, TypeError):
        return None
