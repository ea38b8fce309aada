"""Folders that hold an adapter instead of a model, as peft saves them: read as base and adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attar.errors import ModelError
from attar.files import read_json
from attar.models.locations import local_folder, source_arguments

ADAPTER_CONFIG = "adapter_config.json"
# Words in the names of files that hold a tokenizer, or a part of it.
TOKENIZER_FILES = ("token", "vocab", "merges", "spiece", "sentencepiece", "spm", "bpe")


def adapter_base(source: str) -> str | None:
    """The model that an adapter's folder says it sits on; None for what is a model itself.

    Raises `ModelError` where the folder does not name its base.
    """
    folder = local_folder(source_arguments(source)[0], ADAPTER_CONFIG)
    if folder is None or not (folder / ADAPTER_CONFIG).is_file():
        return None
    if (folder / "config.json").is_file():
        return None
    values = read_json(folder / ADAPTER_CONFIG)
    base = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{source} is an adapter, and its {ADAPTER_CONFIG} names no `base_model_name_or_path`; "
            "write the model there that it was trained on."
        )
    beside = folder.parent / base  # as in an artifact that holds both
    return str(beside) if not Path(base).exists() and beside.is_dir() else base


def tokenizer_source(source: str) -> str | None:
    """The model itself, or the base of an adapter that was saved without a tokenizer.

    None for a folder that has no tokenizer.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir() or any(
        word in file.name.lower() for file in folder.iterdir() for word in TOKENIZER_FILES
    ):
        return source
    return adapter_base(source)


def check_adapter(source: str, auto: str, quantization: str) -> None:
    """Raise `ModelError` for an adapter that cannot be merged into its base before it is used."""
    folder = local_folder(source_arguments(source)[0], ADAPTER_CONFIG)
    assert folder is not None
    values = read_json(folder / ADAPTER_CONFIG)
    kind, task = values.get("peft_type"), values.get("task_type")
    merge = "merge it into its base (`merge_and_unload` of peft), save that, and name it instead"
    if kind not in ("LORA", "IA3"):
        raise ModelError(f"{source} is an adapter of the kind {kind}, which has no merged form.")
    if task not in (None, "CAUSAL_LM") or auto != "AutoModelForCausalLM":
        raise ModelError(f"{source} is an adapter for {task}, not a whole model; {merge}.")
    if quantization != "none":
        raise ModelError(f"{source} is an adapter, which no quantised base takes up; {merge}.")


def merged_adapter(model: Any, source: str) -> Any:
    """A base with an adapter merged into its weights. Raises `ModelError` where it does not fit."""
    from peft import PeftModel

    if getattr(model, "hf_quantizer", None) is not None:
        raise ModelError(
            f"{source} is an adapter on a base that is saved quantised; name a base in full "
            f"precision in its {ADAPTER_CONFIG}."
        )
    try:
        return PeftModel.from_pretrained(model, source_arguments(source)[0]).merge_and_unload()
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The adapter {source} does not fit its base: {reason}") from error
