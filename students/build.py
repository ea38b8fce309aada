"""Make the student: from a pretrained model, fresh from a config, or cut out of the teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from attar.anatomy import num_layers
from attar.errors import ModelError, RecipeError, nearest
from attar.files import staged_folder, write_json
from attar.loading import load_causal_lm
from attar.strict import Section
from students.depth import (
    cut_depth,
    keep_by_influence,
    keep_evenly,
    keep_greedily,
)


class LayersConfig(Section):
    """Which blocks of the teacher the student keeps."""

    keep: int | list[int] = Field(description="how many blocks, or which (numbers from 0)")
    by: Literal["greedy", "influence", "even"] = Field(
        "greedy", description="greedy: loss when removed; influence: cosine of input and output"
    )
    calibration_tokens: int = Field(1024, ge=2, description="training tokens to judge blocks on")


class StudentConfig(Section):
    """Where the student comes from."""

    from_: str | dict[str, Any] = Field(
        "teacher",
        alias="from",
        description="`teacher` (cut with `layers`), a model id or folder, or a config for a fresh "
        "model: keys of its transformers config, the teacher's for those left out",
    )
    layers: LayersConfig | None = None
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _layers_need_teacher(self) -> StudentConfig:
        if self.layers is not None and self.from_ != "teacher":
            raise ValueError("`layers` cuts the teacher; it has no effect unless `from: teacher`")
        return self


def choose_blocks(
    model: nn.Module,
    config: LayersConfig,
    calibration_BT: Tensor,
    on_removal: Callable[[int, float], None] = lambda block, loss: None,
) -> list[int]:
    """Numbers of the blocks to keep."""
    depth = num_layers(model)
    keep = config.keep
    calibration_BT = calibration_BT.to(next(model.parameters()).device)
    if isinstance(keep, list):
        return keep
    if not 1 <= keep <= depth:
        raise RecipeError(f"`student.layers.keep` is {keep}; the teacher has {depth} blocks.")
    if config.by == "even":
        return keep_evenly(depth, keep)
    if config.by == "influence":
        return keep_by_influence(model, calibration_BT, keep)
    return keep_greedily(model, calibration_BT, keep, on_removal)


def fresh_config(config: dict[str, Any], teacher_config: Any) -> Any:
    """A `PretrainedConfig`: the teacher's with some keys changed, or another family's."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    values = dict(config)
    kind = values.pop("model_type", teacher_config.model_type)
    if kind == teacher_config.model_type:
        base = teacher_config.to_dict()
        depth = values.get("num_hidden_layers")
        if depth is not None and base.get("layer_types"):
            base["layer_types"] = base["layer_types"][:depth]
        if {"hidden_size", "num_attention_heads"} & values.keys():
            base.pop("head_dim", None)
        for key in ("quantization_config", "model_type", "dtype", "_name_or_path"):
            base.pop(key, None)
    else:
        kept = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
        base = {key: getattr(teacher_config, key, None) for key in kept}
    try:
        known = AutoConfig.for_model(kind).to_dict()
        for key in values:
            if key not in known:
                hint = nearest(key, known)
                raise RecipeError(f"`student.from.{key}` is not a key of a {kind} config.{hint}")
        return AutoConfig.for_model(kind, **{**base, **values})
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"`student.from` does not make a model: {reason}") from None


def fresh_model(config: dict[str, Any], teacher_config: Any, seed: int) -> nn.Module:
    """A float32 model with random weights, drawn from the seed."""
    from transformers import AutoModelForCausalLM

    made = fresh_config(config, teacher_config)
    torch.manual_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        raise RecipeError(f"`student.from` does not make a model: {error}") from None
    return model.eval()  # type: ignore[no-any-return]


def save_student(
    model: Any, tokenizer: Any, folder: Path, surgery: dict[str, Any] | None = None
) -> None:
    """A plain `transformers` checkpoint in float32 masters, aside and then renamed into place."""
    with staged_folder(folder) as aside:
        model.save_pretrained(aside, safe_serialization=True)
        tokenizer.save_pretrained(aside)
        if surgery is not None:
            write_json(aside / "surgery.json", surgery)


def cut_student(
    teacher: nn.Module,
    keep: list[int],
    source: str,
    tokenizer: Any,
    folder: Path,
    by: str,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Cut, save with a record of what was kept, reload, and check that the logits are the same."""
    student = cut_depth(teacher, keep).float()
    surgery = {"teacher": source, "teacher_layers": num_layers(teacher), "kept": keep, "by": by}
    save_student(student, tokenizer, folder, surgery)
    check_reload(student, folder, trust_remote_code)
    return student


@torch.inference_mode()
def check_reload(model: Any, folder: Path, trust_remote_code: bool = False) -> None:
    """Raise `ModelError` unless the checkpoint, loaded as a user would, gives identical logits."""
    device = next(model.parameters()).device
    again = load_causal_lm(
        str(folder), dtype=torch.float32, device=device, trust_remote_code=trust_remote_code
    )
    ids_BT = torch.arange(8, device=device).unsqueeze(0) % model.config.get_text_config().vocab_size
    if not torch.equal(model(input_ids=ids_BT).logits, again(input_ids=ids_BT).logits):
        raise ModelError(f"{folder} does not reload to the same model; this family is unsupported.")
