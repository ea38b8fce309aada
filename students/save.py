"""Cut a student out of its teacher, save students, and check that they reload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ModelError, RecipeError
from attar.files import staged_folder, write_json
from attar.models.structure import width
from attar.models.task_heads import load_as_saved
from students.config import StudentConfig
from students.pruning.depth import cut_depth
from students.pruning.least_squares import refit
from students.pruning.prune import cut_model
from students.pruning.record import pruning_record, save_rotation
from students.pruning.rotation import principal_channels, rotate
from students.pruning.width import choose_parts

OUTPUT_TOLERANCE = 1e-4  # of the largest value: float32 products in another order differ less


def save_student(
    model: Any, tokenizer: Any, folder: Path, pruning: dict[str, Any] | None = None
) -> None:
    """Save a plain `transformers` checkpoint, written to a temporary folder and then renamed.

    pruning: the record that becomes pruning.json beside the weights.
    """
    with staged_folder(folder) as aside:
        model.save_pretrained(aside, safe_serialization=True)
        tokenizer.save_pretrained(aside)
        if pruning is not None:
            write_json(aside / "pruning.json", pruning)


def cut_student(
    teacher: Any,
    blocks: list[int],
    config: StudentConfig,
    calibration_BT: Tensor | None,
) -> tuple[nn.Module, dict[str, Any], Tensor | None]:
    """Cut a student out of its teacher: (float32 student, pruning record, rotation or None).

    blocks: the teacher's blocks to keep. calibration_BT: token ids that importance is measured on
    and layers are refitted to; None where the recipe asks for neither. The rotation has shape
    (teacher's channels, student's channels). Raises `RecipeError` for a cut that is not possible.
    """
    if config.refit and (calibration_BT is None or not calibration_BT.numel()):
        raise RecipeError(
            "`student.refit` needs training text to fit layers to, and there is none; leave it out."
        )
    rotation_HH = None
    if config.rotates and calibration_BT is not None:
        rotation_HH = principal_channels(teacher, calibration_BT)
        teacher = rotate(teacher, rotation_HH)
    kept, scores = choose_parts(teacher, blocks, config, calibration_BT)
    student = cut_model(teacher, kept) if config.given else cut_depth(teacher, blocks)
    student = student.float()
    if config.refit and calibration_BT is not None:
        refit(student, teacher, kept, calibration_BT)
    layers = config.layers
    by = "all" if layers is None else layers.by if isinstance(layers.keep, int) else "explicit"
    pruning = pruning_record(teacher, kept, by, config.refit, config.given, scores)
    if rotation_HH is None:
        return student, pruning, None
    rotation_HH = (
        rotation_HH[:, : width(student)].contiguous().cpu()
    )  # where rotations are multiplied
    return student, {**pruning, "channels": None}, rotation_HH


def save_cut(
    student: nn.Module,
    pruning: dict[str, Any],
    rotation: Tensor | None,
    tokenizer: Any,
    folder: Path,
    trust_remote_code: bool = False,
) -> None:
    """Save a cut student with its pruning.json and check that it reloads to the same logits."""
    save_student(student, tokenizer, folder, pruning)
    if rotation is not None:
        save_rotation(rotation, folder)
    check_reload(student, folder, trust_remote_code)


@torch.inference_mode()
def check_reload(model: Any, folder: Path, trust_remote_code: bool = False) -> None:
    """Raise `ModelError` unless the saved checkpoint is the same model.

    Every tensor is compared exactly. Outputs depend in their last bits on where tensors lie in
    memory, so they are compared with a tolerance: they show what the config does not say again.
    """
    device = next(model.parameters()).device
    again = load_as_saved(
        str(folder), dtype=torch.float32, device=device, trust_remote_code=trust_remote_code
    )
    found = what_differs(model, again)
    if found is not None:
        raise ModelError(
            f"{folder} does not reload to the same model ({found}); this family is unsupported."
        )


@torch.inference_mode()
def what_differs(model: Any, other: Any) -> str | None:
    """What tells two models of one form apart, in words; None where they are the same."""
    mine, theirs = model.state_dict(), other.state_dict()
    if mine.keys() != theirs.keys():
        return f"{min(mine.keys() ^ theirs.keys())} is in one of them only"
    for name, tensor in mine.items():
        if not torch.equal(tensor, theirs[name].to(tensor.dtype)):
            return f"{name} differs"
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids_BT = torch.arange(8, device=next(model.parameters()).device).unsqueeze(0) % vocabulary
    sides = [one(input_ids=ids_BT)[0].float() for one in (model, other)]
    off = float((sides[0] - sides[1]).abs().max() / sides[1].abs().max().clamp_min(1e-30))
    if not off <= OUTPUT_TOLERANCE:
        return f"with the same weights its output is off by {off:.2g} of the largest"
    return None
