"""A student rounded anew: its codes and scales, and what else learned beside them.

Shared by every artifact that is rounded by us: bitsandbytes' NF4 and INT8 of a merged student, and
GGUF of 4 and 5 bits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from attar.models.loading import load_causal_lm
from attar.models.tokenizers import load_tokenizer
from students.artifacts.artifact import ArtifactInputs
from students.quantization.formats import GRIDS
from students.quantization.gptq import Rounded, round_model
from students.quantization.learned_scales import let_scales_learn, settle


@contextmanager
def rounded_student(
    source: Path, grid: str, given: ArtifactInputs
) -> Iterator[tuple[Path, dict[str, Rounded]]]:
    """(folder of the float32 student, its linear maps on the grid by name), for one block.

    Compensated on calibration text, or to nearest, as `given.rounding` says. Where `given.recover`
    is there, scales and norms then learn, and the folder holds the student with those norms.
    """
    trust = given.trust_remote_code
    model: Any = load_causal_lm(str(source), dtype=torch.float32, trust_remote_code=trust)
    compensated = given.rounding == "compensated" and given.calibration is not None
    calibration_BT = given.calibration() if compensated and given.calibration else None
    rounded = round_model(model, GRIDS[grid], calibration_BT)
    if given.recover is None:
        yield source, rounded
        return
    let_scales_learn(model, rounded)
    given.recover(grid, model)
    rounded = settle(model)
    with tempfile.TemporaryDirectory(prefix="attar-rounded-") as name:
        model.save_pretrained(name, safe_serialization=True)
        load_tokenizer(str(source), trust_remote_code=trust).save_pretrained(name)
        del model
        yield Path(name), rounded
