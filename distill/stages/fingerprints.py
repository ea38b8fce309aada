"""Parts of the recipe and of its files that several stages depend on, for their fingerprints."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attar.errors import RunError
from attar.files import clear, read_json_object, write_json
from attar.libraries import library_versions
from attar.models.fingerprints import tokenizer_files_fingerprint, weights_fingerprint
from distill.data.config import source_stamp
from distill.data.prepare import FORMAT
from distill.run.context import Run
from distill.training.checkpoint import INPUTS_FILE
from distill.training.config import WITHOUT_EFFECT, LoopConfig
from teachers.load import TeacherConfig, teacher_identity
from teachers.server_config import ASKING

log = logging.getLogger(__name__)


def _once(run: Run, name: str, make: Callable[[], list[Any]]) -> list[Any]:
    """What `make` gives, asked once a command: it may read every byte of many files."""
    if name not in run.inputs_read:
        run.inputs_read[name] = make()
    return run.inputs_read[name]


def data_inputs(run: Run) -> list[Any]:
    """What the examples depend on."""
    recipe = run.recipe
    asked = recipe.teacher.prompt is not None
    return _once(
        run,
        "data",
        lambda: [
            FORMAT,
            recipe.task,
            run.task.signal_identity(run),
            recipe.data.read,
            source_stamp(recipe.data),
            recipe.seed,
            tokenizer_files_fingerprint(recipe.teacher.model),
            *_own_tokenizer(run),
            library_versions("transformers", "tokenizers", "datasets"),  # which ids a text becomes
            *(run.reader(recipe.data).stamp if asked else []),
        ],
    )


def _own_tokenizer(run: Run) -> list[Any]:
    """Fingerprint of the student's tokenizer, where it is not the teacher's."""
    name = run.recipe.student.named_tokenizer
    return [tokenizer_files_fingerprint(name)] if run.transports and name is not None else []


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
    elsewhere: Any = {"adapt": WITHOUT_EFFECT, "server": ASKING, "prompt": True}
    values = teacher.model_dump(exclude=elsewhere)
    if teacher.server is None:
        values.pop("server", None)
    return _once(run, "teacher", lambda: [teacher_identity(teacher), values, versions])


def reference_inputs(run: Run, config: LoopConfig | None) -> list[Any]:
    """What a training depends on of the models that its section names, as `reference` or to give
    rewards; empty where it names none, since the student's start is known from the stages before.
    """
    if config is None:
        return []
    found: list[Any] = []
    if (name := config.reference) is not None:
        config_of = TeacherConfig(model=name)
        found += _once(run, f"reference {name}", lambda: [teacher_identity(config_of)])
    reward = None if config.rollouts is None else config.rollouts.reward
    if reward is not None and (judge := reward.model) is not None:
        found += _once(run, f"reward {judge}", lambda: [weights_fingerprint(judge)])
    return found


def discard_other(folder: Path, wanted: str) -> None:
    """Delete checkpoints of a training that was made from other inputs; keep those it can go on
    from. `wanted`: the fingerprint of the inputs now.
    """
    mark = folder / INPUTS_FILE
    found = _read_mark(mark)
    if folder.exists() and found.get("inputs") != wanted:
        log.info("%s was made from other inputs, or does not say from which: deleted", folder)
        clear(folder)
    elif found.get("finished"):
        log.warning(
            "%s: this training was finished and its checkpoints deleted (`keep_checkpoints`): it "
            "is trained again from the start",
            folder,
        )
    write_json(mark, {"inputs": wanted})


def _read_mark(mark: Path) -> dict[str, Any]:
    """What a file of `discard_other` holds; nothing where there is none to be read."""
    try:
        return read_json_object(mark)
    except (FileNotFoundError, RunError):
        return {}
