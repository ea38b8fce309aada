"""Round a student to a number format, and train its scales and norms if the recipe asks for it.

All artifacts that this package rounds use it: NF4 and INT8 of a merged student for bitsandbytes,
and GGUF of 4 and 5 bits.
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
from attar.storage_errors import naming
from students.artifacts.artifact import ArtifactInputs
from students.quantization.formats import NUMBER_FORMATS
from students.quantization.gptq import RoundedWeight, round_model
from students.quantization.learned_scales import make_scales_trainable, store_learned_scales


@contextmanager
def rounded_student(
    source: Path, number_format: str, given: ArtifactInputs
) -> Iterator[tuple[Path, dict[str, RoundedWeight]]]:
    """Yield (folder of the float32 student, its rounded linear layers by name).

    A context manager: the folder exists only inside it. Rounding is compensated on calibration text
    or to nearest, as `given.rounding` says. With `given.recover`, scales and norms are then
    trained, and the folder holds the student with the trained norms.
    """
    trust = given.trust_remote_code
    model: Any = load_causal_lm(str(source), dtype=torch.float32, trust_remote_code=trust)
    compensated = given.rounding == "compensated" and given.calibration is not None
    calibration_BT = given.calibration() if compensated and given.calibration else None
    rounded = round_model(model, NUMBER_FORMATS[number_format], calibration_BT)
    if given.recover is None:
        yield source, rounded
        return
    make_scales_trainable(model, rounded)
    given.recover(number_format, model)
    rounded = store_learned_scales(model)
    with tempfile.TemporaryDirectory(prefix="attar-rounded-") as name, naming(Path(name)):
        folder = Path(name) / source.name  # a GGUF file takes its name from there
        model.save_pretrained(folder, safe_serialization=True)
        load_tokenizer(str(source), trust_remote_code=trust).save_pretrained(folder)
        del model
        yield folder, rounded
