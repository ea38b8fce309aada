"""The artifact of torchao: 8-bit weights that `transformers` loads if torchao is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from attar.models.loading import load_config, silence_libraries
from attar.models.quantizable import empty_model, head_modules
from attar.models.task_heads import auto_class_of
from students.artifacts.artifact import ArtifactInputs, artifact, save_tokenizer
from students.artifacts.checkpoint import usage


def with_torchao(given: ArtifactInputs) -> str:
    """Return how `transformers` loads the student, and that it needs torchao."""
    return f"`torchao` must be installed.\n\n{usage(given)}"


def sort_metadata(file: Path) -> None:
    """Put the metadata of a safetensors file in order: it is written in an order of chance."""
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(ordered) <= length, file
        stream.seek(8)
        stream.write(ordered.ljust(length))


@artifact(
    "torchao-int8", made_from="merged", runtime="transformers", usage=with_torchao,
    needs=("torchao",), extra="torchao", takes=("Linear",), by="torchao", bits=8.5,
)  # fmt: skip
def torchao_int8(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """Weights of linear layers in 8 bits with one scale per output, else bfloat16; by torchao."""
    import transformers
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    silence_libraries()
    trust = given.trust_remote_code
    config = load_config(str(source), trust_remote_code=trust)
    auto = auto_class_of(config)
    heads = head_modules(empty_model(config, auto, trust_remote_code=trust))
    model: Any = getattr(transformers, auto).from_pretrained(
        source,
        dtype=torch.bfloat16,
        quantization_config=TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=heads),
        trust_remote_code=trust,
    )
    model.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        sort_metadata(file)
    save_tokenizer(source, folder, given)
