"""Which kinds of checkpoints can be used, by their config: decoders and encoders of text alone."""

from __future__ import annotations

from typing import Any, Literal

import torch

from attar.errors import ModelError

CAUSAL = "AutoModelForCausalLM"
# Heads that no task has. A decoder or encoder under one may be loaded without it.
OTHER_HEADS = (
    "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice",
    "ForNextSentencePrediction", "ForSpeechSeq2Seq", "ForImageClassification",
)  # fmt: skip


def check_kind(config: Any, source: str, auto: str) -> None:
    """Raise `ModelError` for a checkpoint that this auto class would load in part, or not at all.

    config: its `PretrainedConfig`.
    """
    saved_as = ", ".join(config.architectures or []) or config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{source} is a sequence-to-sequence model ({saved_as}); only a decoder alone or an "
            "encoder alone can be used."
        )
    if config.get_text_config() is not config and not _text_part_alone(config, auto):
        raise ModelError(
            f"{source} is a text model inside a wrapper for images, sound or the like ({saved_as}),"
            " which cannot be used; name a text model, such as its text part saved as a model of "
            "its own."
        )
    other = [name for name in config.architectures or [] if name.endswith(OTHER_HEADS)]
    if auto == CAUSAL and other:
        raise ModelError(
            f"{source} was saved as {saved_as}: it has no head that predicts the next token."
        )


def _text_part_alone(config: Any, auto: str) -> bool:
    """Whether an auto class loads only the text part of a wrapper, as a model of its own."""
    import transformers

    text = config.sub_configs.get("text_config")
    mapping = getattr(transformers, auto)._model_mapping
    kind = mapping.get(type(config), None)
    return text is not None and getattr(kind, "config_class", None) is text


def saved_quantization(config: Any) -> str | None:
    """How a checkpoint's weights are quantised on disk, as `bitsandbytes`; None for plain ones."""
    values = getattr(config, "quantization_config", None)
    if values is None:
        return None
    method = values.get("quant_method") if isinstance(values, dict) else values.quant_method
    return str(getattr(method, "value", method) or "unknown")


def check_quantized(
    config: Any, source: str, quantization: str, dtype: torch.dtype | Literal["auto"]
) -> None:
    """Raise `ModelError` for a quantised checkpoint that is to be quantised again, or that nothing
    that is installed can read.
    """
    method = saved_quantization(config)
    if method is None:
        return
    if quantization != "none":
        raise ModelError(
            f"The weights of {source} are quantised already ({method}); leave `quantization: "
            f"{quantization}` out."
        )
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        AutoHfQuantizer.from_config(config.quantization_config).validate_environment(
            device_map=None, dtype=dtype, weights_only=True
        )
    except Exception as error:  # each method's own: a package, a device, a key
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"The weights of {source} are quantised ({method}), and cannot be read here: {reason}"
        ) from error
