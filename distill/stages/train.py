"""Stage `train`: the distilled student, and control arms on the same tokens in the same order."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import torch

from attar.files import fingerprint, read_json, write_json
from attar.models.task_heads import load_as_saved
from distill.run.context import Run
from distill.run.folder import StageRecord, on_first_process
from distill.stages.fingerprints import discard_other
from distill.stages.stage import TRAIN, work
from distill.stages.training import run_training
from distill.training.arms import ARMS, DISTILL
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
    return [run.folder.arm_student(arm) for arm in arms_of(run)]


@work(
    TRAIN,
    inputs=lambda run: [run.recipe.train.model_dump(exclude={"trackers"})],
    outputs=_outputs,
)
def train(run: Run, inputs: str) -> StageRecord:
    """Train every arm that is not finished."""
    tokens, notes = 0, {}
    for arm in arms_of(run):
        done = run.folder.arm(arm) / "result.json"
        wanted = fingerprint([inputs, arm])
        if not (done.exists() and read_json(done)["inputs"] == wanted):
            _train_arm(run, arm, wanted)
        found = read_json(done)
        tokens += found["tokens"]
        notes[arm] = {key: found[key] for key in NOTED}
    return StageRecord(TRAIN.name, tokens=tokens, notes=notes)


def _train_arm(run: Run, arm: str, inputs: str) -> None:
    """Train one arm from the untrained student, and keep its student and result."""
    config, folder = run.recipe.train, run.folder.arm(arm)
    with on_first_process() as first:
        if first:
            discard_other(folder, inputs)
    student = load_as_saved(
        str(run.folder.student), dtype=torch.float32, trust_remote_code=run.trusts_student
    )
    prepare_learning(student, config.trainable, config.reinitialize, run.recipe.seed)
    log.info("%s: %s", arm, how_much_learns(student))
    arm_config = ARMS[arm].configure(config)
    result = run_training(run, arm, "train", student, arm_config, run.recipe.data, folder)
    with on_first_process() as first:
        if first:
            save_student(student, run.tokenizer, run.folder.arm_student(arm))
            copy_pruning(run.folder.student, run.folder.arm_student(arm))
            run.task.write_extra_files(run, run.folder.arm_student(arm))
            write_json(folder / "result.json", {"inputs": inputs, **asdict(result)})
