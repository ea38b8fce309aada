"""Cut a student out of its teacher, save students, and check that they reload."""

from __future__ import annotations

from collections.abc import Callable
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
    on_refit: Callable[[int, int], None] = lambda done, blocks: None,
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
        refit(student, teacher, kept, calibration_BT, on_block=on_refit)
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
    """Raise `ModelError` unless the saved checkpoint gives exactly the same output as the model."""
    device = next(model.parameters()).device
    again = load_as_saved(
        str(folder), dtype=torch.float32, device=device, trust_remote_code=trust_remote_code
    )
    ids_BT = torch.arange(8, device=device).unsqueeze(0) % model.config.get_text_config().vocab_size
    if not torch.equal(model(input_ids=ids_BT)[0], again(input_ids=ids_BT)[0]):
        raise ModelError(f"{folder} does not reload to the same model; this family is unsupported.")
