"""Save, load and merge adapters of every method.

An adapter's folder holds `adapter_config.json` and `adapter_model.safetensors` in the layout of
peft, also for bottleneck adapters, and `base.json`, which names the weights it was trained on.
Adapters are always merged into newly loaded full-precision weights: merged into a 4-bit base, the
change would be rounded away, since it is small against the step of the quantisation.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from attar.errors import ModelError
from attar.files import read_json, write_json
from attar.models.fingerprints import weights_fingerprint
from attar.models.loading import Quantization, resolve_precision
from attar.models.task_heads import load_as_saved
from students.tuning.bottleneck_module import PEFT_TYPE as BOTTLENECK
from students.tuning.bottleneck_module import load_bottleneck, save_bottleneck
from students.tuning.ia3 import keep_input_dtype
from students.tuning.peft_wrapper import silence_peft_warnings
from students.tuning.target_modules import adaptable_linears

Into = Literal["student", "dequantized"]
CHANGED_AT_START = ("pissa", "olora")  # initialisations that change the base's weights
WHY_UNMERGED = {
    "PREFIX_TUNING": "it is keys and values before the text, not a change of weights",
    "PROMPT_TUNING": "it is embeddings before the text, not a change of weights",
    "P_TUNING": "it is embeddings before the text, not a change of weights",
    BOTTLENECK: "there is a nonlinearity between its layers and the student's",
}


def load_base(
    folder: Path,
    quantization: Quantization,
    trust_remote_code: bool = False,
    compute: torch.dtype | None = None,
) -> Any:
    """Load the student that an adapter is trained on: in float32, or quantised.

    It is quantised from bfloat16, so that its codes equal those of exported artifacts. compute:
    dtype of the products of a quantised base; by default bfloat16 where the hardware multiplies it,
    else float32, which takes less than half the time there.
    """
    dtype = torch.float32 if quantization == "none" else torch.bfloat16
    model: Any = load_as_saved(
        str(folder), dtype=dtype, quantization=quantization, trust_remote_code=trust_remote_code
    )
    disable_cpu_repacking(model)
    if quantization != "none" and (compute or resolve_precision("auto")) == torch.float32:
        _compute_in_float32(model)
    return model


def disable_cpu_repacking(model: nn.Module) -> None:
    """Keep 4-bit weights in their standard layout on CPUs that have a faster one for inference.

    bitsandbytes would repack them in the first evaluation. The repacked product has no gradient, so
    parameters below such a layer would stop learning, and DoRA, which reads the weights in every
    forward, would misread them.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010


def _compute_in_float32(model: nn.Module) -> None:
    """Cast weights that are not quantised to float32; keep the codes."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype == torch.bfloat16:
            tensor.data = tensor.data.float()
    module: Any
    for module in model.modules():
        if hasattr(module, "compute_dtype"):  # bitsandbytes' 4-bit layers
            module.compute_dtype, module.compute_type_is_set = torch.float32, True


def adapter_bytes(model: Any) -> int:
    """Return the bytes that the trained tensors take in an adapter's folder."""
    if not hasattr(model, "peft_config"):
        learned = (p for p in model.parameters() if p.requires_grad)
        return sum(p.numel() * p.element_size() for p in learned)
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(model, save_embedding_layers=False).values()
    total: int = sum(t.numel() * t.element_size() for t in tensors)
    return (1 + _changed_base(model)) * total


def _changed_base(model: Any) -> bool:
    return getattr(model.active_peft_config, "init_lora_weights", True) in CHANGED_AT_START


def save_adapter(
    model: Any,
    folder: Path,
    base: Path,
    quantization: Quantization = "none",
    trust_remote_code: bool = False,
) -> None:
    """Save a trained adapter and the identity of its base.

    An adapter whose initialisation changed the base (PiSSA, OLoRA) is saved as a plain LoRA of
    twice the rank on the unchanged student, [B, -B0][A; A0], so that it loads and merges like any
    other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not hasattr(model, "peft_config"):
        save_bottleneck(model, folder)
    elif _changed_base(model):
        _save_change(model, _initial(model, base, trust_remote_code), folder)
    else:
        model.save_pretrained(str(folder), save_embedding_layers=False)
    _sort_targets(folder / "adapter_config.json")
    identity = {
        "weights": weights_fingerprint(str(base)),
        "model": str(base),
        "quantization": quantization,
    }
    write_json(folder / "base.json", identity)


def _sort_targets(file: Path) -> None:
    """Put the names of layers in order: peft writes a set, whose order differs by process."""
    config = read_json(file)
    for key in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    write_json(file, config)


def _initial(model: Any, base: Path, trust_remote_code: bool) -> Any:
    """Return the adapter as it was before training, made again from the student."""
    from peft import LoraConfig, get_peft_model

    settings = model.active_peft_config.to_dict()
    wanted = ("r", "lora_alpha", "target_modules", "use_rslora", "init_lora_weights", "task_type")
    config = LoraConfig(**{name: settings[name] for name in wanted})
    return get_peft_model(load_base(base, "none", trust_remote_code), config)


def _save_change(model: Any, initial: Any, folder: Path) -> None:
    """Save the difference of two adapters of one config as one LoRA: A above A0, B beside -B0."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    before = get_peft_model_state_dict(initial, save_embedding_layers=False)
    tensors = {}
    for name, after in get_peft_model_state_dict(model, save_embedding_layers=False).items():
        parts = [after, before[name]] if "lora_A" in name else [after, -before[name]]
        tensors[name] = torch.cat(parts, dim=0 if "lora_A" in name else 1).cpu().contiguous()
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    config = copy.deepcopy(model.active_peft_config)
    config.lora_alpha *= 2**0.5 if config.use_rslora else 2  # keeps the scale
    config.r *= 2
    config.init_lora_weights, config.inference_mode = True, True
    config.save_pretrained(str(folder))


def adapter_kind(folder: Path) -> str:
    """Return the `peft_type` of an adapter's folder; raise `ModelError` if it has no adapter."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ModelError(f"{folder} holds no adapter: it has no adapter_config.json.")
    return str(read_json(file)["peft_type"])


def check_adapter_fits(folder: Path, base: Path) -> None:
    """Raise `ModelError` for an adapter that was made for other weights than those of `base`.

    An adapter without a `base.json` comes from elsewhere and is not checked.
    """
    adapter_kind(folder)
    file = folder / "base.json"
    if not file.is_file():
        return
    made_for, found = read_json(file), weights_fingerprint(str(base))
    if found is not None and made_for["weights"] not in (None, found):
        raise ModelError(
            f"The adapter {folder} was made for {made_for['model']} (weights "
            f"{made_for['weights']}), not for {base} (weights {found}); load it on the model it "
            "was trained on."
        )


def load_adapter(model: Any, folder: Path, *, base: Path | None = None) -> nn.Module:
    """Add an adapter to a model and return it in eval mode.

    base: the folder that the model was loaded from. Raises `ModelError` where there is no adapter,
    or one for another base.
    """
    kind = adapter_kind(folder)
    if base is not None:
        check_adapter_fits(folder, base)
    try:
        if kind == BOTTLENECK:
            return load_bottleneck(model, folder).eval()
        from peft import PeftModel

        if read_json(folder / "adapter_config.json").get("use_dora"):
            disable_cpu_repacking(model)
        with silence_peft_warnings():
            loaded: nn.Module = PeftModel.from_pretrained(model, str(folder))
        keep_input_dtype(loaded)
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The adapter {folder} does not fit the model: {reason}") from None
    return loaded.eval()


def check_mergeable(folder: Path) -> None:
    """Raise `ModelError`, with the reason, for an adapter that cannot be merged into weights."""
    kind = adapter_kind(folder)
    if kind in WHY_UNMERGED:
        raise ModelError(
            f"The adapter {folder} cannot be merged: {WHY_UNMERGED[kind]}; deploy it as an "
            "adapter on its base."
        )


def merge_adapter(
    student: Path, folder: Path, *, into: Into = "student", trust_remote_code: bool = False
) -> nn.Module:
    """Load the student and an adapter from disk and return them merged, in float32.

    into: merge into the student, or into the dequantised weights of the quantised base that the
    adapter was trained on. Raises `ModelError` for a method that cannot be merged and for an
    adapter of another base.
    """
    check_mergeable(folder)
    check_adapter_fits(folder, student)
    if into == "student":
        base = load_base(student, "none", trust_remote_code)
    else:
        base = _dequantized(student, _quantization_of(folder), trust_remote_code)
    _untie_adapted_head(base, folder)
    merged: Any = load_adapter(base, folder)
    plain: nn.Module = merged.merge_and_unload()
    return plain.eval()


def _quantization_of(folder: Path) -> Quantization:
    """Return the quantisation of an adapter's base; raise `ModelError` if it is not quantised."""
    file = folder / "base.json"
    found: Quantization = read_json(file)["quantization"] if file.is_file() else "none"
    if found == "none":
        raise ModelError(
            f"The adapter {folder} was not trained on a quantised base, so there is nothing to "
            "dequantise; merge it into the student."
        )
    return found


def _dequantized(student: Path, quantization: Quantization, trust_remote_code: bool) -> nn.Module:
    """Return the student in float32, with every quantised layer replaced by its dequantised weight.

    The base is quantised from bfloat16 as for training (from float32 the codes would differ), and
    read before any forward, since bitsandbytes rearranges 4-bit weights in the first on some CPUs.
    """
    from transformers.pytorch_utils import Conv1D

    quantized: Any = load_base(student, quantization, trust_remote_code)
    rounded = [name for name, m in adaptable_linears(quantized).items() if type(m) is not nn.Linear]
    found = quantized.dequantize().state_dict()
    plain: nn.Module = load_base(student, "none", trust_remote_code)
    for name in rounded:
        weight, own = found[f"{name}.weight"], plain.get_submodule(name)
        turned = isinstance(own, Conv1D)  # bitsandbytes makes it a transposed linear layer
        own.load_state_dict({"weight": weight.T if turned else weight}, strict=False)
    return plain


def _untie_adapted_head(model: Any, folder: Path) -> None:
    """Untie the head from the embedding if the adapter changes it, so the embedding stays."""
    from safetensors import safe_open

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or embedding is None or head.weight is not embedding.weight:
        return
    (name,) = (name for name, module in model.named_modules() if module is head)
    with safe_open(str(folder / "adapter_model.safetensors"), "pt") as tensors:
        if not any(f".{name}." in key for key in tensors.keys()):  # noqa: SIM118
            return
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.get_text_config().tie_word_embeddings = False
    model.config.tie_word_embeddings = False
