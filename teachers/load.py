"""The teacher: any causal language model, in full precision, quantised, or from a GGUF file."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from attar.loading import (
    Precision,
    Quantization,
    load_causal_lm,
    resolve_precision,
    weights_fingerprint,
)
from attar.strict import Section


class TeacherConfig(Section):
    """Which teacher, and how it is held in memory while it runs."""

    model: str = Field(description="hub id, folder or .gguf file")
    dtype: Precision = Field("auto", description="auto: bfloat16 where the hardware has it")
    quantization: Quantization = "none"
    trust_remote_code: bool = False


def load_teacher(config: TeacherConfig) -> nn.Module:
    """The frozen teacher in eval mode, on this process's device."""
    model = load_causal_lm(
        config.model,
        dtype=resolve_precision(config.dtype),
        quantization=config.quantization,
        trust_remote_code=config.trust_remote_code,
    )
    return model.requires_grad_(False)


def teacher_identity(config: TeacherConfig) -> dict[str, str | None]:
    """What a cache's manifest says of its teacher: two caches agree when this does."""
    return {
        "model": config.model,
        "weights": weights_fingerprint(config.model),
        "dtype": str(resolve_precision(config.dtype)).removeprefix("torch."),
        "quantization": config.quantization,
    }
