"""Loading models from a hub id, a folder or a GGUF file.

`transformers` keeps a quantiser on a model that was read from GGUF and then refuses to save it,
although its weights are plain tensors by then; `_forget_gguf` removes that quantiser.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from attar.device import default_device
from attar.errors import ModelError
from attar.models.adapter_folders import adapter_base, check_adapter, merged_adapter
from attar.models.bitsandbytes_check import check_4bit_rows
from attar.models.config_check import check_config, check_values
from attar.models.fingerprints import weights_fingerprint
from attar.models.locations import load_error, source_arguments
from attar.models.model_kinds import check_kind, check_quantized
from attar.models.quantizable import empty_model, head_modules
from attar.models.weight_files import check_weights

log = logging.getLogger(__name__)
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "nf4", "fp4"]


# Families whose code in transformers mixes float32 into 16-bit products, which fails.
FLOAT32_FAMILIES = ("deberta",)


def resolve_precision(precision: Precision, config: Any = None) -> torch.dtype:
    """The dtype to compute in; `auto` is bfloat16 where the hardware multiplies it natively.

    On a CPU without bf16 instructions a bfloat16 product takes three times as long as float32.
    config: the model's `PretrainedConfig`; families that transformers computes in float32 alone get
    that by `auto`, which is logged.
    """
    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if config is not None and config.model_type in FLOAT32_FAMILIES:
        _tell_float32(config.model_type)
        return torch.float32
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


@cache
def _tell_float32(family: str) -> None:
    log.info("%s: float32, since transformers computes this family in no other precision", family)


def bitsandbytes_config(quantization: Quantization, heads: list[str]) -> Any:
    """The `BitsAndBytesConfig` of a quantisation; None for `none`.

    nf4 is that of QLoRA: NormalFloat4, double quantisation, bfloat16 compute (arXiv 2305.14314).
    fp4 is the same with 4-bit floating point. heads: names of modules that are not quantised; by
    itself, transformers would quantise every head but one over the vocabulary.
    """
    if quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=heads)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=heads,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def load_config(source: str, *, trust_remote_code: bool = False) -> Any:
    """The `PretrainedConfig` of a model, without its weights.

    Raises `ModelError` for one that cannot be read, or whose sizes no model can have.
    """
    from transformers import AutoConfig, PretrainedConfig

    name, extra = source_arguments(adapter_base(source) or source)
    silence_libraries()
    try:
        if not extra:
            check_values(PretrainedConfig.get_config_dict(name)[0], source)
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **extra)
        check_config(config, source)
    except ModelError:
        raise
    except Exception as error:  # whatever its values lead the library to
        raise load_error(error, "model", source) from error
    if not trust_remote_code:
        forget_code(config)
    return config


def load_causal_lm(
    source: str,
    *,
    dtype: torch.dtype | Literal["auto"],
    quantization: Quantization = "none",
    trust_remote_code: bool = False,
    device: torch.device | None = None,
) -> nn.Module:
    """An `AutoModelForCausalLM` in eval mode on `device`; dtype `auto` is the checkpoint's own.

    Raises `ModelError` where the model cannot be found, read or quantised. A folder with a LoRA
    adapter is its base with the adapter merged in.
    """
    return load_model(
        source,
        auto="AutoModelForCausalLM",
        dtype=dtype,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
        device=device,
    )


def load_model(
    source: str,
    *,
    auto: str,
    dtype: torch.dtype | Literal["auto"],
    quantization: Quantization = "none",
    trust_remote_code: bool = False,
    device: torch.device | None = None,
    **options: Any,
) -> nn.Module:
    """`load_causal_lm` for any auto class (`auto`); options: further ones of `from_pretrained`."""
    import transformers

    check_model(source, auto, quantization, dtype, trust_remote_code=trust_remote_code)
    base = adapter_base(source)
    name, extra = source_arguments(base or source)
    device = device or default_device()
    silence_libraries()
    if quantization != "none":
        config = load_config(source, trust_remote_code=trust_remote_code)
        heads = head_modules(empty_model(config, auto, trust_remote_code=trust_remote_code))
        quantized = {"quantization_config": bitsandbytes_config(quantization, heads)}
        extra = {**extra, **quantized, "device_map": {"": device}}
    try:
        model, found = getattr(transformers, auto).from_pretrained(
            name,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **extra,
            **options,
        )
    except _LOAD_ERRORS as error:
        raise load_error(error, "model", source) from error
    _check_complete(model, found["missing_keys"], auto, source)
    if not trust_remote_code:
        forget_code(model.config)
    if base is not None:
        model = merged_adapter(model, source)
    if "gguf_file" in extra:
        _forget_gguf(model)
    if quantization == "none" and getattr(model, "hf_quantizer", None) is None:
        model.to(device)
    check_4bit_rows(model, source)
    loaded: nn.Module = model.eval()
    return loaded


def check_model(
    source: str,
    auto: str,
    quantization: Quantization = "none",
    dtype: torch.dtype | Literal["auto"] = "auto",
    *,
    trust_remote_code: bool = False,
) -> None:
    """Raise `ModelError` for what a model's files show to be wrong before any weight is read.

    Asked before a run starts, and again whenever a model is loaded.
    """
    base = adapter_base(source)
    if base is not None:
        check_adapter(source, auto, quantization)
        check_weights(source)
    check_weights(base or source)
    if not (base or source).endswith(".gguf"):  # which holds a plain language model
        config = load_config(base or source, trust_remote_code=trust_remote_code)
        check_kind(config, source, auto)
        check_quantized(config, source, quantization, dtype)


# What damaged or foreign files and configs make of `from_pretrained`.
_LOAD_ERRORS = (
    OSError, ValueError, ImportError, LookupError, TypeError, ArithmeticError, RuntimeError,
    AttributeError, AssertionError, SafetensorError, UnpicklingError,
)  # fmt: skip


def _check_complete(model: Any, missing: Collection[str], auto: str, source: str) -> None:
    """Raise `ModelError` where the body of a loaded model is in part random.

    A head that the checkpoint lacks is the business of who asks for one; of a language model, its
    head belongs to it.
    """
    prefix = f"{model.base_model_prefix}."
    whole = auto in ("AutoModel", "AutoModelForCausalLM")
    lacking = sorted(
        key for key in missing if "pooler" not in key and (whole or key.startswith(prefix))
    )
    if lacking:
        raise ModelError(
            f"The files of {source} lack {len(lacking)} weights that its config.json asks for "
            f"(first: {lacking[0]}); they would be random."
        )


def forget_code(config: Any) -> None:
    """Drop the names of a model's own code from a config, where that code is not trusted.

    A model saved with this config would else name that code, to run wherever the saved one is
    trusted.
    """
    for inner in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        for key in ("auto_map", "custom_pipelines"):
            if hasattr(inner, key):
                delattr(inner, key)


def skeleton(config: Any, auto: str) -> Any:
    """A model without weights, on the meta device, from a config and an auto class's name.

    None where the model brings its own code, which is not run merely to see names and shapes. (A
    config of a class in transformers was loaded without the code that it may name.)
    """
    remote_code = getattr(config, "auto_map", None)
    own = type(config).__module__.startswith("transformers.")
    if remote_code and not (own and "AutoConfig" in remote_code):
        return None
    try:
        return empty_model(config, auto)
    except Exception as error:  # whatever its values lead the model's class to
        reason = " ".join(str(error).split())[:300]
        where = getattr(config, "_name_or_path", "") or config.model_type
        raise ModelError(f"The config of {where} makes no model: {reason}") from error


def silence_libraries() -> None:
    """Silence the libraries' progress bars and their warnings about kernels missing on a CPU.

    torchao, if installed, is imported with the first model and prints many such warnings.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft
    for name in (
        "bitsandbytes.autograd._functions",
        "bitsandbytes.backends.cpu.ops",
        "transformers.integrations.bitsandbytes",
        "torchao",
        "torch.utils._pytree",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)


def _forget_gguf(model: Any) -> None:
    del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, name):
            delattr(model, name)


def fetch_weights(source: str) -> None:
    """Download a hub model's files, unless they are on this machine.

    The weights' fingerprint is read from the files, so it must not change in the middle of a run.
    """
    if Path(source_arguments(source)[0]).exists() or weights_fingerprint(source) is not None:
        return
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py"]
        folder = snapshot_download(source, allow_patterns=patterns)
        if not list(Path(folder).glob("*.safetensors")):
            snapshot_download(source, allow_patterns=["*.bin"])
    except (OSError, ValueError) as error:
        raise load_error(error, "model", source) from error
