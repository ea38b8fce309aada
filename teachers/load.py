"""Loading the teacher: any language model, in full precision, quantised, or from a GGUF file."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import nn

from attar.config import Section
from attar.errors import ModelError
from attar.models.fingerprints import weights_fingerprint
from attar.models.head_check import check_head
from attar.models.loading import Precision, Quantization, load_config, load_model, resolve_precision
from attar.models.task_heads import CAUSAL, MASKED, auto_class_of
from teachers.server_config import ASKING, AskedServer, ServerConfig

AS_SERVED = "as served"  # what only the server knows of its model


class TeacherConfig(Section):
    """Which teacher to load, and its precision in memory; or the server that runs it.

    With a server, tokenizer and config are those of `model`, whose weights need not be there.
    """

    model: str = Field(description="hub id, folder or .gguf file")
    server: ServerConfig | None = Field(
        None, description="a server that gives the cache's signals; null: it runs here"
    )
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

    Raises `ModelError` where its head cannot be applied by itself, and where its weights are only
    on a server.
    """
    check_has_weights(config, "this")
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


def has_weights(config: TeacherConfig) -> bool:
    """Whether the teacher can be loaded here. Of one on a server, whether its weights are on this
    machine: none are fetched for it.
    """
    return config.server is None or weights_fingerprint(config.model) is not None


def check_has_weights(config: TeacherConfig, what: str) -> None:
    """Raise `ModelError` where the teacher is only on a server. what: what needs its weights."""
    if not has_weights(config):
        raise ModelError(
            f"{what[:1].upper()}{what[1:]} needs the teacher's weights, since `teacher.server` "
            f"gives log-probabilities for the cache and written answers alone, and `teacher.model` "
            f"({config.model}) has no weights on this machine; name a folder that has them, or do "
            "without it."
        )


def loaded_here(config: TeacherConfig) -> TeacherConfig:
    """The teacher as it is loaded from its weights, whatever server gives its signals."""
    return config.model_copy(update={"server": None})


def as_served(server: AskedServer) -> dict[str, Any]:
    """What is known of a model that a server runs: its kind, and the name there."""
    return {
        "weights": None,
        "dtype": AS_SERVED,
        "quantization": AS_SERVED,
        "server": server.model_dump(exclude=ASKING),
    }


def teacher_identity(config: TeacherConfig) -> dict[str, Any]:
    """The teacher as a cache's manifest describes it; caches with the same one are compatible.

    What a server runs has no fingerprint: its kind and the served name stand instead. Its URL does
    not, since a server that moved gives the same.
    """
    if config.server is not None:
        return {"model": config.model, **as_served(config.server)}
    return {
        "model": config.model,
        "weights": weights_fingerprint(config.model),
        "dtype": str(teacher_dtype(config)).removeprefix("torch."),
        "quantization": config.quantization,
    }
