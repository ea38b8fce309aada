"""The weights of a training's best step, in a file of their own beside its checkpoints.

The file is named after the step, and a checkpoint has its checksum: so the file that a checkpoint
speaks of is never overwritten by a later one, and the last weights never pass for the best.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from attar.checksums import Recorded, faults_of, record_files
from attar.errors import RunError
from attar.files import read_json_object
from distill.training.checkpoint import load_learned, save_learned


def best_file(folder: Path, step: int) -> Path:
    """The file of the best weights, if that step was the best."""
    return folder / f"best-{step}.safetensors"


def save_best(learner: nn.Module, folder: Path, step: int) -> Recorded:
    """Write the weights that learn as those of the best step; returns the file's record."""
    save_learned(learner, best_file(folder, step))
    return record_files([best_file(folder, step)], folder)


def load_best(learner: nn.Module, folder: Path, step: int, recorded: Recorded) -> None:
    """Read the weights of the best step. Raises `RunError` where the file is not as written."""
    for name, fault in faults_of(recorded, folder).items():
        raise RunError(
            f"{folder / name}, the best weights of this training, {fault}; run the same command "
            "again to train from the start."
        )
    load_learned(learner, best_file(folder, step))


def drop_others(folder: Path, *steps: int) -> None:
    """Delete best weights of other steps than these."""
    kept = {best_file(folder, step) for step in steps}
    for file in folder.glob("best-*.safetensors"):
        if file not in kept:
            file.unlink()


def best_is_lost(folder: Path) -> bool:
    """Whether the best weights, of which the last checkpoint speaks, are not as written.

    Not where the checkpoint itself is the best step, as it has the same weights.
    """
    try:
        found = read_json_object(folder / "last" / "progress.json", "step", "best_step")
    except (OSError, RunError):
        return False  # there is no checkpoint to go on from
    if found["step"] == found["best_step"]:
        return False
    return bool(faults_of(found.get("best_record", {}), folder))
