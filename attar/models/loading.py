"""Loading models from a hub id, a folder or a GGUF file.

`transformers` keeps a quantiser on a model that was read from GGUF and then refuses to save it,
although its weights are plain tensors by then; `_forget_gguf` removes that quantiser.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from attar.device import default_device
from attar.models.bitsandbytes_check import check_4bit_rows
from attar.models.fingerprints import weights_fingerprint
from attar.models.locations import load_error, source_arguments
from attar.models.quantizable import empty_model, head_modules

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "nf4", "fp4"]


def resolve_precision(precision: Precision) -> torch.dtype:
    """The dtype to compute in; `auto` is bfloat16 where the hardware multiplies it natively.

    On a CPU without bf16 instructions a bfloat16 product takes three times as long as float32.
    """
    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


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
    """The `PretrainedConfig` of a model, without its weights."""
    from transformers import AutoConfig

    name, extra = source_arguments(source)
    silence_libraries()
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **extra)
    except (OSError, ValueError, ImportError) as error:
        raise load_error(error, "model", source) from error


def load_causal_lm(
    source: str,
    *,
    dtype: torch.dtype | Literal["auto"],
    quantization: Quantization = "none",
    trust_remote_code: bool = False,
    device: torch.device | None = None,
) -> nn.Module:
    """An `AutoModelForCausalLM` in eval mode on `device`; dtype `auto` is the checkpoint's own.

    Raises `ModelError` where the model cannot be found, read or quantised.
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

    name, extra = source_arguments(source)
    device = device or default_device()
    silence_libraries()
    if quantization != "none":
        config = load_config(source, trust_remote_code=trust_remote_code)
        heads = head_modules(empty_model(config, auto, trust_remote_code=trust_remote_code))
        quantized = {"quantization_config": bitsandbytes_config(quantization, heads)}
        extra = {**extra, **quantized, "device_map": {"": device}}
    try:
        model: Any = getattr(transformers, auto).from_pretrained(
            name, dtype=dtype, trust_remote_code=trust_remote_code, **extra, **options
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise load_error(error, "model", source) from error
    if "gguf_file" in extra:
        _forget_gguf(model)
    if quantization == "none" and getattr(model, "hf_quantizer", None) is None:
        model.to(device)
    check_4bit_rows(model, source)
    model.eval()
    found: nn.Module = model
    return found


def skeleton(config: Any, auto: str) -> Any:
    """A model without weights, on the meta device, from a config and an auto class's name.

    None where the model brings its own code, which is not run merely to see names and shapes. (A
    config of a class in transformers was loaded without the code that it may name.)
    """
    remote_code = getattr(config, "auto_map", None)
    own = type(config).__module__.startswith("transformers.")
    if remote_code and not (own and "AutoConfig" in remote_code):
        return None
    return empty_model(config, auto)


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
