"""Loading the teacher: any language model, in full precision, quantised, or from a GGUF file."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from attar.config import Section
from attar.models.fingerprints import weights_fingerprint
from attar.models.head_check import check_head
from attar.models.loading import Precision, Quantization, load_config, load_model, resolve_precision
from attar.models.task_heads import CAUSAL, MASKED, auto_class_of


class TeacherConfig(Section):
    """Which teacher to load, and its precision in memory."""

    model: str = Field(description="hub id, folder or .gguf file")
    dtype: Precision = Field("auto", description="auto: bfloat16 where the hardware has it")
    quantization: Quantization = "none"
    trust_remote_code: bool = False


def teacher_dtype(config: TeacherConfig) -> torch.dtype:
    """The dtype that a teacher computes in."""
    if config.dtype != "auto" or config.model.endswith(".gguf"):
        return resolve_precision(config.dtype)
    trust = config.trust_remote_code
    return resolve_precision("auto", load_config(config.model, trust_remote_code=trust))


def load_teacher(config: TeacherConfig) -> nn.Module:
    """The frozen teacher in eval mode, on this process's device.

    Raises `ModelError` where its head cannot be applied by itself.
    """
    trust, masked = config.trust_remote_code, False
    if not config.model.endswith(".gguf"):
        masked = auto_class_of(load_config(config.model, trust_remote_code=trust)) == MASKED
    model = load_model(
        config.model,
        auto=MASKED if masked else CAUSAL,
        dtype=teacher_dtype(config),
        quantization=config.quantization,
        trust_remote_code=trust,
    )
    check_head(model, config.model)
    return model.requires_grad_(False)


def teacher_identity(config: TeacherConfig) -> dict[str, str | None]:
    """The teacher as a cache's manifest describes it; caches with the same one are compatible."""
    return {
        "model": config.model,
        "weights": weights_fingerprint(config.model),
        "dtype": str(teacher_dtype(config)).removeprefix("torch."),
        "quantization": config.quantization,
    }
