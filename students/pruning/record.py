"""pruning.json: the model a student was cut out of, what was kept, and records of several cuts.

If channels were rotated, rotation.safetensors beside it holds the rotation, of shape (teacher's
channels, student's channels).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attar.errors import ModelError
from attar.files import read_json, read_json_object, staged_file
from attar.models.structure import num_layers
from students.pruning.architectures import sizes_of
from students.pruning.importance import ImportanceScores
from students.pruning.prune import KeptParts

PRUNING_FILE, ROTATION_FILE = "pruning.json", "rotation.safetensors"
PruningRecord = dict[str, Any]


def pruning_record(
    teacher: nn.Module,
    kept: KeptParts,
    by: str,
    refitted: bool,
    widths: Mapping[str, BaseModel],
    scores: ImportanceScores | None,
) -> PruningRecord:
    """Return the content of pruning.json: the kept parts, their scores, and the layer map.

    `layers[s]` is the teacher's layer that corresponds to the student's layer s (the states behind
    s blocks). `channels` is the teacher's channel of each student channel; null means all.
    """
    depth = num_layers(teacher)
    found: PruningRecord = {
        "teacher_layers": depth,
        "kept": kept.blocks,
        "by": by,
        "layers": [*kept.blocks, depth],
        "groups": kept.groups,
        "neurons": kept.neurons,
        "channels": kept.channels,
        "refit": refitted,
    }
    with suppress(ModelError):  # families that can be cut by blocks only have no sizes
        found["teacher_sizes"] = asdict(sizes_of(teacher.config))
    if widths:
        found["widths"] = {key: one.model_dump() for key, one in widths.items()}
    if scores is not None:
        lists = {"groups": scores.groups_LG, "neurons": scores.neurons_LI}
        wanted = {"channels": scores.channels_H, **lists}
        found["scores"] = {name: _four_digits(one.tolist()) for name, one in wanted.items()}
    return found


def _four_digits(numbers: Any) -> Any:
    """Round every number in nested lists to four significant digits."""
    if isinstance(numbers, list):
        return [_four_digits(one) for one in numbers]
    return float(f"{numbers:.4g}")


# Reading it back -------------------------------------------------------------------------------


def read_pruning(folder: str | Path, teacher: str) -> PruningRecord | None:
    """Return the record of a student that was cut out of this teacher, else None."""
    file = Path(folder) / PRUNING_FILE
    found = read_json_object(file) if file.exists() else {}
    return found if found.get("teacher") == teacher else None


def channel_map(folder: Path, teacher_width: int) -> Tensor | None:
    """Return the matrix from the teacher's channels to a cut student's, (teacher's, student's).

    Returns None if the folder holds no student with fewer channels.
    """
    if (folder / ROTATION_FILE).exists():
        return load_file(str(folder / ROTATION_FILE))["rotation"]
    file = folder / PRUNING_FILE
    channels = read_json(file).get("channels") if file.exists() else None
    return None if channels is None else torch.eye(teacher_width)[:, channels]


def save_rotation(rotation: Tensor, folder: Path) -> None:
    """Save the rotation beside pruning.json."""
    with staged_file(folder / ROTATION_FILE) as aside:
        save_file({"rotation": rotation.contiguous()}, str(aside))


def copy_pruning(source: Path, folder: Path) -> None:
    """Copy a student's record to the folder of the same student after training."""
    for name in (PRUNING_FILE, ROTATION_FILE):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


# Several cuts ------------------------------------------------------------------------------------


def compose_records(first: PruningRecord, again: PruningRecord) -> PruningRecord:
    """Return the record of a student that was cut twice, in the first teacher's numbers."""
    kept = [first["kept"][block] for block in again["kept"]]
    sizes = {"teacher_sizes": first["teacher_sizes"]} if "teacher_sizes" in first else {}
    parts = {
        name: _compose_parts(first[name], again[name], again["kept"])
        for name in ("groups", "neurons")
    }
    return {
        **again,
        **sizes,
        "teacher": first["teacher"],
        "teacher_layers": first["teacher_layers"],
        "kept": kept,
        "layers": [*kept, first["teacher_layers"]],
        **parts,
        "channels": _compose_channels(first["channels"], again["channels"]),
    }


def compose_rotations(folder: Path, rotation: Tensor | None, again: PruningRecord) -> Tensor | None:
    """Return the rotation of two cuts together, or None if neither cut rotated.

    folder: of the student of the first cut. rotation, again: rotation and record of the second.
    """
    file, first = folder / ROTATION_FILE, read_json(folder / PRUNING_FILE)
    before = load_file(str(file))["rotation"] if file.exists() else None
    if before is None and rotation is None:
        return None
    middle = before.shape[1] if before is not None else rotation.shape[0]  # type: ignore[union-attr]
    wide = middle if first["channels"] is None else first["teacher_sizes"]["channels"]
    before = _channel_matrix(before, first["channels"], wide)
    return before @ _channel_matrix(rotation, again["channels"], middle)


def _channel_matrix(rotation: Tensor | None, channels: list[int] | None, width: int) -> Tensor:
    """Return a rotation, or a choice of channels, as a matrix (before, after)."""
    if rotation is not None:
        return rotation
    return torch.eye(width) if channels is None else torch.eye(width)[:, channels]


def _compose_channels(first: list[int] | None, again: list[int] | None) -> list[int] | None:
    if first is None or again is None:
        return again if first is None else first
    return [first[number] for number in again]


def _compose_parts(
    first: list[list[int]] | None, again: list[list[int]] | None, blocks: list[int]
) -> list[list[int]] | None:
    """Return the parts kept per block after two cuts, in the first teacher's numbers."""
    if first is None:
        return again
    before = [first[block] for block in blocks]
    if again is None:
        return before
    return [[b[i] for i in a] for b, a in zip(before, again, strict=True)]
