"""A student with random weights, made from a configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from attar.errors import ModelError, RecipeError, nearest
from attar.models.loading import skeleton
from attar.models.task_heads import CAUSAL

HEADS = ("num_attention_heads", "num_key_value_heads")
NOT_WITHOUT_WEIGHTS = ("meta", "dtype")  # what errors say where numbers were needed to go on


def fresh_config(config: dict[str, Any], teacher_config: Any) -> Any:
    """Return the teacher's `PretrainedConfig` with some keys changed, or one of another family.

    Raises `RecipeError` for a key that the family does not have and for values it rejects.
    """
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
        for key in ("quantization_config", "model_type", "dtype", "_name_or_path", "auto_map"):
            base.pop(key, None)
    else:
        kept = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
        base = {key: getattr(teacher_config, key, None) for key in kept}
    for key, value in values.items():
        if key.startswith(("num_", "hidden_size", "intermediate_size")) and value == 0:
            raise RecipeError(f"`student.from.{key}` is 0; write a whole number of at least 1.")
    try:
        known = AutoConfig.for_model(kind).to_dict()
        for key in values:
            if key not in known:
                hint = nearest(key, known)
                raise RecipeError(f"`student.from.{key}` is not a key of a {kind} config.{hint}")
        return AutoConfig.for_model(kind, **{**base, **values})
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        reason = reason.rpartition("Error: ")[2]  # without the names of foreign checks
        raise RecipeError(f"`student.from` does not make a model: {reason}") from None


@torch.no_grad()
def check_fresh(config: Any, auto: str = CAUSAL) -> None:
    """Raise `RecipeError` for a config whose model cannot be made, or cannot run.

    It is tried without weights, so that sizes that do not fit each other are told before any work.
    """
    text = config.get_text_config()
    heads, groups = (getattr(text, key, None) for key in HEADS)
    if isinstance(heads, int) and isinstance(groups, int) and groups and heads % groups:
        raise RecipeError(
            f"`student.from` does not make a model: its {heads} heads (`num_attention_heads`) "
            f"cannot share {groups} key-value heads (`num_key_value_heads`) evenly; choose a "
            "divisor."
        )
    try:
        model = skeleton(config, auto)
        if model is not None:
            model.eval()(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta"))
    except (
        ModelError, ValueError, TypeError, AssertionError, IndexError, RuntimeError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200]
        if not any(word in reason for word in NOT_WITHOUT_WEIGHTS):
            raise RecipeError(f"`student.from` does not make a model that runs: {reason}") from None


def fresh_model(
    config: dict[str, Any], teacher_config: Any, seed: int, auto: str = CAUSAL
) -> nn.Module:
    """Return a float32 model with random weights drawn from the seed.

    auto: the `transformers` auto class to make it with. Raises `RecipeError` for a config that
    gives no model.
    """
    import transformers

    made = fresh_config(config, teacher_config)
    torch.manual_seed(seed)
    try:
        model = getattr(transformers, auto).from_config(made, dtype=torch.float32)
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        raise RecipeError(f"`student.from` does not make a model: {error}") from None
    return model.eval()  # type: ignore[no-any-return]
