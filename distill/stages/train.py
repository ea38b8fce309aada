"""Stage `train`: the distilled student, and control arms on the same tokens in the same order."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attar.checksums import faults_of, record_files
from attar.errors import RunError
from attar.files import fingerprint, read_json, read_json_object, write_json
from attar.libraries import library_versions
from attar.models.task_heads import load_as_saved
from distill.run.context import Run
from distill.run.folder import StageRecord, on_first_process
from distill.stages.fingerprints import discard_other, reference_inputs
from distill.stages.reference import Start
from distill.stages.stage import TRAIN, work
from distill.stages.training import learns_from_unfinished, run_training
from distill.stages.unfinished_cache import SUBSET_FILE
from distill.training.arms import ARMS, DISTILL
from distill.training.checkpoint import drop_checkpoints
from distill.training.config import WITHOUT_EFFECT, spent
from distill.training.job import Result
from distill.training.layerwise_lr import how_much_learns
from students.pruning.record import copy_pruning
from students.save import save_student
from students.tuning.trainable import prepare_learning

log = logging.getLogger(__name__)
NOTED = ("steps", "tokens", "seconds", "best_step", "peak_memory_bytes")


def arms_of(run: Run) -> list[str]:
    """Names of the arms that are trained, the distilled one first."""
    return [DISTILL, *run.recipe.train.arms]


def _outputs(run: Run) -> list[Path]:
    folders = [run.folder.arm(arm) for arm in arms_of(run)]
    return [path for one in folders for path in (one / "student", one / "result.json")]


def _spent(run: Run) -> list[Path]:
    return spent(run.recipe.train, *map(run.folder.arm, arms_of(run)))


@work(
    TRAIN,
    inputs=lambda run: [
        run.recipe.train.model_dump(exclude=WITHOUT_EFFECT),
        library_versions("accelerate"),
        *reference_inputs(run, run.recipe.train),
    ],
    outputs=_outputs,
    spent=_spent,
)
def train(run: Run, inputs: str) -> StageRecord:
    """Train every arm that is not finished; delete its checkpoints before the next one's come."""
    tokens, notes = 0, {}
    for arm in arms_of(run):
        wanted = fingerprint([inputs, arm, *_subset(run, arm)])
        found = _finished_arm(run, arm, wanted)
        if found is None:
            _train_arm(run, arm, wanted)
            found = read_json(run.folder.arm(arm) / "result.json")
            with on_first_process() as first:  # the others have read the best weights by now
                if first and run.folder.arm(arm) in _spent(run):
                    drop_checkpoints(run.folder.arm(arm))
        tokens += found["tokens"]
        notes[arm] = {key: found[key] for key in NOTED}
    return StageRecord(TRAIN.name, tokens=tokens, notes=notes)


def _finished_arm(run: Run, arm: str, inputs: str) -> dict[str, Any] | None:
    """What an arm left, where it was made from these inputs and its student is as it was left."""
    file = run.folder.arm(arm) / "result.json"
    if not file.exists():
        return None
    try:
        found = read_json_object(file, "inputs", "files", "history", *NOTED)
    except RunError:
        log.warning("train: %s was changed; it is made again", file)
        return None
    if found["inputs"] != inputs:
        return None
    faults = faults_of(found["files"], run.folder.path)
    for name, fault in faults.items():
        log.warning("train: %s %s; it is made again", name, fault)
    return None if faults else found


def _subset_file(run: Run) -> Path:
    """The examples of an unfinished cache that the distilled arm, the first one, learns from."""
    return run.folder.arm(DISTILL) / SUBSET_FILE


def _subset(run: Run, arm: str) -> list[str]:
    """What a control arm's result depends on beside the stage's inputs: it learns from the same
    examples as the distilled one.
    """
    shared = learns_from_unfinished(run, "train") and arm != DISTILL
    return [fingerprint(read_json(_subset_file(run)))] if shared else []


def train_to_step(run: Run, arm: str, inputs: str, step: int, into: Path) -> Result:
    """Train one arm to a step of its schedule, where it pauses; save the student of that step into
    a folder. The same arm goes on from there. `inputs`: the fingerprint of the stage's.

    Raises `RunError` for a training that is beyond this step.
    """
    wanted = fingerprint([inputs, arm, *_subset(run, arm)])
    if _finished_arm(run, arm, wanted) is not None:
        raise RunError(
            f"`{arm}` in {run.folder} is trained to the end and cannot pause at step {step}; "
            f"delete {run.folder.arm(arm)} to train it again."
        )
    student, result = _learn(run, arm, wanted, until=step)
    with on_first_process() as first:
        if first:
            save_student(student, run.tokenizer, into)
            run.task.write_extra_files(run, into)
    return result


def _train_arm(run: Run, arm: str, inputs: str) -> None:
    """Train one arm from the untrained student, and keep its student and result."""
    student, result = _learn(run, arm, inputs)
    with on_first_process() as first:
        if first:
            save_student(student, run.tokenizer, run.folder.arm_student(arm))
            copy_pruning(run.folder.student, run.folder.arm_student(arm))
            run.task.write_extra_files(run, run.folder.arm_student(arm))
            files, left = (
                record_files([run.folder.arm_student(arm)], run.folder.path),
                asdict(result),
            )
            write_json(
                run.folder.arm(arm) / "result.json", {"inputs": inputs, "files": files, **left}
            )


def _learn(run: Run, arm: str, inputs: str, until: int | None = None) -> tuple[nn.Module, Result]:
    """(student, result) of one arm's training, from the untrained student or its checkpoint; a
    student that is to learn nothing stays as it was built.
    """
    config, folder = run.recipe.train, run.folder.arm(arm)
    with on_first_process() as first:
        if first:
            discard_other(folder, inputs)
    student = load_as_saved(
        str(run.folder.student), dtype=torch.float32, trust_remote_code=run.trusts_student
    )
    if not config.learns:
        log.info("%s: no steps (`train.max_steps: 0`), the student stays as it was built", arm)
        return student, Result(steps=0, tokens=0, seconds=0.0, best_step=0)
    prepare_learning(student, config.trainable, config.reinitialize, run.recipe.seed)
    log.info("%s: %s", arm, how_much_learns(student))
    arm_config = ARMS[arm].configure(config, run.task.label_loss)
    data, subset = run.recipe.data, _subset_file(run)
    start = Start(
        str(run.folder.student), {"reinitialize": config.reinitialize, "seed": run.recipe.seed}
    )
    result = run_training(
        run, arm, "train", student, arm_config, data, folder, start, subset,
        gold=ARMS[arm].gold, until=until,
    )  # fmt: skip
    return student, result
