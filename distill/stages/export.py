"""Stage `export`: the artifacts, each in a folder of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from attar.checksums import files_below
from attar.errors import RunError, UserError
from attar.files import bytes_under, fingerprint, read_json
from attar.libraries import library_versions
from attar.progress import progress
from distill.data.calibration import calibration_rows
from distill.data.config import sources_of
from distill.prompting.prompt import TEXT
from distill.prompting.prompt_file import PROMPT_FILE, read_prompt
from distill.run.context import Run
from distill.run.folder import StageRecord
from distill.run.published import hub_data, hub_models, published_name, published_recipe
from distill.stages.fingerprints import discard_other, reference_inputs
from distill.stages.reference import Start
from distill.stages.stage import EXPORT, work
from distill.stages.training import run_training
from distill.training.config import WITHOUT_EFFECT, spent
from students.artifacts.artifact import (
    CARD_FILE,
    MANIFEST_FILE,
    ArtifactInputs,
    export_artifact,
    write_failure,
)
from students.artifacts.model_card import NOT_MEASURED, model_card

log = logging.getLogger(__name__)
# What a library raises for a model that it cannot write. A full disk is not among it: that ends the
# stage, which is done again later.
CANNOT_BE_MADE = (
    UserError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
    ImportError, ArithmeticError,
)  # fmt: skip


def _inputs(run: Run) -> list[Any]:
    values = run.recipe.export.model_dump(exclude={"recover": WITHOUT_EFFECT})
    versions = library_versions("peft", "bitsandbytes", "torchao")
    return [values, versions, *reference_inputs(run, run.recipe.export.recover)]


def _outputs(run: Run) -> list[Path]:
    """All of the artifacts but their cards and manifests, in which `evaluate` fills in numbers."""
    folders = [run.folder.artifact(name) for name in run.artifacts]
    changing = {folder / name for folder in folders for name in (CARD_FILE, MANIFEST_FILE)}
    return [file for file in files_below(folders) if file not in changing]


def _spent(run: Run) -> list[Path]:
    """All number formats': a second artifact of a format goes on from the first one's training."""
    return spent(run.recipe.export.recover, *run.folder.path.glob("recovered/*"))


@work(EXPORT, inputs=_inputs, outputs=_outputs, spent=_spent)
def export(run: Run, inputs: str) -> StageRecord:
    """Make the artifacts. One that cannot be made leaves its reason; the others go on."""
    given = artifact_inputs(run, partial(_recover, run, inputs))
    with progress("artifacts", len(run.artifacts), "artifacts") as work:
        for name in run.artifacts:
            log.info("export: %s", name)
            work.report(name)
            _make_artifact(run, name, given)
            work.advance()
    size = sum(bytes_under(run.folder.artifact(name)) for name in run.artifacts)
    return StageRecord(EXPORT.name, bytes=size)


def _make_artifact(run: Run, name: str, given: ArtifactInputs) -> None:
    """Make one artifact, or leave the reason why it cannot be made."""
    card = card_of(run, name, NOT_MEASURED)
    folder = run.folder.artifact(name)
    _forget_failure(run.folder.evaluation / f"{name}.json")
    try:
        export_artifact(name, given, folder, card)
    except CANNOT_BE_MADE as error:
        if isinstance(error, RunError):
            raise
        reason = reason_of(error)
        write_failure(folder, name, reason)
        log.error(
            "export: `%s` could not be made: %s (Delete %s to try again.)", name, reason, folder
        )
        log.debug("export: %s", name, exc_info=True)


def _forget_failure(numbers: Path) -> None:
    """Let an artifact that failed before be measured once it is made."""
    if numbers.is_file() and "failed" in read_json(numbers):
        numbers.unlink()


def reason_of(error: Exception) -> str:
    """An error as one line; of a library's, with its kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:500]}"


def _recover(run: Run, inputs: str, number_format: str, model: nn.Module) -> None:
    """Train scales and norms of a rounded student in place; go on if this was stopped before."""
    config = run.recipe.export.recover
    assert config is not None
    folder, name = run.folder.recovered(number_format), f"recover {number_format}"
    discard_other(folder, fingerprint([inputs, number_format]))
    start = Start(str(run.folder.arm_student()), {"rounded": number_format, "inputs": inputs})
    data = run.recipe.data
    result = run_training(run, name, "export.recover", model, config, data, folder, start)
    log.info("export: scales and norms of %s learned from %d tokens", number_format, result.tokens)


def artifact_inputs(
    run: Run, recover: Callable[[str, nn.Module], None] | None = None
) -> ArtifactInputs:
    """What the run's artifacts are made from; `recover` trains a rounded model in place."""
    special, export = run.recipe.specialize, run.recipe.export
    adapter = run.folder.adapter
    return ArtifactInputs(
        student=run.folder.arm_student(),
        merged=run.merged_student,
        adapter=adapter if special is not None and special.leaves == "adapter" else None,
        base=special.base if special is not None else "none",
        calibration=lambda: calibration_rows(run.training_examples(), export.calibration_tokens),
        rounding=export.rounding,
        recover=recover if export.recover is not None else None,
        trust_remote_code=run.trusts_student,
    )


def card_of(run: Run, name: str, measured: str) -> str:
    """The model card of an artifact of this run."""
    special = run.recipe.specialize
    own = sources_of(special.data) if special is not None and special.data is not None else []
    return model_card(
        name=name,
        given=artifact_inputs(run),
        recipe=yaml.safe_dump(published_recipe(run.recipe), sort_keys=False),
        teacher=published_name(run.recipe.teacher.model),
        data=[published_name(source) for source in sources_of(run.recipe.data)],
        specialized_on=[published_name(source) for source in own],
        base_models=hub_models(run.recipe),
        datasets=hub_data(run.recipe),
        license=run.recipe.export.license,
        measured=measured,
        prompt=_prompt_section(run),
    )


def _prompt_section(run: Run) -> str:
    """How to ask the student, where `distill prompt` found a prompt for it; else empty.

    Demonstrations are rows of the user's data, which a card does not publish.
    """
    config, file = run.recipe.prompt, run.folder.prompt / PROMPT_FILE
    if config is None or config.model != "student" or not file.is_file():
        return ""
    try:
        kept, _ = read_prompt(file)
    except RunError as error:
        log.warning("export: the cards do not say how to ask the student: %s", error)
        return ""
    rows = f", after {kept.shots} training rows with their answers" if kept.shots else ""
    lines = kept.prompt([]).text(kept.template if kept.template != kept.wrapping else TEXT)
    accuracy = kept.numbers["accuracy"]
    return (
        f"## Prompt\n\nOf the prompts that were compared, this one was best{rows}; accuracy "
        f"{accuracy:.1%} on questions that did not choose it.\n\n```text\n{lines}\n```\n\n"
    )
