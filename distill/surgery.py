"""The student that is cut out of the teacher: blocks, parts, a refit, and the record of all that.

Legend: B rows, T tokens.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from attar.anatomy import num_layers
from attar.errors import ModelError
from attar.heads import BODY, load_as_saved
from distill.data import Examples
from distill.run import Run
from students.build import ROTATION_FILE, cut_student, save_cut, save_student

log = logging.getLogger(__name__)


def cut(run: Run) -> dict[str, Any]:
    """Cut the student out of the teacher as the recipe says and save it; gives what was kept.

    Raises `RecipeError` where the recipe asks for what this teacher cannot give.
    """
    config, teacher = run.recipe.student, run.task.teacher(run)
    blocks = list(range(num_layers(teacher)))
    if config.layers is not None:
        blocks = run.task.choose_blocks(run, teacher, config.layers)
    calibration_BT = None
    if config.reads_text:
        calibration_BT = even_rows(run.data()[0], config.calibration_tokens)
        log.info("build: %d x %d calibration tokens", *calibration_BT.shape)

    def on_refit(done: int, of: int) -> None:
        log.info("build: maps of block %d of %d refitted", done, of)

    student, surgery, rotation = cut_student(teacher, blocks, config, calibration_BT, on_refit)
    surgery = {"teacher": run.teacher.model, **surgery}
    del teacher
    keep = save_cut if run.task.auto != BODY else _save_body
    keep(student, surgery, rotation, run.tokenizer, run.student_folder, run.trusts_code)
    return {key: surgery[key] for key in ("kept", "by", "refit")}


def _save_body(
    student: nn.Module,
    surgery: dict[str, Any],
    rotation: Tensor | None,
    tokenizer: Any,
    folder: Path,
    trust_remote_code: bool,
) -> None:
    """`save_cut` of a model without a head: reloaded, it must give the same states."""
    save_student(student, tokenizer, folder, surgery)
    if rotation is not None:
        save_file({"rotation": rotation}, str(folder / ROTATION_FILE))
    device = next(student.parameters()).device
    again = load_as_saved(
        str(folder), dtype=torch.float32, device=device, trust_remote_code=trust_remote_code
    )
    ids_BT = torch.arange(8, device=device).unsqueeze(0)
    with torch.inference_mode():
        if not torch.equal(student(input_ids=ids_BT)[0], again(input_ids=ids_BT)[0]):
            raise ModelError(f"{folder} does not reload to the same model: it is unsupported.")


def even_rows(examples: Examples, tokens: int, longest: int = 256) -> Tensor:
    """Beginnings of training texts, all of one length, (B, T) with B x T near `tokens`.

    The length, up to `longest`, is the one at which texts that are as long hold most tokens, so
    a corpus of short texts gives short rows.
    """
    lengths = np.sort(np.minimum(examples.lengths, min(longest, tokens)))[::-1]
    held = np.minimum(lengths * np.arange(1, len(lengths) + 1), tokens)
    length = int(lengths[int(held.argmax())])
    rows: list[Tensor] = []
    for example in examples:
        if len(example.input_ids) >= length:
            rows.append(torch.from_numpy(example.input_ids[:length]))
        if len(rows) * length >= tokens:
            break
    return torch.stack(rows)
