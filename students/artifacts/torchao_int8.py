"""An artifact of torchao: 8-bit weights that `transformers` loads with torchao installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from attar.models.loading import load_config, silence_libraries
from attar.models.pooling import copy_pooling
from attar.models.task_heads import auto_class_of
from attar.models.tokenizers import load_tokenizer
from students.artifacts.artifact import ArtifactInputs, artifact
from students.artifacts.checkpoint import usage


def with_torchao(given: ArtifactInputs) -> str:
    """How `transformers` loads the student, and what else it takes."""
    return f"`torchao` must be installed.\n\n{usage(given)}"


@artifact(
    "torchao-int8", of="merged", runtime="transformers", usage=with_torchao,
    needs=("torchao",), extra="torchao",
)  # fmt: skip
def torchao_int8(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """Weights of linear maps in 8 bits with a scale an output, bfloat16 elsewhere; by torchao."""
    import transformers
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    silence_libraries()
    trust = given.trust_remote_code
    auto = auto_class_of(load_config(str(source), trust_remote_code=trust))
    model: Any = getattr(transformers, auto).from_pretrained(
        source,
        dtype=torch.bfloat16,
        quantization_config=TorchAoConfig(Int8WeightOnlyConfig()),
        trust_remote_code=trust,
    )
    model.save_pretrained(folder)
    load_tokenizer(str(source), trust_remote_code=trust).save_pretrained(folder)
    copy_pooling(source, folder)
